"""``eval.py RUN --data ...``: the network sees it in the run's format, and differences are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import eval as script
import train
from datamodules import CIFAR10, Digits
from runtime.checkpoints import build_module, initial_module, load_module, read_checkpoint
from runtime.messages import ROOT
from runtime.saved_run import build_data
from tests.conftest import build

QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--evaluate", "false"]
QUICK += ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--data.batch_size", "16"]


def train_on(folder: Path, *options: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        command = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), *QUICK, *options]
        assert train.main([*command, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def gray_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 8x8 gray images, that were synthetic."""
    return train_on(tmp_path_factory.mktemp("runs") / "gray", "--data.synthetic", "true")


@pytest.fixture(scope="module")
def color_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 32x32 color images with CIFAR-10's statistics."""
    options = ["--data", "CIFAR10", "--data.synthetic", "true", "--model.encoder.in_channels", "3"]
    return train_on(tmp_path_factory.mktemp("runs") / "color", *options)


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def photos(folder: str, side: int, width: int | None = None) -> np.ndarray:
    """48 color pictures of 3 classes in ``folder``, which are also returned."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, side, width or side, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Path(folder, f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(Path(folder, f"class{i % 3}", f"{i:02}.png"))
    return pixels


def evaluate(*arguments: object) -> int:
    return script.main([*map(str, arguments), "--device", "cpu"])


def rows_of(file: str) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return {Path(name).stem: row for name, row in zip(arrays["files"], arrays["features"], strict=True)}


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]


def features(run: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    """Of pictures (N, H, W, C) as the run's data set shows them to its network."""
    module = load_module(run / "checkpoints" / "last.ckpt")
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        return module.embed(data.transform({"input": raw}, None)["input"]).numpy()


SYNTHETIC = "note: the run saw synthetic samples, now real ones of ImageFolder (else --data.synthetic true)"


