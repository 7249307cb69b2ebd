"""Noise for a whole batch of images: key ``corrupted`` (B, C, H, W).

The noise is made in pixels of [0, 1], where black and white are 0 and 1 and a standard deviation has a
meaning, and the result stays in [0, 1] as a file would store it; ``SSLDataModule`` standardizes it like
``input``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.checks import check_positive, check_within
from datamodules.transforms.base import BatchTransform


class GaussianNoise(BatchTransform):
    """Add independent normal noise to every value, then clamp to [0, 1].

    Args:
        std: standard deviation of the noise, in pixels of [0, 1], > 0.

    Raises:
        ValueError: ``std`` is not positive.
    """

    dimensions = 4

    def __init__(self, std: float = 0.3) -> None:
        super().__init__()
        check_positive(std=std)
        self.std = std

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """{"noise": (B, C, H, W) standard normal}."""
        return {
            "noise": torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        }

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"corrupted": (B, C, H, W)}."""
        return {"corrupted": torch.add(images, params["noise"], alpha=self.std).clamp_(0, 1)}


class _Replaced(BatchTransform):
    """Base class of noise that replaces a share of the values.

    Args:
        ratio: probability that a value is replaced, in (0, 1).

    Raises:
        ValueError: ``ratio`` is not in (0, 1).
    """

    dimensions = 4

    def __init__(self, ratio: float = 0.3) -> None:
        super().__init__()
        check_within(0, 1, "()", ratio=ratio)
        self.ratio = ratio

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """{"uniform": (B, C, H, W) in [0, 1)}: a value is replaced where it is below ``ratio``."""
        return {
            "uniform": torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        }


class SaltAndPepper(_Replaced):
    """Set a share of the values to black (0) or white (1), each with probability one half.

    Args:
        ratio: probability that a value is replaced, in (0, 1).

    Raises:
        ValueError: ``ratio`` is not in (0, 1).
    """

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"corrupted": (B, C, H, W)}."""
        uniform = params["uniform"]
        salt = (uniform < self.ratio / 2).to(images.dtype)
        return {"corrupted": torch.where(uniform < self.ratio, salt, images)}


class MaskingNoise(_Replaced):
    """Set a share of the values to black (0), as if they were missing (Vincent et al. 2008).

    Unlike a mask, it does not reveal the damaged positions: black may also be content.

    Args:
        ratio: probability that a value is replaced, in (0, 1).

    Raises:
        ValueError: ``ratio`` is not in (0, 1).
    """

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"corrupted": (B, C, H, W)}."""
        return {"corrupted": images.masked_fill(params["uniform"] < self.ratio, 0.0)}
