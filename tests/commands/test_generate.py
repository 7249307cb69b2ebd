"""eval.py generate: what it writes, and which files it never replaces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.arrays import Digits
from datamodules.seeding import mix_seed
from evaluation.commands.generate import GRID_LIMIT
from runtime.checkpoints import load_module
from sslmodules import Inpainting
from tests.commands.calls import error_of, evaluate, read_pixels

pytestmark = pytest.mark.usefixtures("clean_environment")


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
    # the image is a grid of the arrays: 9 columns of 64 pixels and 2 between
    grid = read_pixels(Path("samples.png"))
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
        (["generate", run, 2, "--output", "mine.png"], "mine.npz"),  # beside the image
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
    assert "Inpainting returned non-finite values" in error_of(
        capsys, "generate", run, 2, "--output", "s.png"
    )
    monkeypatch.setattr(Inpainting, "sample", lambda self, n: torch.zeros(n, 2))
    assert "returned (2, 2)" in error_of(capsys, "generate", run, 2, "--output", "s.png")
    fixed = torch.rand(64, 1, 8, 8)
    monkeypatch.setattr(Inpainting, "sample", lambda self, n: fixed[:n])
    assert "the same samples in every call" in error_of(capsys, "generate", run, 65, "--output", "s.png")
    assert not list(Path().glob("s.*"))