def test_a_folder_is_seen_as_the_color_run_saw_its_images(
    color_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32x32 with CIFAR-10's statistics, not 224x224 with ImageNet's; the files, not random images."""
    pixels = photos("photos", 32)
    assert evaluate("features", color_run, "f.npz", "--data", "ImageFolder", "--data.root", "photos") == 0
    assert notes(capsys) == [SYNTHETIC]
    found, expected = rows_of("f.npz"), features(color_run, CIFAR10(), pixels)
    assert len(found) == 48
    for i, row in enumerate(expected):
        np.testing.assert_allclose(found[f"{i:02}"], row, rtol=1e-4, atol=1e-5)


def test_a_gray_run_takes_color_pictures_of_another_size(
    gray_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented command, in full: probes too. What is done to the pictures is said."""
    photos("photos", 24, 20)
    assert evaluate(gray_run, "--data", "ImageFolder", "--data.root", "photos", "--output", "r.json") == 0
    first, second = notes(capsys)
    assert first == SYNTHETIC
    assert second.startswith("note: photos/class") and second.endswith(
        ".png is 20x24; images are cropped and resized to 8x8 for the network"
    )
    report = json.loads(Path("r.json").read_text())
    assert report["protocol"]["samples"] == {"bank": 34, "val": 4, "test": 10} and report["failed"] == {}


def test_what_the_command_line_changes_is_said(gray_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos("photos", 16)
    data = ["--data", "ImageFolder", "--data.root", "photos", "--data.image_size", 16, "--data.mean", "[0.5]"]
    assert evaluate("features", gray_run, "f.npz", *data) == 0
    assert notes(capsys) == [
        SYNTHETIC,
        "note: image_size of ImageFolder is 16, in the run 8",
        "note: mean of ImageFolder is [0.5], in the run [0.3064]",
    ]


def test_a_run_is_evaluated_on_synthetic_samples_only_if_asked(
    gray_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("features", gray_run, "f.npz") == 0
    out = capsys.readouterr().out
    assert f"{SYNTHETIC}\n".replace("ImageFolder", "Digits") in out and "1077 train, 360 val, 360 test" in out
    assert evaluate("features", gray_run, "s.npz", "--data.synthetic", "true") == 0
    out = capsys.readouterr().out
    assert "note:" not in out and "512 train, 256 val, 256 test" in out


@pytest.mark.parametrize(
    ("run", "data", "expected"),
    [
        ("gray_run", "CIFAR10", "of CIFAR10 of shape (3, 32, 32): its in_channels is 1"),
        ("color_run", "Digits", "of Digits of shape (1, 8, 8): its in_channels is 3"),
    ],
)
def test_data_that_does_not_fit(
    run: str,
    data: str,
    expected: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", data, "--data.synthetic", "true"]
    assert evaluate(request.getfixturevalue(run), "--output", "r.json", *arguments) == 2
    remedy = "; the network is trained, so give data that matches it"
    assert capsys.readouterr().err == f"error: ConvEncoder does not accept samples {expected}{remedy}\n"
    assert not Path("r.json").exists()


def test_other_clips_are_heard_as_the_run_heard_its_own() -> None:
    """As for images: sample rate, bands and statistics are options that both data sets have."""
    _, tones = build("configs/tones/apc.yaml", "--data.num_mels", "24", "--model.encoder.in_features", "24")
    tones.decode(tones.dataset("val").__getitems__([0])["input"])  # type: ignore[attr-defined]
    stored = {**tones.hparams, "_class_path": "Tones"}
    data = build_data(stored, ["--data", "WavFolder", "--data.root", "clips"])
    assert data.input_format() == tones.input_format() and len(data.input_format()["mean"]) == 24


def test_a_rebuilt_network_asks_for_no_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's follow at once, and the random baseline is random."""
    module, _ = build("configs/digits/simclr.yaml")
    encoder = {"class_path": "TimmEncoder", "init_args": {"name": "resnet10t", "in_channels": 1}}
    recorded = {**module.hparams, "_class_path": "SimCLR", "encoder": encoder}
    created, asked = timm.create_model, []

    def create(*args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
        asked.append(pretrained)
        return created(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    random = initial_module({"hyper_parameters": recorded, "seed": 3})
    encoder["init_args"]["pretrained"] = True  # type: ignore[index]
    again = initial_module({"hyper_parameters": recorded, "seed": 3})
    assert asked == [False, False]
    assert again.hparams["encoder"]["init_args"]["pretrained"] is True  # what is recorded stays
    for (name, a), (_, b) in zip(random.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert build_module(recorded).encoder.num_features == random.encoder.num_features


def test_the_checkpoint_of_a_fixture_is_synthetic(gray_run: Path) -> None:
    """Or the tests above would show nothing."""
    stored = read_checkpoint(gray_run / "checkpoints" / "last.ckpt")["datamodule_hyper_parameters"]
    assert stored["synthetic"] is True and Digits().synthetic is False


def test_changed_files_of_the_run_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming is refused then; evaluation is not, but the test split may be another one."""
    photos("photos", 8)
    folder = ["--data", "ImageFolder", "--data.root", str(Path("photos").resolve()), "--data.image_size", "8"]
    run = train_on(tmp_path / "run", *folder, "--model.encoder.in_channels", "3")
    assert evaluate("features", run, "before.npz") == 0 and notes(capsys) == []
    Path("photos/class0/00.png").unlink()
    assert evaluate("features", run, "after.npz") == 0
    changed = f"the files of {Path('photos').resolve()} have changed since the checkpoint was written"
    assert notes(capsys) == [
        f"note: {changed} (48 then, 47 now, or other names or sizes), so the splits may differ from the run's"
    ]
    Path("copy").mkdir()
    photos("copy", 8)  # another folder is another data set: nothing has changed
    assert evaluate("features", run, "f.npz", "--data", "ImageFolder", "--data.root", "copy") == 0
    assert not any("have changed" in line for line in notes(capsys))
