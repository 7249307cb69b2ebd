"""Causal networks over frames (B, T, D): their output at frame t depends on frames 0 to t only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.checks import check, check_at_least
from sslmodules.networks.encoder import FrameEncoder
from sslmodules.networks.vit import sincos_positions


class GRUFrames(FrameEncoder):
    """Stacked GRUs with residual connections from the second layer on (an option in Chung et al. 2019).
    Args:
        in_features: D of a frame: the number of mel bands.
        width: width of the states, which is ``num_features``.
        depth: layers.

    Raises:
        ValueError: an option is below 1.
    """

    def __init__(self, in_features: int = 40, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, width=width, depth=depth)
        self.in_features, self.num_features = in_features, width
        self.layers = nn.ModuleList(
            nn.GRU(in_features if i == 0 else width, width, batch_first=True) for i in range(depth)
        )

    def block_list(self) -> list[nn.Module]:
        return list(self.layers)

    def states(self, x: Tensor) -> Tensor:
        """(B, T, D) -> states of the last layer (B, T, width)."""
        for i, layer in enumerate(self.layers):
            states, _ = layer(x)
            x = states if i == 0 else x + states
        return x


class TransformerFrames(FrameEncoder):
    """A causal pre-norm Transformer with sine-cosine positions.

    Args:
        in_features: D of a frame: the number of mel bands.
        width: width of the states, which is ``num_features``; divisible by 4 and by ``heads``.
        depth: layers.
        heads: number of attention heads.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, in_features: int = 40, width: int = 512, depth: int = 4, heads: int = 8) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, width=width, depth=depth, heads=heads)
        check(width % 4 == 0 and width % heads == 0, "width", f"divisible by 4 and by heads ({heads})", width)
        self.in_features, self.num_features = in_features, width
        self.project = nn.Linear(in_features, width)
        layers = [
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        ]
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(width)

    def block_list(self) -> list[nn.Module]:
        return list(self.layers)

    def states(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, width)."""
        x = self.project(x)
        steps = x.shape[1]
        x = x + sincos_positions((1, steps), x.shape[2], device=x.device).to(x.dtype)
        future = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)  # True = masked
        for layer in self.layers:
            x = layer(x, src_mask=future)
        return self.norm(x)
