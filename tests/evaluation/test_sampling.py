"""``eval.py generate`` and ``features`` of methods that read tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as script
import train
from evaluation.commands.generate import Request, Target, generate
from runtime.checkpoints import load_module
from runtime.messages import ROOT
from tests.conftest import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "gpt"
    options = [
        "--run_dir",
        str(folder),
        "--data.synthetic",
        "true",
        "--trainer.max_steps",
        "3",
        "--evaluate",
        "false",
    ]
    options += [
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.limit_val_batches",
        "1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        assert train.main(["--config", str(ROOT / "configs/text/gpt.yaml"), *options]) == 0
    return folder


def written(path: Path) -> str:
    """The text of the file, which is then out of the way."""
    text = path.read_text(encoding="utf-8")
    path.unlink()
    assert text.endswith("\n")
    return text[:-1]


def test_a_prompt_is_continued(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By as many tokens as asked, past the block too; the file's text is what the terminal shows."""
    target = run / "samples.txt"
    assert script.main(["generate", str(run), "120", "--prompt", "a fish", "--temperature", "0.5"]) == 0
    text = written(target)
    assert text.startswith("a fish") and 80 < len(text) <= 6 + 120  # ids without a character give nothing
    assert text in capsys.readouterr().out
    (tmp_path / "prompt.txt").write_text("a fish", encoding="utf-8")
    again = ["generate", str(run), "120", "--prompt", str(tmp_path / "prompt.txt"), "--temperature", "0.5"]
    assert script.main(again) == 0 and written(target) == text
    assert script.main(["generate", str(run), "120", "--prompt", "a fish"]) == 0 and written(target) != text
    assert script.main(["generate", str(run), "5"]) == 0 and 1 <= len(written(target)) <= 6


def test_temperature_0_is_the_likeliest_text(run: Path, tmp_path: Path) -> None:
    module = load_module(run / "checkpoints" / "last.ckpt").eval()
    _, data = build("configs/text/gpt.yaml")
    target = tmp_path / "out.txt"
    assert (
        script.main(
            ["generate", str(run), "9", "--prompt", "he", "--temperature", "0", "--output", str(target)]
        )
        == 0
    )
    expected = module.extend(torch.tensor([data.encode("he")]), 9, temperature=0)[0]  # type: ignore[operator, attr-defined]
    assert written(target) == data.to_text(expected)  # type: ignore[attr-defined]


def test_what_of_a_prompt_is_unknown_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["generate", str(run), "3", "--prompt", "a\u00e9\u4e2db"]) == 0
    assert "2 of its characters are not in the vocabulary" in capsys.readouterr().out
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    for options, message in (
        (["--prompt", "\u4e2d"], "none of its characters are in the run's vocabulary"),
        (["--prompt", str(tmp_path / "latin1.txt")], "is not UTF-8"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature must be in [0, inf), got -1.0"),
        (["--prompt", "a", "--output", str(tmp_path / "a.png")], "ends in .txt"),
    ):
        assert script.main(["generate", str(run), "3", "--overwrite", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_features_of_texts(run: Path, tmp_path: Path) -> None:
    """A row for each window of each split, equal to what the method embeds."""
    target = tmp_path / "features.npz"
    assert script.main(["features", str(run), str(target), "--data.synthetic", "true"]) == 0
    _, data = build("configs/text/gpt.yaml")
    module = load_module(run / "checkpoints" / "last.ckpt").eval()
    with np.load(target) as arrays, torch.no_grad():
        for split, name in (("bank", "train"), ("val", "val"), ("test", "test")):
            rows = arrays["features"][arrays["split"] == name]
            dataset = data.dataset(split)  # type: ignore[arg-type]
            assert len(rows) == len(dataset)  # type: ignore[arg-type]
            expected = module.embed(dataset.__getitems__([0, 1])["input"])  # type: ignore[attr-defined]
            np.testing.assert_allclose(rows[:2], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_pictures_are_drawn_and_completed(tmp_path: Path) -> None:
    module, data = build("configs/digits/gpt.yaml")
    module.eval()
    target = tmp_path / "samples.png"
    asked = Request(3, Target(target, True, "x.ckpt"), None, 0.8, torch.device("cpu"))
    list(generate(module, data, asked, seed=0))
    with np.load(target.with_suffix(".npz")) as arrays:
        assert arrays["images"].shape == (3, 8, 8, 1)
    pixels = (np.arange(64).reshape(8, 8) * 4 // 16 * 16).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "prompt.png")
    list(
        generate(module, data, asked._replace(prompt=str(tmp_path / "prompt.png"), temperature=None), seed=0)
    )
    with np.load(target.with_suffix(".npz")) as arrays:
        images = arrays["images"][..., 0].astype(int)
    assert (abs(images[:, :4] - pixels[:4]) <= 8).all()  # the middle of a level of 16
    assert (images[0] != images[1]).any()
