"""Draws random crops like torchvision's ``RandomResizedCrop``, for one image and for a batch.

Both functions take uniform numbers and give the same boxes for the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.transforms.base import _between

TRIES = 10
"""Number of boxes tried before the largest central one is used, as in torchvision."""

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest box in the center of an image with a width / height in ``ratio``."""
    rows, columns = height, width
    if width / height < ratio[0]:
        rows = round(width / ratio[0])
    elif width / height > ratio[1]:
        columns = round(height * ratio[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def random_box(
    numbers: Sequence[float],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """The first of ten random boxes that fits into the image; if none does, the largest central one.

    Args:
        numbers: 2 * ``TRIES`` + 2 uniform ones in [0, 1): areas, ratios, y, x.
        height, width: of the image, pixels.
        scale: range of the box's share of the image area.
        ratio: range of the box's width / height, drawn log-uniformly.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    y, x = numbers[2 * TRIES :]
    for area, aspect in zip(numbers[:TRIES], numbers[TRIES : 2 * TRIES], strict=True):
        pixels = (scale[0] + (scale[1] - scale[0]) * area) * (height * width)
        shape = math.exp(low + (high - low) * aspect)
        rows, columns = round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return int(y * (height - rows + 1)), int(x * (width - columns + 1)), rows, columns
    return central_box(height, width, ratio)


def random_boxes(
    numbers: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """``random_box`` for a batch of images of one size.

    Args:
        numbers: (B, 2 * ``TRIES`` + 2) uniform in [0, 1).
        height, width, scale, ratio: as in ``random_box``.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    area, aspect, place = numbers.split((TRIES, TRIES, 2), 1)
    y, x = place.unbind(1)
    area = _between(area, *scale) * (height * width)
    aspect = _between(aspect, math.log(ratio[0]), math.log(ratio[1])).exp()
    columns = (area * aspect).sqrt().round().long()  # (B, tries)
    rows = (area / aspect).sqrt().round().long()
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    first = fits.int().argmax(1, keepdim=True)  # argmax returns the first maximum
    fits, rows, columns = (tries.gather(1, first).squeeze(1) for tries in (fits, rows, columns))
    # the minimum guards against rounding up
    top = (y * (height - rows + 1)).long().minimum(height - rows)
    left = (x * (width - columns + 1)).long().minimum(width - columns)
    drawn = zip((top, left, rows, columns), central_box(height, width, ratio), strict=True)
    return torch.stack([torch.where(fits, value, central) for value, central in drawn], 1)
