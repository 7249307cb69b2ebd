"""A small convolutional encoder, and its mirrored decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.checks import check, check_at_least, check_layers
from datamodules.errors import ConfigError
from runtime.construction import Recorded
from sslmodules.networks.encoder import MapEncoder


class ConvEncoder(MapEncoder):
    """A small convolutional encoder; every layer but the first halves the size.

    Each entry of ``channels`` is a 3x3 convolution with batch norm and ReLU. Weights and activations are in
    channels-last order: the same results in half the time on a CPU. The default has 94,000 parameters and 128
    features, for quick runs on small images.

    Args:
        in_channels: channels of the image, plus one if the method also passes a mask to the encoder.
        channels: width of each layer; the last one is ``num_features``.
        stem_stride: stride of the first layer; 1 for images of 8 pixels; 2 takes a quarter of the time and
            suits 32 pixels or more.
    """

    def __init__(
        self, in_channels: int = 3, channels: Sequence[int] = (32, 64, 128), stem_stride: int = 1
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, stem_stride=stem_stride)
        check_layers(channels=channels)
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        for i, width in enumerate(channels):
            layers += [
                nn.Conv2d(in_channels, width, 3, stride=stem_stride if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_channels = width
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.num_features = in_channels

    def block_list(self) -> list[nn.Module]:
        return [layer for layer in self.layers if isinstance(layer, nn.ReLU)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the mean over positions."""
        return self.forward_features(x).mean((2, 3))


class ConvDecoder(Recorded, nn.Module):
    """Decodes a feature map to an image by repeated doubling.

    A 3x3 convolution at the map's size, then doubling steps with 3x3 convolutions, then a 3x3 convolution to
    pixels.

    Before the first convolution, a linear map over positions, shared by all channels, lets every position see
    the whole map (a cheap form of the channel-wise fully connected layer of Pathak et al. 2016), since a hole
    may be wider than the receptive field of the convolutions.

    Args:
        in_channels: width of the feature map (the encoder's ``num_features``).
        map_size: height and width of the feature map, in positions.
        image_size: height and width of the output, in pixels; reached by bilinear resizing if doubling
            overshoots.
        channels: width of each doubling stage.
        out_channels: channels of the output.
    """

    def __init__(
        self,
        in_channels: int = 128,
        map_size: int = 7,
        image_size: int = 28,
        channels: Sequence[int] = (32, 16),
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, map_size=map_size, out_channels=out_channels)
        check(image_size >= map_size, "image_size", f"at least map_size ({map_size})", image_size)
        self.map_size, self.image_size = map_size, image_size
        self.mix = nn.Linear(map_size**2, map_size**2)
        self.start = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        for width in channels:
            stages += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.to_pixels = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, H, W), unbounded."""
        if features.shape[2:] != (self.map_size, self.map_size):
            raise ConfigError(
                f"map_size is {self.map_size}, but the encoder gives a map of {tuple(features.shape[2:])}"
            )
        features = features + self.mix(features.flatten(2)).view_as(features)
        x = self.stages(self.start(features))
        if x.shape[-1] != self.image_size:
            x = F.interpolate(
                x, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False
            )
        return self.to_pixels(x)
