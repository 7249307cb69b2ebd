"""Features of the blocks inside an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.audio.mel import valid_frames
from datamodules.base import Padding
from datamodules.errors import ConfigError
from runtime.optional import offers
from sslmodules.base import SSLModule
from sslmodules.networks.classifier import masked_mean

LAST_FOUR = "last4"


def layer_encoders(
    module: SSLModule, asked: str, padding: Padding = None
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of ``input`` that return features of blocks: the mean output over positions or tokens.

    Tokens and frames that are padding are left out of the mean. In maps and patches they count, as in the
    features of those networks.

    Args:
        module: in eval mode.
        asked: ``all``, or comma-separated numbers of blocks from 1, and ``last4`` for the last four
            concatenated.
        padding: the data's.

    Returns:
        By name, ``block 1``, ``block 2``, ..., ``blocks 9-12``.

    Raises:
        ConfigError: there is no such block, or the encoder does not list its blocks.
    """
    encoder = module.feature_encoder
    if not offers(encoder, "block_list"):
        raise ConfigError(f"--layers needs blocks, but {type(encoder).__name__} does not list its blocks")
    blocks = encoder.block_list()
    n, known = len(blocks), [str(i + 1) for i in range(len(blocks))]
    words = [*known, LAST_FOUR] if asked == "all" else [word.strip() for word in asked.split(",")]
    for word in words:
        if word not in (*known, LAST_FOUR):
            raise ConfigError(f"--layers {word}: expected all, {LAST_FOUR}, or numbers from 1 to {n}")
    outputs = _Outputs(module, blocks, padding)
    first = max(0, n - 4)
    return {
        **{f"block {word}": outputs.of(int(word) - 1) for word in words if word != LAST_FOUR},
        **({f"blocks {first + 1}-{n}": outputs.of(*range(first, n))} if LAST_FOUR in words else {}),
    }


class _Outputs:
    """Outputs of all blocks for a batch; functions of the same batch share one forward pass."""

    def __init__(self, module: SSLModule, blocks: list[nn.Module], padding: Padding) -> None:
        self.module, self.blocks, self.padding = module, blocks, padding
        self.batch: Tensor | None = None
        self.means: list[Tensor] = []

    def of(self, *chosen: int) -> Callable[[Tensor], Tensor]:
        """A function of ``input`` (B, ...) that concatenates these blocks' features, (B, D)."""
        return lambda x: torch.cat([self._all(x)[i] for i in chosen], dim=1)

    def _all(self, x: Tensor) -> list[Tensor]:
        if self.batch is x:
            return self.means
        found: dict[int, Tensor] = {}

        def keep(place: int) -> Callable[..., None]:
            def hook(block: nn.Module, inputs: Any, output: Any) -> None:
                h = output[0] if isinstance(output, (tuple, list)) else output
                found[place] = self._mean(h.detach().float(), x)

            return hook

        handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(self.blocks)]
        try:
            self.module.embed(x)
        finally:
            for handle in handles:
                handle.remove()
        self.batch, self.means = x, [found[i] for i in range(len(self.blocks))]
        return self.means

    def _mean(self, h: Tensor, x: Tensor) -> Tensor:
        """(B, D), (B, N, D), (B, D, H, W) or (B, H, W, D) -> (B, D)."""
        if h.ndim == 4:
            return h.mean((1, 2) if self.module.feature_encoder.channels_last else (2, 3))
        if h.ndim == 2:
            return h
        if self.padding is None or x.shape[-1] != h.shape[1]:
            return h.mean(1)
        if self.padding == "frames":
            valid = torch.arange(h.shape[1], device=h.device) < valid_frames(x)[:, None]
        else:
            valid = x != self.padding
        return masked_mean(h, valid)
