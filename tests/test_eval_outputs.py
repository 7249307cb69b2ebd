"""``eval.py generate, restore and features`` from end to end on digits, and what their documentation
says.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

import eval as script
import train
from datamodules.images.arrays import Digits
from datamodules.seeding import mix_seed
from evaluation.commands.generate import GRID_LIMIT
from runtime.checkpoints import load_module
from runtime.eval_help import choose
from runtime.eval_main import parse
from runtime.messages import ROOT
from sslmodules import Inpainting

PAGE = ROOT / "docs" / "using_what_was_trained.md"
QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "2",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting run of two epochs: what it predicts is poor, and that does not matter here."""
    folder = tmp_path_factory.mktemp("runs") / "inpainting"
    command = [
        "--config",
        str(ROOT / "configs" / "digits" / "inpainting.yaml"),
        *QUICK,
        "--run_dir",
        str(folder),
    ]
    assert train.main([*command, "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2"]) == 0
    return folder


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The test split: (360, 8, 8) uint8 and labels."""
    dataset: Any = Digits().dataset("test")
    return dataset.images[..., 0], dataset.labels


@pytest.fixture
def photos(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> Path:
    """A folder with five digits as pictures of the run's own size, one of them of another format."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(digits[0][:5]):
        Image.fromarray(image).save(folder / f"{i}.{'bmp' if i == 4 else 'png'}")
    return folder


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with ``sample``, while the test lasts: the run's decoder fed with noise."""

    def sample(self: Inpainting, n: int) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return self.decoder(self.encoder.forward_features(self.randn(n, 2, 8, 8)))  # type: ignore[operator]

    monkeypatch.setattr(Inpainting, "sample", sample, raising=False)


def evaluate(*arguments: object) -> int:
    return script.main([*map(str, arguments), "--device", "cpu"])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that is said when it cannot work."""
    capsys.readouterr()
    assert evaluate(*arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ") and len(error.strip().splitlines()) == 1 and len(error) < 500, error
    return error


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- generate ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("generator")
def test_generate_writes_a_picture_and_arrays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("generate", run, 70, "--output", "samples.png") == 0
    out = capsys.readouterr().out
    assert "written: samples.png" in out and "written: samples.npz" in out and "(70, 8, 8, 1)" in out
    with np.load("samples.npz") as arrays:  # without pickle
        images, labels = arrays["images"], arrays["labels"]
        assert str(arrays["checkpoint"]).endswith("last.ckpt")
    assert images.dtype == np.uint8 and images.shape == (70, 8, 8, 1) and images.std() > 0
    assert len(np.unique(images.reshape(70, -1), axis=0)) == 70  # also beyond the first batch
    assert labels.tolist() == [-1] * 70
    # the picture is a grid of the arrays: 9 columns of 64 pixels and 2 between
    grid = picture(Path("samples.png"))
    assert grid.shape == (8 * 66 + 2, 9 * 66 + 2, 3)
    assert (grid[66 + 2 : 66 + 66 : 8, 2:66:8, 0] == images[9, :, :, 0]).all()
    # what the method gives in standardized units comes back as pixels
    module = load_module(run / "checkpoints" / "last.ckpt")
    torch.manual_seed(mix_seed(0, 3))
    with torch.no_grad():
        first = Digits().unstandardize(module.sample(64))  # type: ignore[operator]
    assert abs(images[:64, :, :, 0] / 255 - first[:, 0].numpy()).max() < 0.6 / 255


@pytest.mark.usefixtures("generator")
def test_generate_again_gives_the_same_and_says_that_it_replaced(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, "copy"))
    assert evaluate("generate", copy, 3) == 0
    first = np.load(copy / "samples.npz")["images"]
    torch.manual_seed(99)
    assert evaluate("generate", copy, 3, "--overwrite") == 0
    assert f"replaced: {copy / 'samples.png'}" in capsys.readouterr().out
    assert (np.load(copy / "samples.npz")["images"] == first).all()
    assert evaluate("generate", copy / "checkpoints" / "best.ckpt", GRID_LIMIT + 1) == 0
    assert f"the first {GRID_LIMIT}" in capsys.readouterr().out
    assert len(np.load(copy / "samples-best.npz")["images"]) == GRID_LIMIT + 1
    assert not [p for p in copy.iterdir() if p.name.startswith(".") and p.name != ".lock"]


@pytest.mark.usefixtures("generator")
def test_nothing_is_overwritten_unless_asked(
    run: Path, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    """Whoever made the file: an image, an array file, restored pictures, features, a foreign json."""
    Path("out").mkdir()
    for command, name in (
        (["generate", run, 2, "--output", "mine.png"], "mine.png"),
        (["generate", run, 2, "--output", "mine.png"], "mine.npz"),  # beside the picture
        (["features", run, "mine.npz"], "mine.npz"),
        (["restore", run, photos, "--output", "out"], "out/2-restored.png"),
        (["probe", run, "--probes", "knn", "--output", "mine.json"], "mine.json"),
    ):
        Path(name).write_text('{"results": 1, "mine": 2}')
        before = sorted(Path().rglob("*"))
        error = error_of(capsys, *command)
        assert f"{name} exists" in error and Path(name).read_text() == '{"results": 1, "mine": 2}'
        assert sorted(Path().rglob("*")) == before
        if "json" not in name:
            assert f"error: --output {name} exists: give --overwrite" in error.replace("FILE.npz", "--output")
            assert evaluate(*command, "--overwrite") == 0
            assert f"replaced: {name}" in capsys.readouterr().out
        Path(name).unlink()


def test_an_earlier_results_file_is_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of this version and of the first, which told no schema."""
    old = {"method": "SimCLR", "protocol": {"standardise": True}, "results": {}}
    Path("old.json").write_text(json.dumps(old))
    for _ in range(2):
        assert evaluate(run, "--probes", "knn", "--output", "old.json") == 0
        assert "replaced: old.json" in capsys.readouterr().out
    assert json.loads(Path("old.json").read_text())["schema"] == 2


