"""Photographs to transform, and comparisons, for the tests of views."""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int, width: int) -> Tensor:
    """Pieces of scikit-learn's two photographs, shrunk fourfold: (count, 3, height, width) in [0, 1]."""
    generator = make_generator(7)
    pieces = []
    for index in range(count):
        photo = torch.from_numpy(load_sample_image(("china.jpg", "flower.jpg")[index % 2]).copy())[
            ::4, ::4
        ]  # 107x160
        top = int(torch.randint(photo.shape[0] - height + 1, (), generator=generator))
        left = int(torch.randint(photo.shape[1] - width + 1, (), generator=generator))
        pieces.append(photo[top : top + height, left : left + width].permute(2, 0, 1) / 255)
    return torch.stack(pieces)


def each(operation, images: Tensor, *params: Tensor) -> Tensor:
    """One image after another through torchvision's operation, with its own parameters."""
    return torch.stack([operation(image, *(p[i].tolist() for p in params)) for i, image in enumerate(images)])


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def ks_distance(first: Tensor, second: Tensor) -> float:
    """Largest difference of the two empirical distribution functions."""
    points = torch.cat([first, second]).double().sort().values
    cdfs = [
        torch.searchsorted(s.double().sort().values, points, right=True) / len(s) for s in (first, second)
    ]
    return (cdfs[0] - cdfs[1]).abs().max().item()


def ks_limit(first: Tensor, second: Tensor) -> float:
    """A larger distance than this has probability 0.001 when both samples come from one distribution."""
    return 1.95 * math.sqrt(1 / len(first) + 1 / len(second))
