"""I-JEPA's masks made of blocks of patches, drawn on the device without waiting for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.checks import check, check_at_least
from datamodules.transforms.base import _between
from datamodules.transforms.views import View, Views


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
