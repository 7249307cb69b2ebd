"""Masks made of blocks of patches, drawn on the device without waiting for it: iBOT's and I-JEPA's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.checks import check, check_at_least, check_within
from datamodules.errors import ConfigError
from datamodules.transforms.base import _between
from datamodules.transforms.views import MultiCrop, View, Views

BLOCK_TRIES = 10  # iBOT: blocks drawn for each view


def grid_of(size: int, patch_size: int) -> int:
    """Patches along a side of ``size`` pixels; ConfigError if they do not tile it."""
    check_at_least(1, patch_size=patch_size)
    check(size % patch_size == 0, "patch_size", f"a divisor of the view's size ({size})", patch_size)
    return size // patch_size


def draw_blocks(area: Tensor, aspect: Tensor, place: Tensor, side: int) -> Tensor:
    """Rectangles of patches.

    Args:
        area: (B,) requested number of patches.
        aspect: (B,) height / width.
        place: (B, 2) uniform in [0, 1), of the top left corner among those where the block fits.
        side: rows and columns of the grid.

    Returns:
        (B, side, side) bool, True = inside; each has at least one patch.
    """
    spans, patch = [], torch.arange(side, device=area.device)
    for axis, length in enumerate(((area * aspect).sqrt(), (area / aspect).sqrt())):
        length = length.round().long().clamp(1, side)
        # the minimum guards against rounding up to the next patch
        start = (place[:, axis] * (side - length + 1)).long().minimum(side - length)
        spans.append((patch >= start[:, None]) & (patch < (start + length)[:, None]))  # (B, side)
    return spans[0][:, :, None] & spans[1][:, None, :]


class MaskedMultiCrop(MultiCrop):
    """Multi-crop with blocks of patches hidden in the two global views (iBOT).

    Zhou et al. 2022, https://arxiv.org/abs/2111.07832. A global view is masked with probability ``mask_p``;
    the largest share of its patches that may be hidden is then drawn from ``mask_ratio``. Each of ten blocks
    has an area between a ninth of the view and what is still allowed, and is left out if it does not fit.

    Args:
        global_view1, global_view2: the large crops, first in the list; both of the same size.
        local_view: recipe of the small crops, which are not masked.
        num_local: number of local views, >= 0.
        patch_size: side of a patch in pixels, same as the encoder's; must divide the global views' size.
        mask_ratio: range of the largest share of hidden patches, in (0, 1).
        mask_p: probability that a view is masked at all.
        mask_aspect: range of a block's height / width, drawn log-uniformly.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        global_view1: View,
        global_view2: View,
        local_view: View,
        num_local: int,
        patch_size: int = 16,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_p: float = 0.5,
        mask_aspect: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        super().__init__(global_view1, global_view2, local_view, num_local)
        sizes = (global_view1.size, global_view2.size)
        if sizes[0] != sizes[1]:
            raise ConfigError(f"global_view1 and global_view2 must have the same size, got {sizes}")
        self.side = grid_of(sizes[0], patch_size)
        check(0 < mask_ratio[0] <= mask_ratio[1] < 1, "mask_ratio", "0 < low <= high < 1", mask_ratio)
        check_within(0, 1, mask_p=mask_p)
        check(0 < mask_aspect[0] <= mask_aspect[1], "mask_aspect", "0 < low <= high", mask_aspect)
        self.mask_ratio, self.mask_p, self.mask_aspect = mask_ratio, mask_p, mask_aspect

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The parameters of the views, and {"mask": (B, 2, N) bool, True = hidden}."""
        n = 2 * len(images)
        uniform = torch.rand(n, 2 + 4 * BLOCK_TRIES, generator=generator, device=images.device)
        ratio = torch.where(uniform[:, 0] < self.mask_p, _between(uniform[:, 1], *self.mask_ratio), 0.0)
        allowed = (ratio * self.side**2).long()  # (2 B,) patches
        hidden = torch.zeros(n, self.side, self.side, dtype=torch.bool, device=images.device)
        low, high = (math.log(value) for value in self.mask_aspect)
        for area, aspect, *place in uniform[:, 2:].unflatten(1, (BLOCK_TRIES, 4)).permute(1, 2, 0):
            left = allowed - hidden.sum((1, 2))
            smallest = torch.full_like(ratio, (self.side // 3) ** 2).minimum(left)
            wanted = smallest + area * (left - smallest)
            block = draw_blocks(wanted, _between(aspect, low, high).exp(), torch.stack(place, 1), self.side)
            joined = hidden | block
            fits = joined.sum((1, 2)) <= allowed
            hidden = torch.where(fits[:, None, None], joined, hidden)
        return {**super().draw(images, generator), "mask": hidden.flatten(1).unflatten(0, (-1, 2))}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """{"views": [(B, C, size, size), ...] in [0, 1], "mask": (B, 2, N) of the global views}."""
        views = super().forward(images, {name: value for name, value in params.items() if name != "mask"})
        return {**views, "mask": params["mask"]}


class IJEPAViews(Views):
    """I-JEPA (Assran et al. 2023, https://arxiv.org/abs/2301.08243): one view, target blocks and a context.

    Crop (.3, 1) bicubic; no flip, no color. Each target block has its own size and place; the context is one
    large block without the patches of all targets.

    The options alone determine ``target_patches``, the number of patches of a target, and
    ``context_patches``, so all batches have the same shape and nothing waits for the device. The patches are
    drawn at random from their block. (The official code cuts all masks of a batch to the smallest one,
    starting from the first row.) If targets leave too few patches in the context block, others outside of all
    targets are added.

    Args:
        size: side of the view, pixels.
        patch_size: side of a patch in pixels, same as the encoder's; must divide ``size``.
        num_targets: number of target blocks.
        target_scale: range of a target's share of the patches; its lower end sets ``target_patches``.
        target_aspect: range of a target's height / width, drawn log-uniformly.
        context_scale: range of the square context block's share, before target patches are removed.
        context_keep: ``context_patches`` as a share of all patches.
        crop_scale: range of the crop's share of the image area; None = the whole image.

    Raises:
        ValueError: an option is out of range, or targets leave too few patches.
    """

    def __init__(
        self,
        size: int,
        patch_size: int = 16,
        num_targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        context_keep: float = 0.25,
        crop_scale: tuple[float, float] | None = (0.3, 1.0),
    ) -> None:
        super().__init__(View(size, crop_scale=crop_scale, interpolation="bicubic", flip_p=0.0))
        self.side = grid_of(size, patch_size)
        check_at_least(1, num_targets=num_targets)
        for name, scale in {"target_scale": target_scale, "context_scale": context_scale}.items():
            check(0 < scale[0] <= scale[1] <= 1, name, "0 < low <= high <= 1", scale)
        check(0 < target_aspect[0] <= target_aspect[1], "target_aspect", "0 < low <= high", target_aspect)
        patches = self.side**2
        self.target_patches = max(1, int(target_scale[0] * patches))
        self.context_patches = round(context_keep * patches)
        free = patches - num_targets * self.target_patches
        expected = f"a share that gives 1 to {free} of {patches} patches (the others may be targets)"
        check(1 <= self.context_patches <= free, "context_keep", expected, context_keep)
        self.num_targets, self.target_scale, self.target_aspect = num_targets, target_scale, target_aspect
        self.context_scale = context_scale

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The view's parameters, {"context": (B, K), "targets": (B, M, L)} int64: patches, row by row."""
        batch, m, patches = len(images), self.num_targets, self.side**2
        uniform = torch.rand(batch * m, 4, generator=generator, device=images.device)
        low, high = (math.log(value) for value in self.target_aspect)
        area = _between(uniform[:, 0], *self.target_scale) * patches
        blocks = draw_blocks(area, _between(uniform[:, 1], low, high).exp(), uniform[:, 2:], self.side)
        blocks = blocks.view(batch, m, patches)
        order = torch.rand(batch, m + 1, patches, generator=generator, device=images.device)
        targets = (blocks + order[:, :m]).topk(self.target_patches, dim=2).indices  # those inside come first
        taken = torch.zeros_like(blocks).scatter(2, targets, True).any(1)  # (B, N)
        uniform = torch.rand(batch, 3, generator=generator, device=images.device)
        area = _between(uniform[:, 0], *self.context_scale) * patches
        inside = draw_blocks(area, torch.ones_like(area), uniform[:, 1:], self.side).flatten(1)  # (B, N)
        free = ~blocks.any(1)
        rank = (inside & free).int() + free.int() - 4 * taken.int()  # a target is never in the context
        context = (rank + order[:, m]).topk(self.context_patches, dim=1).indices
        return {**super().draw(images, generator), "context": context, "targets": targets}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """{"views": [(B, C, size, size)] in [0, 1], "context": (B, K), "targets": (B, M, L)}."""
        masks: dict[str, Tensor | list[Tensor]] = {name: params[name] for name in ("context", "targets")}
        views = super().forward(images, {name: v for name, v in params.items() if name not in masks})
        return {**views, **masks}
