"""Masks: True = hidden, the right number of pixels, another place in each sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.transforms.base import BatchTransform, apply_views
from datamodules.transforms.masks import CenterHole, MAEViews, RandomBlock, RandomPatches
from sslmodules.mae import (
    hidden_patches,
    visible_patches,
)

TRANSFORMS = [CenterHole(10, 20), RandomBlock(0.25, 0.5), RandomPatches(4, 0.75)]


def make_mask(transform: BatchTransform, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    added = apply_views(transform, torch.zeros(shape), torch.Generator().manual_seed(seed))
    assert set(added) - {"context", "targets"} == {"mask"}
    mask = added["mask"]
    assert mask.dtype == torch.bool and mask.shape == (shape[0], 1, *shape[2:])
    return mask


def boxes(mask: torch.Tensor) -> torch.Tensor:
    """(B, 4): top, left, height, width of the True pixels of each sample, which must fill a rectangle."""
    result = []
    for sample in mask[:, 0]:
        rows, columns = sample.any(1).nonzero()[:, 0], sample.any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
        assert sample.sum() == height * width, "the hidden pixels are no rectangle"
        result.append([top, left, height, width])
    return torch.tensor(result)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_chunks_and_devices(transform: BatchTransform) -> None:
    shape = (150, 3, 28, 32)
    chunked = make_mask(transform, shape)
    params = transform.draw(torch.zeros(shape), torch.Generator().manual_seed(0))
    assert torch.equal(chunked, transform(torch.zeros(shape), params)["mask"])
    on_meta = torch.empty(
        shape, device="meta"
    )  # has no values: an operation that waits for a GPU raises here
    assert transform(on_meta, transform.draw(on_meta, None))["mask"].shape == chunked.shape


@pytest.mark.parametrize("transform", TRANSFORMS[1:], ids=lambda transform: type(transform).__name__)
def test_masks_follow_the_seed_and_differ_within_a_batch(transform: BatchTransform) -> None:
    first, again, other = (make_mask(transform, (64, 1, 28, 28), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) > 55


def test_center_hole_hides_rows_and_columns_10_to_19() -> None:
    mask = make_mask(CenterHole(), (3, 1, 28, 28))
    assert boxes(mask).tolist() == [[10, 10, 10, 10]] * 3


def test_center_hole_reaches_the_border_but_not_further() -> None:
    assert boxes(make_mask(CenterHole(0, 8), (1, 1, 8, 9))).tolist() == [[0, 0, 8, 8]]
    with pytest.raises(ValueError, match=r"start=10 to stop=20 .* 28x19"):
        make_mask(CenterHole(), (1, 1, 28, 19))


def test_random_block_has_its_own_place_and_size() -> None:
    found = boxes(make_mask(RandomBlock(0.25, 0.5), (2000, 1, 40, 20)))
    height, width = found[:, 2], found[:, 3]
    assert set(height.tolist()) == set(range(10, 21))
    assert set(width.tolist()) == set(range(5, 11))
    fixed = boxes(make_mask(RandomBlock(0.5, 0.5), (4000, 1, 8, 6)))
    assert fixed[:, 2:].unique(dim=0).tolist() == [[4, 3]]
    for start, last in (
        (fixed[:, 0], 4),
        (fixed[:, 1], 3),
    ):  # every place, from one border to the other, alike
        share = torch.bincount(start, minlength=last + 1) / len(start)
        assert len(share) == last + 1
        assert (share - 1 / (last + 1)).abs().max() < 0.03
    correlation = torch.corrcoef(torch.stack([height, width]).float())[0, 1]
    assert correlation.abs() < 0.1


def test_random_block_hides_at_least_a_pixel() -> None:
    assert boxes(make_mask(RandomBlock(0.01, 0.02), (10, 1, 8, 8)))[:, 2:].tolist() == [[1, 1]] * 10


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.6, 10), (0.1, 2)])
def test_random_patches_hide_exactly_the_ratio(ratio: float, hidden: int) -> None:
    mask = make_mask(RandomPatches(4, ratio), (200, 3, 16, 16))
    patches = mask.view(200, 4, 4, 4, 4).transpose(2, 3).flatten(3)  # (B, rows, columns, pixels of a patch)
    assert torch.equal(patches.all(3), patches.any(3))
    assert (patches.all(3).sum((1, 2)) == hidden).all()
    share = patches.all(3).float().mean(0)  # every patch alike
    assert (share - hidden / 16).abs().max() < 0.14


def test_random_patches_on_a_rectangle() -> None:
    mask = make_mask(RandomPatches(2, 0.5), (50, 1, 4, 12))
    assert (mask.flatten(1).sum(1) == 24).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CenterHole(5, 5), r"start must be at least 0 and below stop \(5\), got 5"),
        (lambda: CenterHole(-1, 5), r"start must be at least 0 and below stop \(5\), got -1"),
        (
            lambda: RandomBlock(0.0, 0.5),
            r"min_fraction must be above 0 and at most max_fraction \(0.5\), got 0.0",
        ),
        (
            lambda: RandomBlock(0.6, 0.5),
            r"min_fraction must be above 0 and at most max_fraction \(0.5\), got 0.6",
        ),
        (lambda: RandomBlock(0.5, 1.0), r"max_fraction must be in \(0, 1\), got 1.0"),
        (lambda: RandomPatches(0, 0.5), "patch_size must be at least 1, got 0"),
        (lambda: RandomPatches(4, 1.0), r"ratio must be in \(0, 1\), got 1.0"),
        (lambda: RandomPatches(4, float("nan")), "got nan"),
        (
            lambda: make_mask(RandomPatches(5, 0.5), (2, 1, 28, 28)),
            "patch_size=5 does not divide an image of 28x28",
        ),
        (lambda: make_mask(RandomPatches(14, 0.1), (2, 1, 28, 28)), "ratio=0.1 hides 0 of the 4 patches"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -------------------- views


def test_views_and_mask_fit_together() -> None:
    images = torch.rand(40, 3, 20, 24)
    added = apply_views(MAEViews(16, patch_size=4), images, torch.Generator().manual_seed(0))
    [view] = added["views"]
    assert view.shape == (40, 3, 16, 16) and added["mask"].shape == (40, 1, 16, 16)
    hidden = hidden_patches(added["mask"], 4)
    assert (hidden.sum(1) == 12).all() and len(hidden.unique(dim=0)) == 40


@pytest.mark.parametrize("ratio", (0.5, 0.75))
def test_indices_of_visible_and_hidden_patches_come_with_the_mask(ratio: float) -> None:
    images = torch.rand(150, 1, 16, 24)
    added = apply_views(RandomPatches(4, ratio), images, torch.Generator().manual_seed(0))
    hidden = hidden_patches(added["mask"], 4)
    count = round(ratio * 24)
    assert added["context"].shape == (150, 24 - count) and added["targets"].shape == (150, 1, count)
    assert torch.equal(added["context"], visible_patches(hidden))
    assert torch.equal(added["targets"][:, 0], visible_patches(~hidden))


def test_views_are_the_same_in_chunks_and_as_a_whole() -> None:
    transform, images = MAEViews(16, patch_size=4), torch.rand(150, 1, 16, 16)
    params = transform.draw(images, torch.Generator().manual_seed(3))
    whole = transform(images, params)
    chunks = apply_views(transform, images, torch.Generator().manual_seed(3))
    assert torch.equal(whole["mask"], chunks["mask"]) and torch.equal(whole["views"][0], chunks["views"][0])
    on_meta = torch.empty(2, 3, 16, 16, device="meta")
    assert transform(on_meta, transform.draw(on_meta, None))["mask"].shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 does not divide an image of 16x16"),
        ({"ratio": 0.0}, r"ratio must be in \(0, 1\), got 0.0"),
        ({"ratio": 1.0}, r"ratio must be in \(0, 1\), got 1.0"),
        ({"ratio": 0.01, "patch_size": 8}, "ratio=0.01 hides 0 of the 4 patches"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"flip_p": 2.0}, "flip_p"),
    ],
)
def test_bad_views_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAEViews(16, **options)
