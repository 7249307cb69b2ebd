"""Masks made of blocks: places, counts, and a test for each mistake found elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.transforms.base import apply_views
from datamodules.transforms.block_masks import IJEPAViews, MaskedMultiCrop, draw_blocks
from datamodules.transforms.views import View


def images(n: int = 200, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def multi_crop(**options: Any) -> MaskedMultiCrop:
    view = View(32, crop_scale=None)
    return MaskedMultiCrop(view, view, View(16), 1, **{"patch_size": 4, **options})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_blocks_by_hand() -> None:
    """8 patches at aspect 2 are 4 rows and 2 columns; in a grid of 4 rows only their column can differ."""
    place = torch.tensor([[0.0, 0.0], [0.999, 0.999]])
    blocks = draw_blocks(torch.full((2,), 8.0), torch.full((2,), 2.0), place, 4)
    left = torch.tensor([[1, 1, 0, 0]] * 4).bool()
    assert torch.equal(blocks, torch.stack([left, left.flip(1)]))


def test_every_place_and_no_fewer_than_one_patch() -> None:
    place = torch.rand(4000, 2, generator=seeded())
    blocks = draw_blocks(torch.full((4000,), 0.1), torch.ones(4000), place, 5)
    assert (blocks.sum((1, 2)) == 1).all()
    share = blocks.float().mean(0) * 25
    assert share.min() > 0.7 and share.max() < 1.3


def test_global_views_have_masks_of_no_more_patches_than_drawn() -> None:
    batch = apply_views(multi_crop(mask_ratio=(0.1, 0.5), mask_p=1.0), images(), seeded())
    mask, views = batch["mask"], batch["views"]
    assert isinstance(mask, Tensor) and mask.shape == (200, 2, 64) and mask.dtype == torch.bool
    assert [view.shape[-1] for view in views] == [32, 32, 16]
    share = mask.float().mean(2)
    assert share.max() <= 0.5 and share.min() > 0 and 0.2 < share.mean() < 0.4


def test_hidden_patches_are_blocks() -> None:
    """Most of them have a hidden neighbor in their row and in their column; of as many single ones, few."""
    mask = multi_crop(mask_ratio=(0.3, 0.3), mask_p=1.0).draw(images(), seeded())["mask"].view(-1, 8, 8)
    for grid in (mask, mask.transpose(1, 2)):
        beside = torch.nn.functional.pad(grid, (1, 1))
        neighbor = beside[..., 2:] | beside[..., :-2]
        assert (grid & neighbor).sum() > 0.8 * grid.sum()  # 0.5 at random


def test_images_and_both_views_have_masks_of_their_own() -> None:
    """Known mistakes: one mask for the batch; one for both views."""
    mask = multi_crop(mask_p=1.0).draw(images(), seeded())["mask"]
    assert len(mask.flatten(1).unique(dim=0)) > 190
    assert (mask[:, 0] != mask[:, 1]).any(1).float().mean() > 0.95


def test_a_share_of_views_is_not_masked() -> None:
    mask = multi_crop(mask_p=0.25).draw(images(1000), seeded())["mask"]
    assert mask.any(2).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert not multi_crop(mask_p=0.0).draw(images(), seeded())["mask"].any()


def ijepa(**options: Any) -> IJEPAViews:
    return IJEPAViews(32, **{"patch_size": 4, **options})


def test_counts_follow_from_the_options_alone() -> None:
    """So that two processes, and every batch, have tensors of one shape."""
    params = ijepa().draw(images(), seeded())
    assert params["context"].shape == (200, 16) and params["targets"].shape == (200, 4, 9)
    again = ijepa().draw(images(), seeded(1))
    assert again["targets"].shape == (200, 4, 9) and not torch.equal(again["targets"], params["targets"])
    for name in ("context", "targets"):
        rows = params[name].flatten(0, -2)
        assert (rows.sort(1).values.diff(dim=1) > 0).all(), "a patch twice in one block"


def test_the_context_has_no_patch_of_a_target() -> None:
    """Known mistake: a context that sees what it has to predict."""
    # with the second, nearly all patches outside of targets are needed, some of them inside of a block
    for scale, keep in (((0.15, 0.2), 0.25), ((0.1, 0.25), 0.625)):
        params = ijepa(target_scale=scale, context_keep=keep).draw(images(), seeded())
        seen = torch.zeros(200, 64, dtype=torch.bool).scatter(1, params["context"], True)
        assert not seen.gather(1, params["targets"].flatten(1)).any()


def test_targets_are_blocks() -> None:
    """At most 12 of 64 patches, side by side: within a rectangle of the largest aspect."""
    targets = ijepa().draw(images(), seeded())["targets"]
    for axis in (targets // 8, targets % 8):
        assert (axis.max(2).values - axis.min(2).values).max() <= 4


def test_no_row_is_favored() -> None:
    """Known mistake: cutting a batch to its smallest mask from the first row on leaves out the last rows."""
    views = ijepa(context_scale=(1.0, 1.0))
    params = views.draw(images(2000), seeded())
    rows = torch.bincount(params["context"].flatten() // 8, minlength=8).float()
    top, bottom = rows[:4].sum(), rows[4:].sum()
    assert (top / bottom).item() == pytest.approx(1, abs=0.05)
    rows = torch.bincount(params["targets"].flatten() // 8, minlength=8).float()
    assert (rows[:4].sum() / rows[4:].sum()).item() == pytest.approx(1, abs=0.05)


def test_sizes_and_shapes_are_drawn_apart() -> None:
    """Known mistake: one random number for scale and aspect, so that large blocks are always wide."""
    views = ijepa(target_scale=(0.1, 0.5), num_targets=1, context_keep=0.1)
    targets = views.draw(images(2000), seeded())["targets"]
    assert targets.shape[2] == 6
    height = (targets // 8).amax((1, 2)) - (targets // 8).amin((1, 2))
    width = (targets % 8).amax((1, 2)) - (targets % 8).amin((1, 2))
    size, shape = (height * width).float(), (height - width).float()
    assert torch.corrcoef(torch.stack([size, shape]))[0, 1].abs() < 0.15


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_size must be a divisor of the view's size \(32\), got 5"):
        ijepa(patch_size=5)
    with pytest.raises(ValueError, match=r"patch_size must be a divisor of the view's size \(32\), got 5"):
        multi_crop(patch_size=5)
    with pytest.raises(ValueError, match="mask_ratio must be 0 < low <= high < 1, got"):
        multi_crop(mask_ratio=(0.5, 0.1))
    with pytest.raises(ValueError, match="mask_aspect must be 0 < low <= high, got"):
        multi_crop(mask_aspect=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"mask_p must be .* 1.5"):
        multi_crop(mask_p=1.5)
    with pytest.raises(ValueError, match=r"must have the same size, got \(32, 16\)"):
        MaskedMultiCrop(View(32), View(16), View(16), 1, 4)
    with pytest.raises(ValueError, match="context_keep must be a share that gives 1 to 28 of 64 patches"):
        ijepa(context_keep=0.6)
    with pytest.raises(ValueError, match="target_scale must be 0 < low <= high <= 1"):
        ijepa(target_scale=(0.3, 0.2))
