"""Noise has the strength it is asked for, differs between samples, and reaches the batch in the units of
``input``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from datamodules import Digits, GaussianNoise, MaskingNoise, SaltAndPepper
from datamodules.transforms.base import BatchTransform, apply_views

TRANSFORMS = [GaussianNoise(), SaltAndPepper(), MaskingNoise()]


def corrupt(transform: BatchTransform, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    added = apply_views(transform, images, torch.Generator().manual_seed(seed))
    assert set(added) == {"corrupted"}
    assert isinstance(added["corrupted"], torch.Tensor)
    return added["corrupted"]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_samples_differ_images_stay_and_chunks_do_not_matter(transform: BatchTransform) -> None:
    images = torch.full((150, 3, 20, 24), 0.5)
    noisy = corrupt(transform, images)
    assert torch.equal(noisy, corrupt(transform, images)) and not torch.equal(
        noisy, corrupt(transform, images, seed=1)
    )
    assert (images == 0.5).all() and noisy.shape == images.shape and noisy.min() >= 0 and noisy.max() <= 1
    assert not torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[:, 0], noisy[:, 1])
    whole = transform(images, transform.draw(images, torch.Generator().manual_seed(0)))["corrupted"]
    assert torch.equal(noisy, whole)  # type: ignore[arg-type]
    on_meta = torch.empty(
        4, 3, 8, 8, device="meta"
    )  # has no values: an operation that waits for a GPU raises here
    transform(on_meta, {k: torch.empty(4, 3, 8, 8, device="meta") for k in transform.draw(images, None)})


def test_gaussian_has_its_standard_deviation_before_it_is_cut() -> None:
    noise = corrupt(GaussianNoise(0.1), torch.full((100, 1, 20, 20), 0.5)) - 0.5
    assert noise.mean().abs() < 0.002 and noise.std().item() == pytest.approx(0.1, rel=0.02)
    # of a black image half of the values stay black, and the others are |n|: the mean is std / sqrt(2 pi)
    on_black = corrupt(GaussianNoise(0.1), torch.zeros(100, 1, 20, 20))
    assert on_black.mean().item() == pytest.approx(0.1 / math.sqrt(2 * math.pi), rel=0.02)


def test_replaced_shares() -> None:
    images = torch.full((100, 1, 20, 20), 0.5)
    salted, masked = corrupt(SaltAndPepper(0.2), images), corrupt(MaskingNoise(0.2), images)
    for noisy, black, white in ((salted, 0.1, 0.1), (masked, 0.2, 0.0)):
        assert (noisy == 0).float().mean().item() == pytest.approx(black, abs=0.01)
        assert (noisy == 1).float().mean().item() == pytest.approx(white, abs=0.01)
        assert ((noisy == 0) | (noisy == 1) | (noisy == 0.5)).all()


def test_the_batch_holds_it_standardized_and_input_clean() -> None:
    data = Digits(views=SaltAndPepper())
    raw = data.dataset("train").__getitems__([0, 1, 2])  # type: ignore[attr-defined]
    batch = data.transform(raw, torch.Generator().manual_seed(0))
    assert torch.equal(batch["input"], data.standardize(data.decode(raw["input"])))
    expected = corrupt(SaltAndPepper(), data.decode(raw["input"]))
    assert torch.equal(batch["corrupted"], data.standardize(expected))
    assert "corrupted" not in data.transform(raw, None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GaussianNoise(0.0), "std must be positive, got 0.0"),
        (lambda: GaussianNoise(float("nan")), "std must be positive, got nan"),
        (lambda: SaltAndPepper(1.0), r"ratio must be in \(0, 1\), got 1.0"),
        (lambda: MaskingNoise(0.0), r"ratio must be in \(0, 1\), got 0.0"),
    ],
)
def test_bad_knobs(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
