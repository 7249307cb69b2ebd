"""A tiny GAN and its data, for the tests of GAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslmodules.gan import GAN
from sslmodules.networks import DCGANDiscriminator, DCGANGenerator

LOSSES = ("non_saturating", "hinge", "wgan_gp")
RANGE = {"mean": (0.3064,), "std": (0.3767,)}  # of Digits


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, betas=(0.5, 0.999))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def gan(norm: Any = "layer", **options: Any) -> GAN:
    """Tiny, and the same in each call. Without batch norm a sample does not depend on the others."""
    torch.manual_seed(0)
    generator = DCGANGenerator(4, 8, (8, 4), 1, **RANGE)
    if norm == "layer":
        generator.layers = nn.Sequential(*(m for m in generator.layers if not isinstance(m, nn.BatchNorm2d)))
    module = GAN(DCGANDiscriminator(1, 8, (4, 8), norm), generator, **{"optimizer": adam, **options})
    with torch.no_grad():
        for p in module.parameters():  # four layers of so few channels would give next to no gradient at 0.02
            p.mul_(5 if p.ndim > 1 else 1)
    return module


def images(n: int = 8) -> Tensor:
    return randn(n, 1, 8, 8).float().clamp(-0.8, 1.8)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}
