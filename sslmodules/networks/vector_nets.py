"""Networks between images and vectors, for methods without feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.checks import check, check_at_least, check_layers
from sslmodules.networks.decoder import Decoder
from sslmodules.networks.encoder import Encoder


class MLPEncoder(Encoder):
    """Linear layers with ReLU on a flattened image; no batch norm.

    Args:
        in_features: number of values of an image, C * H * W.
        hidden: width of each layer; the last one is ``num_features``.
    """

    def __init__(self, in_features: int = 784, hidden: Sequence[int] = (400,)) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features)
        check_layers(hidden=hidden)
        self.in_features = in_features
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(inplace=True)]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.num_features = in_features

    def block_list(self) -> list[nn.Module]:
        return [layer for layer in self.layers if isinstance(layer, nn.ReLU)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.layers(x.flatten(1))


class MLPDecoder(Decoder):
    """Linear layers from a vector to the values of an image, with ReLU in between.

    Args:
        in_features: width of the vector.
        hidden: width of each hidden layer.
        image_size: height and width of the output, in pixels.
        out_channels: channels of the output.
    """

    def __init__(
        self,
        in_features: int = 20,
        hidden: Sequence[int] = (400,),
        image_size: int = 28,
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        check_at_least(
            1, in_features=in_features, image_size=image_size, out_channels=out_channels, hidden=hidden
        )
        self.in_features, self.shape = in_features, (out_channels, image_size, image_size)
        layers: list[nn.Module] = []
        width = in_features
        for after in hidden:
            layers += [nn.Linear(width, after), nn.ReLU(inplace=True)]
            width = after
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_channels * image_size**2))

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W), unbounded."""
        return self.layers(z).unflatten(1, self.shape)


class VectorDecoder(Decoder):
    """Decodes a vector to an image: a linear layer to a small map, then doubling steps with 3x3 convolutions.

    A last 3x3 convolution gives the pixels.

    Args:
        in_features: width of the vector.
        map_size: height and width of the first map, in positions.
        image_size: height and width of the output, in pixels; reached by bilinear resizing if doubling
            overshoots.
        channels: width of the first map, then of each doubling stage.
        out_channels: channels of the output.
    """

    def __init__(
        self,
        in_features: int = 128,
        map_size: int = 7,
        image_size: int = 28,
        channels: Sequence[int] = (128, 64, 32),
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, map_size=map_size, out_channels=out_channels)
        check(image_size >= map_size, "image_size", f"at least map_size ({map_size})", image_size)
        check_layers(channels=channels)
        self.in_features, self.map_size, self.image_size = in_features, map_size, image_size
        width = channels[0]
        self.to_map = nn.Linear(in_features, width * map_size**2)
        stages: list[nn.Module] = [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        for after in channels[1:]:
            stages += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(width, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            width = after
        self.stages = nn.Sequential(*stages)
        self.to_pixels = nn.Conv2d(width, out_channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W), unbounded."""
        side = self.map_size
        first = (
            self.to_map(z).view(len(z), side, side, -1).permute(0, 3, 1, 2)
        )  # (B, C, h, w), channels last as it is
        x = self.stages(first)
        if x.shape[-1] != self.image_size:
            x = F.interpolate(
                x, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False
            )
        return self.to_pixels(x)
