"""The base of decoders and generators: networks from a vector to a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from runtime.construction import Recorded


class Decoder(Recorded, nn.Module, ABC):
    """A network from a vector to an image.

    Attributes:
        in_features: D, the width of the vector.
    """

    in_features: int

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W), unbounded."""


class Generator(Recorded, nn.Module, ABC):
    """A network from noise to a sample.

    Attributes:
        latent_dim: L, the width of the noise.
    """

    latent_dim: int

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """(B, L) standard normal noise -> samples (B, ...) in units of ``input``."""

    def value_range(self) -> tuple[Tensor, Tensor] | None:
        """The lowest and highest possible output value; None if unbounded."""
        return None
