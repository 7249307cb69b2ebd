"""eval.py restore: whole images, a user's masks, sizes and formats."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch import Tensor

from datamodules.images.arrays import Digits
from sslmodules import Inpainting
from tests.commands.calls import decibels, evaluate, read_pixels

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_restore_hides_as_the_run_does_and_measures(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("restore", run, photos, "--output", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(p.name for p in Path("out").iterdir()) == [f"{i}-restored.png" for i in range(5)]
    total = 0.0
    hidden_pixels = 0
    for i, line in enumerate(lines[:5]):
        original = read_pixels(next(photos.glob(f"{i}.*"))).astype(float)
        restored = read_pixels(Path("out") / f"{i}-restored.png").astype(float)
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
    assert lines[5].startswith("5 images, all hidden pixels together")
    assert decibels(lines[5]) == pytest.approx(10 * np.log10(hidden_pixels / total), abs=0.2)


def test_restore_one_picture_with_a_mask(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White is hidden, the truth is unknown unless it is given, and what is under the mask does not
    matter.
    """
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 3:6] = 255
    Image.fromarray(hole).save("mask.png")
    damaged = read_pixels(photos / "0.png").copy()
    damaged[hole > 0] = 255
    Image.fromarray(damaged).save("damaged.png")
    assert evaluate("restore", run, "damaged.png", "--mask", "mask.png", "--output", "a") == 0
    assert "PSNR" not in capsys.readouterr().out
    command = ["restore", run, photos / "0.png", "--mask", "mask.png", "--output", "b"]
    assert evaluate(*command, "--truth", photos / "0.png") == 0
    from_damaged, from_whole = (
        read_pixels(Path("a/damaged-restored.png")),
        read_pixels(Path("b/0-restored.png")),
    )
    assert (from_damaged == from_whole).all()
    assert (from_whole[hole == 0] == damaged[hole == 0]).all() and (from_whole != damaged)[hole > 0].any()
    truth = read_pixels(photos / "0.png").astype(float)
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
    restored = read_pixels(Path("out/0-restored.png"))
    assert set(restored[hole > 0]) == {round(Digits.mean[0] * 255)}
    assert evaluate("restore", run, photos / "0.png", "--output", "own") == 0
    changed = read_pixels(Path("own/0-restored.png"))[
        read_pixels(Path("own/0-restored.png")) != read_pixels(photos / "0.png")
    ]
    assert set(changed) == {round(Digits.mean[0] * 255)}


def test_restore_resizes_to_the_size_of_the_run(run: Path, photos: Path) -> None:
    """A large image of another shape, with a mask of the same shape: both lose the same sides."""
    large = Image.open(photos / "0.png").resize((80, 80), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (120, 80), "red")
    wide.paste(large, (20, 0))
    wide.save("wide.jpg", quality=95)
    mask = Image.new("L", (120, 80))
    mask.paste(255, (50, 40, 60, 50))  # in the square: columns 30 to 39, rows 40 to 49 of 80
    mask.save("mask.png")
    assert evaluate("restore", run, "wide.jpg", "--mask", "mask.png", "--output", "out") == 0
    restored = read_pixels(Path("out/wide-restored.png")).astype(int)
    difference = abs(restored - read_pixels(photos / "0.png"))
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
    """As a denoising autoencoder: the image is what is damaged, whatever noise the run itself would add."""
    seen: dict[str, Tensor] = {}

    def brighter(self: Inpainting, batch: dict[str, Tensor]) -> Tensor:
        seen.update(batch)
        return batch["corrupted"] + 0.5

    monkeypatch.setattr(Inpainting, "batch_keys", ("corrupted",))
    monkeypatch.setattr(Inpainting, "reconstruct", brighter)
    assert evaluate("restore", run, photos / "1.png", "--output", "out") == 0
    assert "PSNR" not in capsys.readouterr().out and "mask" not in seen
    given, restored = (read_pixels(p).astype(float) for p in (photos / "1.png", Path("out/1-restored.png")))
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
        read_pixels(Path("seen-out/a-restored.png")), read_pixels(Path("stored-out/a-restored.png"))
    )
    Image.new("L", (8, 4), 255).save("mask.png")
    Image.new("L", (4, 8)).save("portrait.png", exif=exif)  # is seen as 8 x 4
    assert evaluate("restore", run, "portrait.png", "--mask", "mask.png", "--output", "masked") == 0
