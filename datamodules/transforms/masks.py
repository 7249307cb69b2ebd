"""Masks for a whole batch: key ``mask``, bool (B, 1, H, W), True = hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.checks import check, check_at_least, check_within
from datamodules.errors import ConfigError
from datamodules.transforms.base import BatchTransform
from datamodules.transforms.views import View, Views


class CenterHole(BatchTransform):
    """The same square hole in every image: rows and columns start .. stop - 1 are hidden.

    The defaults hide rows and columns 10 to 19 of a 28x28 image.

    Args:
        start: first hidden row and column, >= 0.
        stop: first row and column after the hole, > start.

    Raises:
        ValueError: start and stop enclose no pixel, or (when applied) the hole does not fit into the image.
    """

    dimensions = 4

    def __init__(self, start: int = 10, stop: int = 20) -> None:
        super().__init__()
        check(0 <= start < stop, "start", f"at least 0 and below stop ({stop})", start)
        self.start = start
        self.stop = stop

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Nothing is random here: returns no parameters."""
        return {}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"mask": (B, 1, H, W)}."""
        batch, _, height, width = images.shape
        if self.stop > min(height, width):
            raise ConfigError(
                f"the hole from start={self.start} to stop={self.stop} does not fit into an image of "
                f"{height}x{width}"
            )
        mask = torch.zeros(batch, 1, height, width, dtype=torch.bool, device=images.device)
        mask[:, :, self.start : self.stop, self.start : self.stop] = True
        return {"mask": mask}


class RandomBlock(BatchTransform):
    """Hide one rectangle per image, with random position and size.

    Height and width are drawn independently and uniformly as fractions of the image's height and width; the
    position is uniform among those where the block fits.

    Args:
        min_fraction: smallest side of the block as a fraction of the image's side, > 0.
        max_fraction: largest one, < 1.

    Raises:
        ValueError: not 0 < min_fraction <= max_fraction < 1.
    """

    dimensions = 4

    def __init__(self, min_fraction: float = 0.25, max_fraction: float = 0.5) -> None:
        super().__init__()
        expected = f"above 0 and at most max_fraction ({max_fraction})"
        check(0 < min_fraction <= max_fraction, "min_fraction", expected, min_fraction)
        check_within(0, 1, "()", max_fraction=max_fraction)
        self.min_fraction = min_fraction
        self.max_fraction = max_fraction

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """{"box": (B, 4) int64: top, left, height, width in pixels}; a block has at least one pixel."""
        uniform = torch.rand(len(images), 4, generator=generator, device=images.device)
        fraction = self.min_fraction + (self.max_fraction - self.min_fraction) * uniform[:, :2]
        block, start = [], []
        for axis, side in enumerate(images.shape[2:]):
            length = (fraction[:, axis] * side).round().long().clamp(1, side)
            block.append(length)
            # The minimum guards against rounding up to the next pixel.
            start.append((uniform[:, 2 + axis] * (side - length + 1)).long().minimum(side - length))
        return {"box": torch.stack(start + block, 1)}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"mask": (B, 1, H, W)}."""
        top, left, height, width = params["box"][:, :, None].unbind(1)  # each (B, 1)
        row = torch.arange(images.shape[2], device=images.device)
        column = torch.arange(images.shape[3], device=images.device)
        rows = (row >= top) & (row < top + height)  # (B, H)
        columns = (column >= left) & (column < left + width)  # (B, W)
        return {"mask": rows[:, None, :, None] & columns[:, None, None, :]}


class RandomPatches(BatchTransform):
    """Hide a fixed number of random patches per image (He et al. 2022, https://arxiv.org/abs/2111.06377).
    Args:
        patch_size: side of a patch, pixels; must divide the image's height and width.
        ratio: share of the N patches to hide, in (0, 1); exactly round(ratio * N) are hidden.

    Raises:
        ValueError: an option is out of range, or (when drawn) the patches do not tile the image, or the ratio
            hides none or all of its patches.
    """

    dimensions = 4

    def __init__(self, patch_size: int, ratio: float) -> None:
        super().__init__()
        check_at_least(1, patch_size=patch_size)
        check_within(0, 1, "()", ratio=ratio)
        self.patch_size = patch_size
        self.ratio = ratio

    def num_hidden(self, num_patches: int) -> int:
        return round(self.ratio * num_patches)

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """{"hidden": (B, N) bool}, patches row by row."""
        batch, _, height, width = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"patch_size={self.patch_size} does not divide an image of {height}x{width}")
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        num_hidden = self.num_hidden(num_patches)
        if not 0 < num_hidden < num_patches:
            raise ConfigError(
                f"ratio={self.ratio} hides {num_hidden} of the {num_patches} patches of an image"
            )
        order = torch.rand(batch, num_patches, generator=generator, device=images.device).argsort(1)
        return {
            "hidden": order < num_hidden
        }  # a random permutation has num_hidden places with a value below it

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"mask": (B, 1, H, W), "context": (B, K), "targets": (B, 1, N - K)}.

        The indices are those of the visible and of the hidden patches, in ascending order. Their shape gives
        the number of visible patches; to get it from the mask, a method would have to wait for the device.
        """
        batch, _, height, width = images.shape
        hidden = params["hidden"]
        order = hidden.int().argsort(dim=1, stable=True)
        context, targets = order.tensor_split([order.shape[1] - self.num_hidden(order.shape[1])], dim=1)
        patches = hidden.view(batch, 1, height // self.patch_size, width // self.patch_size)
        mask = patches.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        return {"mask": mask, "context": context, "targets": targets[:, None]}


class MAEViews(Views):
    """One view and its mask, as in MAE (He et al. 2022, https://arxiv.org/abs/2111.06377; main_pretrain.py).

    Crop (.2, 1) bicubic and flip only; the same for small images. The mask is that of ``RandomPatches``.

    Args:
        size: side of the view, pixels.
        patch_size: side of a patch in pixels, same as the encoder's; must divide ``size``.
        ratio: share of the N patches to hide, in (0, 1); exactly round(ratio * N) are hidden.
        crop_scale: range of the crop's share of the image area; None = the whole image.
        flip_p: probability of a horizontal flip; use 0 for digits and letters.

    Raises:
        ValueError: an option is out of range, or the ratio hides none or all of the patches.
    """

    def __init__(
        self,
        size: int,
        patch_size: int = 16,
        ratio: float = 0.75,
        crop_scale: tuple[float, float] | None = (0.2, 1.0),
        flip_p: float = 0.5,
    ) -> None:
        super().__init__(View(size, crop_scale=crop_scale, interpolation="bicubic", flip_p=flip_p))
        self.patches = RandomPatches(patch_size, ratio)
        self.size = size
        self.patches.draw(
            torch.empty(0, 1, size, size), None
        )  # rejects invalid settings before there is any data

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The parameters of the view, and {"hidden": (B, N) bool}."""
        like = images[:, :1, :1, :1].expand(
            -1, -1, self.size, self.size
        )  # the mask covers the view, not the image
        return {**super().draw(images, generator), **self.patches.draw(like, generator)}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"views": [(B, C, size, size)]} in [0, 1], and ``RandomPatches``' keys."""
        views = super().forward(images, {name: value for name, value in params.items() if name != "hidden"})
        return {**views, **self.patches(images.new_empty(len(images), 1, self.size, self.size), params)}
