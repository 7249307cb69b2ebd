"""DCGAN's generator and discriminator for small square images (https://arxiv.org/abs/1511.06434)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.checks import check, check_at_least, check_layers, check_one_of, check_positive
from datamodules.errors import ConfigError
from sslmodules.networks.decoder import Generator
from sslmodules.networks.encoder import MapEncoder

WEIGHT_STD = 0.02


def initialize(net: nn.Module) -> None:
    """The paper's initialization: weights from N(0, 0.02), scales of norms from N(1, 0.02), zero biases."""
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, WEIGHT_STD)
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(layer.weight, 1.0, WEIGHT_STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _smallest_map(image_size: int, channels: Sequence[int]) -> int:
    """Side of the smallest map: ``image_size`` halved once per entry of ``channels``, rounding down."""
    check_layers(channels=channels)
    smallest = image_size >> len(channels)
    expected = f"at least {2 ** len(channels)} for {len(channels)} channels"
    check(smallest >= 1, "image_size", expected, image_size)
    return smallest


class DCGANGenerator(Generator):
    """DCGAN's generator: a linear layer to a small map, doubled by transposed 4x4 convolutions.

    Radford et al. 2015. Batch norm and ReLU after every layer but the last; tanh at the end, so that a pixel
    can be exactly black or white. The output is in standardized units: tanh's -1 and 1 map to the
    standardized values of pixels 0 and 1.

    Args:
        latent_dim: width of the noise z.
        image_size: height and width in pixels, a multiple of 2 to the number of ``channels``: 8, 28 (two),
            32, 64 ...
        channels: width of the first map and of each doubled one; the last doubling produces the image.
        out_channels: channels of the image.
        mean, std: the data's standardization, one value per channel or one for all; with 0.5 the output is
            tanh itself.

    Raises:
        ValueError: an invalid argument.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        latent_dim: int = 100,
        image_size: int = 32,
        channels: Sequence[int] = (256, 128, 64),
        out_channels: int = 3,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        check_at_least(1, latent_dim=latent_dim, out_channels=out_channels)
        smallest = _smallest_map(image_size, channels)
        expected = f"a multiple of {2 ** len(channels)} (each of {len(channels)} channels doubles the map)"
        check(smallest << len(channels) == image_size, "image_size", expected, image_size)
        for name, values in (("mean", mean), ("std", std)):
            expected = f"one value or one for each of {out_channels} channels"
            check(len(values) in (1, out_channels), name, expected, values)
        check_positive(std=std)
        self.latent_dim, self.map_shape = latent_dim, (channels[0], smallest, smallest)
        self.start = nn.Linear(latent_dim, channels[0] * smallest**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for width, after in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(width, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(channels[-1], out_channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialize(self)
        self.to(memory_format=torch.channels_last)
        means, stds = (
            torch.tensor(v, dtype=torch.float32).expand(out_channels).view(-1, 1, 1) for v in (mean, std)
        )
        self.register_buffer("low", (0 - means) / stds, persistent=False)  # (C, 1, 1), a black pixel
        self.register_buffer("high", (1 - means) / stds, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, C, H, W)."""
        x = self.start(z).view(-1, *self.map_shape).contiguous(memory_format=torch.channels_last)
        return self.low + (self.layers(x) + 1) * (0.5 * (self.high - self.low))

    def value_range(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class DCGANDiscriminator(MapEncoder):
    """DCGAN's discriminator: 4x4 convolutions of stride 2 with leaky ReLU (0.2), the last map flattened.

    The first layer has no norm. The method's head, a linear layer on the flattened map, is the paper's last
    convolution.

    Args:
        in_channels: channels of the image.
        image_size: height and width in pixels.
        channels: width of each layer; ``num_features`` is the last one times the positions of the last map.
        norm: ``batch`` as in the paper, or ``layer`` = over channels and positions of each image separately,
            required by WGAN-GP.

    Raises:
        ValueError: an invalid argument.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = (64, 128, 256),
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels)
        self.in_channels = in_channels
        smallest = _smallest_map(image_size, channels)
        check_one_of(("batch", "layer"), norm=norm)
        layers: list[nn.Module] = []
        for i, width in enumerate(channels):
            layers.append(nn.Conv2d(in_channels, width, 4, 2, 1, bias=i == 0))
            if i:
                layers.append(nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(1, width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.image_size, self.num_features = image_size, in_channels * smallest**2
        initialize(self)
        self.to(memory_format=torch.channels_last)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ConfigError(f"image_size is {self.image_size}, but the images are {tuple(x.shape[2:])}")
        return self.layers(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D * h * w)."""
        return self.forward_features(x).flatten(1)