@pytest.mark.usefixtures("generator")
def test_samples_that_cannot_be_used(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Inpainting, "sample", lambda self, n: torch.full((n, 1, 8, 8), float("nan")))
    assert "Inpainting gave values that are not finite" in error_of(
        capsys, "generate", run, 2, "--output", "s.png"
    )
    monkeypatch.setattr(Inpainting, "sample", lambda self, n: torch.zeros(n, 2))
    assert "gave (2, 2)" in error_of(capsys, "generate", run, 2, "--output", "s.png")
    fixed = torch.rand(64, 1, 8, 8)
    monkeypatch.setattr(Inpainting, "sample", lambda self, n: fixed[:n])
    assert "the same samples in every call" in error_of(capsys, "generate", run, 65, "--output", "s.png")
    assert not list(Path().glob("s.*"))


# ---- restore -----------------------------------------------------------------------------------------------


def decibels(line: str) -> float:
    return float(re.search(r"PSNR of the hidden region ([\d.]+) dB", line)[1])  # type: ignore[index]


def test_restore_hides_as_the_run_does_and_measures(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("restore", run, photos, "--output", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(p.name for p in Path("out").iterdir()) == [f"{i}-restored.png" for i in range(5)]
    total = 0.0
    hidden_pixels = 0
    for i, line in enumerate(lines[:5]):
        original = picture(next(photos.glob(f"{i}.*"))).astype(float)
        restored = picture(Path("out") / f"{i}-restored.png").astype(float)
        assert restored.shape == (8, 8) and line.startswith(f"written: out/{i}-restored.png")
        changed = original != restored
        assert (
            0 < changed.sum() <= 16
        )  # a block of at most half a side each way; what is visible is as it was
        # the number is that of the changed pixels, but for those that were predicted to the last bit and for
        # rounding
        error = ((original - restored) ** 2).sum() / 255**2
        count = round(error * 10 ** (decibels(line) / 10))
        assert 4 <= count <= 16
        total, hidden_pixels = total + error, hidden_pixels + count
    assert lines[5].startswith("5 pictures, all hidden pixels together")
    assert decibels(lines[5]) == pytest.approx(10 * np.log10(hidden_pixels / total), abs=0.2)


def test_restore_one_picture_with_a_mask(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White is hidden, the truth is unknown unless it is given, and what is under the mask does not
    matter.
    """
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 3:6] = 255
    Image.fromarray(hole).save("mask.png")
    damaged = picture(photos / "0.png").copy()
    damaged[hole > 0] = 255
    Image.fromarray(damaged).save("damaged.png")
    assert evaluate("restore", run, "damaged.png", "--mask", "mask.png", "--output", "a") == 0
    assert "PSNR" not in capsys.readouterr().out
    command = ["restore", run, photos / "0.png", "--mask", "mask.png", "--output", "b"]
    assert evaluate(*command, "--truth", photos / "0.png") == 0
    from_damaged, from_whole = picture(Path("a/damaged-restored.png")), picture(Path("b/0-restored.png"))
    assert (from_damaged == from_whole).all()
    assert (from_whole[hole == 0] == damaged[hole == 0]).all() and (from_whole != damaged)[hole > 0].any()
    truth = picture(photos / "0.png").astype(float)
    expected = 10 * np.log10(255**2 / ((from_whole - truth) ** 2)[hole > 0].mean())
    assert decibels(capsys.readouterr().out) == pytest.approx(expected, abs=0.1)
    originals = Path(shutil.copytree(photos, "originals"))
    elsewhere = np.where(hole, truth, 255 - truth).astype(np.uint8)  # what is visible does not count
    Image.fromarray(elsewhere).save(originals / "0.png")
    assert evaluate(*command, "--truth", originals, "--overwrite") == 0
    out = capsys.readouterr().out
    assert "replaced: b/0-restored.png" in out and decibels(out) == pytest.approx(expected, abs=0.1)


def test_a_method_never_sees_what_is_under_the_mask(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gives back its input fills the hole with the mean color."""
    monkeypatch.setattr(Inpainting, "reconstruct", lambda self, batch: batch["input"])
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 2:6] = 255
    Image.fromarray(hole).save("mask.png")
    assert evaluate("restore", run, photos / "0.png", "--mask", "mask.png", "--output", "out") == 0
    restored = picture(Path("out/0-restored.png"))
    assert set(restored[hole > 0]) == {round(Digits.mean[0] * 255)}
    assert evaluate("restore", run, photos / "0.png", "--output", "own") == 0
    changed = picture(Path("own/0-restored.png"))[
        picture(Path("own/0-restored.png")) != picture(photos / "0.png")
    ]
    assert set(changed) == {round(Digits.mean[0] * 255)}


def test_restore_resizes_to_the_size_of_the_run(run: Path, photos: Path) -> None:
    """A large picture of another shape, with a mask of the same shape: both lose the same sides."""
    large = Image.open(photos / "0.png").resize((80, 80), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (120, 80), "red")
    wide.paste(large, (20, 0))
    wide.save("wide.jpg", quality=95)
    mask = Image.new("L", (120, 80))
    mask.paste(255, (50, 40, 60, 50))  # in the square: columns 30 to 39, rows 40 to 49 of 80
    mask.save("mask.png")
    assert evaluate("restore", run, "wide.jpg", "--mask", "mask.png", "--output", "out") == 0
    restored = picture(Path("out/wide-restored.png")).astype(int)
    difference = abs(restored - picture(photos / "0.png"))
    hidden = np.zeros((8, 8), bool)
    hidden[4, 3] = True
    assert restored.shape == (8, 8)
    away = ~np.pad(hidden, 1)[1:-1, 1:-1]
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):  # the mask's edge is as soft as the resize
        away &= ~np.roll(hidden, step, axis)
    assert difference[away].mean() < 20


def test_restore_of_a_method_without_masks_takes_the_whole_picture(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a denoising autoencoder: the picture is what is damaged, whatever noise the run itself would add."""
    seen: dict[str, Tensor] = {}

    def brighter(self: Inpainting, batch: dict[str, Tensor]) -> Tensor:
        seen.update(batch)
        return batch["corrupted"] + 0.5

    monkeypatch.setattr(Inpainting, "batch_keys", ("corrupted",))
    monkeypatch.setattr(Inpainting, "reconstruct", brighter)
    assert evaluate("restore", run, photos / "1.png", "--output", "out") == 0
    assert "PSNR" not in capsys.readouterr().out and "mask" not in seen
    given, restored = (picture(p).astype(float) for p in (photos / "1.png", Path("out/1-restored.png")))
    assert abs(restored - (given + 0.5 * Digits.std[0] * 255).clip(0, 255)).max() < 1
    again = ["--truth", photos / "1.png", "--output", "out", "--overwrite"]
    assert evaluate("restore", run, photos / "1.png", *again) == 0
    expected = 10 * np.log10(255**2 / ((restored - given) ** 2).mean())
    assert decibels(capsys.readouterr().out) == pytest.approx(expected, abs=0.1)


def test_restore_writes_pictures_back_as_they_are_seen(
    run: Path, digits: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """A phone stores a portrait lying on its side, with EXIF's orientation."""
    Path("seen").mkdir()
    Path("stored").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned a quarter to the right to be seen
    Image.fromarray(digits[0][0]).save("seen/a.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(digits[0][0]))).save("stored/a.png", exif=exif)
    for name in ("seen", "stored"):
        assert evaluate("restore", run, name, "--output", f"{name}-out") == 0
    assert np.array_equal(
        picture(Path("seen-out/a-restored.png")), picture(Path("stored-out/a-restored.png"))
    )
    Image.new("L", (8, 4), 255).save("mask.png")
    Image.new("L", (4, 8)).save("portrait.png", exif=exif)  # is seen as 8 x 4
    assert evaluate("restore", run, "portrait.png", "--mask", "mask.png", "--output", "masked") == 0


# ---- features ----------------------------------------------------------------------------------------------


def test_features_of_every_split(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("features", run, "features.npz") == 0
    out = capsys.readouterr().out
    assert "written: features.npz" in out and "1077 train, 360 val, 360 test" in out
    arrays = np.load("features.npz")
    n = 1077 + 360 + 360
    module, data = load_module(run / "checkpoints" / "last.ckpt"), Digits()
    assert (
        arrays["features"].shape == (n, module.encoder.num_features)
        and arrays["features"].dtype == np.float32
    )
    assert "files" not in arrays and arrays["class_names"].tolist() == list("0123456789")
    for split in ("train", "val", "test"):
        rows = arrays["split"] == split
        dataset: Any = data.dataset(split)  # type: ignore[arg-type]
        assert (arrays["labels"][rows] == dataset.labels).all() and (
            arrays["index"][rows] == np.arange(rows.sum())
        ).all()
        with torch.no_grad():
            first = module.embed(data.transform(dataset.__getitems__([0, 7]), None)["input"])
        np.testing.assert_allclose(arrays["features"][rows][[0, 7]], first, rtol=1e-4, atol=1e-5)


def test_features_of_a_folder_have_file_names(
    run: Path, digits: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (image, label) in enumerate(zip(*(part[:60] for part in digits), strict=True)):
        Path(f"images/class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"images/class{label}/{i:02}.png")
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.image_size", 8, "--data.channels", 1]
    data += ["--data.mean", "[0.3064]", "--data.std", "[0.3767]", "--data.batch_size", 7]
    assert evaluate("features", run, "f.npz", *data) == 0
    arrays = np.load("f.npz")
    assert len(set(arrays["files"].tolist())) == len(arrays["features"]) == 60
    module, transform = load_module(run / "checkpoints" / "last.ckpt"), Digits().transform
    for row in (0, 30, 59):
        file = Path(str(arrays["files"][row]))
        assert (
            file.parent.name == f"class{arrays['class_names'][arrays['labels'][row]].removeprefix('class')}"
        )
        with torch.no_grad():
            h = module.embed(
                transform({"input": torch.from_numpy(picture(file).copy())[None, None]}, None)["input"]
            )[0]
        np.testing.assert_allclose(arrays["features"][row], h, rtol=1e-4, atol=1e-5)

    unlabeled = [*data, "--data.labeled", "false"]
    assert evaluate("features", run, "f.npz", "--overwrite", *unlabeled) == 0
    assert "replaced: f.npz" in capsys.readouterr().out
    assert set(np.load("f.npz")["labels"]) == {-1}


# ---- what cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", 4], r"Inpainting has no sample\(\); methods that have it: "),
        (["generate", 0, "--output", "s.png"], "N must be at least 1, got 0"),
        (
            ["generate", "many"],
            r"argument N: invalid int value: 'many'; see python eval.py generate --help",
        ),
        (["generate"], "the following arguments are required: N; see python eval.py generate --help"),
        (["generate", 4, "--probes", "knn"], "unrecognized arguments: --probes knn"),
        (["features", "f.txt"], "FILE.npz f.txt: expected a name that ends in .npz"),
        (["features", "no/f.npz"], "the folder no does not exist"),
        (["features", "f.npz", "--output", "g.npz"], "unrecognized arguments: --output g.npz"),
        (
            ["probe", "--mask", "m.png"],
            "unrecognized arguments: --mask m.png; see python eval.py probe --help",
        ),
        (["restore", "nowhere"], "nowhere does not exist: expected an image or a folder of images"),
        (["restore", "empty"], "no images in empty: expected files that Pillow opens"),
        (["restore", "text.png", "--output", "o"], "cannot read image text.png: it is not an image"),
        (["restore", "photos", "--output", "photos"], "is the folder of the pictures: choose another"),
        (["restore", "photos", "--output", "text.png"], "--output text.png: expected a folder"),
        (
            ["restore", "photos", "--output", "a/b"],
            "expected a folder, new or not, in a folder that exists",
        ),
        (["restore", "photos", "--output", "o", "--mask", "black.png"], "black.png hides nothing"),
        (["restore", "photos", "--output", "o", "--mask", "text.png"], "cannot read image text.png"),
        (["restore", "photos/0.png", "--output", "o", "--truth", "text.png"], "cannot read image text.png"),
        (
            ["restore", "photos", "--output", "o", "--mask", "wide.png"],
            "wide.png is 16x8 and .* is 8x8: expected the same",
        ),
        (
            ["restore", "photos", "--output", "o", "--truth", "twins"],
            "twins: a.bmp and a.png have the same name",
        ),
        (
            ["restore", "photos", "--output", "o", "--truth", "wide.png"],
            "--truth wide.png has no picture named 0 for",
        ),
        (
            ["restore", "photos", "--output", "taken"],
            "taken/3-restored.png exists: give --overwrite",
        ),
        (
            ["restore", "photos", "--output", "o", "--data.views", "null"],
            "needs to know what is hidden: give --mask IMAGE",
        ),
        (
            ["restore", "photos", "--output", "o", "--data.views", "CenterHole"],
            "hole from start=10 to stop=20 does not fit",
        ),
        (["probe", "--outptu", "o"], "unrecognized arguments: --outptu o"),
    ],
)
def test_one_line_for_what_cannot_work(
    arguments: list[object], expected: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "twins", "taken"):
        Path(folder).mkdir()
    Path("text.png").write_text("not a picture")
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (16, 8), 255).save("wide.png")
    for name in ("twins/a.png", "twins/a.bmp", "taken/3-restored.png"):
        Image.new("L", (8, 8)).save(name)
    before = sorted(Path().rglob("*"))
    assert re.search(expected, error_of(capsys, arguments[0], run, *arguments[1:]))
    assert sorted(Path().rglob("*")) == before  # nothing is written


def test_generate_names_the_methods_that_can(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sslmodules import SimCLR

    monkeypatch.setattr(SimCLR, "sample", lambda self, n: None, raising=False)
    assert re.search(r"methods that have it: .*\bSimCLR\b", error_of(capsys, "generate", run, 1))


OPTIONS = {
    "probe": ["--probes", "--output"],
    "generate": [" N ", "--prompt", "--temperature", "--output", "--overwrite"],
    "restore": [" PICTURES ", "--mask", "--truth", "--output", "--overwrite"],
    "features": [" FILE.npz ", "--overwrite"],
    "export": [" DIR "],
}


def test_help_shows_the_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+) RUN", text, flags=re.MULTILINE) == [
        "probe",
        "export",
        "features",
        "generate",
        "restore",
    ]
    assert script.main([]) == 2 and capsys.readouterr().out == text
    for command, options in OPTIONS.items():
        with pytest.raises(SystemExit, match="0"):
            script.main([command, "--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: python eval.py {command} RUN")
        assert [o for o in options if o not in shown] == []
        others = {o for more in OPTIONS.values() for o in more if o.startswith("--")} - set(options)
        assert [o for o in others if o in shown] == []


def test_help_comes_without_torch() -> None:
    code = "import sys, eval; status = eval.main(['--help']); sys.exit(status or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("flag", ["--generate", "--restore", "--features", "--export"])
@pytest.mark.parametrize("value", [[" 4"], ["=4"]])
def test_an_option_of_earlier_versions_names_the_command(
    flag: str, value: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = flag.removeprefix("--")
    words = f"{flag}{value[0]}".split()
    more = {"generate": "N", "restore": "PICTURES", "features": "FILE.npz", "export": "DIR"}[name]
    expected = f"error: {words[0]} is a command now: python eval.py {name} RUN {more}\n"
    assert error_of(capsys, run, *words) == expected


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "genrate", "RUN", 4) == (
        "error: genrate does not exist (did you mean 'generate'?): expected a run folder, a checkpoint, or "
        "one of the commands probe, export, features, generate, restore\n"
    )


# ---- the pages of the documentation ------------------------------------------------------------------------


@pytest.mark.usefixtures("generator")
def test_the_page_is_true(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands run, on a run called RUN and a folder of pictures, and then its Python examples do.

    Those for runs of other methods are tested in tests/evaluation; here they parse.
    """
    text = PAGE.read_text(encoding="utf-8")
    Path("RUN").symlink_to(run)
    hole = np.zeros((8, 8), np.uint8)
    hole[:3, :3] = 255
    Image.fromarray(hole).save("mask.png")
    shutil.copytree(photos, "originals")
    commands = re.findall(r"^python eval\.py (.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = shlex.split(command, comments=True)
        if "DIR" in arguments or "RUN" not in arguments:
            Path(arguments[1]).touch()
            parse(*choose(arguments))
        else:
            assert evaluate(*arguments) == 0, command
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), {})


def test_every_number_of_a_run_is_explained(run: Path) -> None:
    """docs/metrics.md names each TensorBoard tag and each key of results.json; a method's own terms are its
    page's matter.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)`", text))
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {tag for kind in ("scalars", "images", "tensors") for tag in events.Tags()[kind]}
    method_terms = {f"{part}/{term}" for part in ("train", "val") for term in ("mse_hidden", "mse_image")}
    assert {"train/loss", "val/linear_top1", "reconstruction"} <= tags
    assert not {t for t in tags - method_terms if not t.startswith("_hparams_")} - named

    def keys(node: Any) -> set[str]:
        inner = set().union(*map(keys, node.values())) if isinstance(node, dict) else set()
        return inner | (set(node) if isinstance(node, dict) else set())

    assert not keys(json.loads((run / "results.json").read_text())) - named
