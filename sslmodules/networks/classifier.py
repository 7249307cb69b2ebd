"""Classifiers on top of an encoder, and the depth of the encoder's parameters."""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from datamodules.checks import check_one_of
from datamodules.errors import ConfigError
from runtime.optional import offers
from sslmodules.networks.encoder import Encoder
from sslmodules.networks.heads import mlp

Head = Literal["linear", "mlp", "attentive"]


def masked_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid tokens: (B, N, D) and (B, N) bool -> (B, D); 0 where none is valid."""
    kept = valid[:, :, None].to(tokens.dtype)
    return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)


class AttentiveHead(nn.Module):
    """One learned query attends to all tokens, then a linear layer: the probe of V-JEPA and CAPI.

    Args:
        width: D of a token.
        num_classes: K.
        heads: of the attention; must divide ``width``.
    """

    def __init__(self, width: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Tokens (B, N, D) and a mask (B, N) bool of those that are not padding -> scores (B, K)."""
        tokens = self.norm(tokens)
        hidden = ~valid & valid.any(1, keepdim=True)  # without any valid token, attention would be NaN
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, tokens, tokens, key_padding_mask=hidden, need_weights=False)
        return self.classify(pooled[:, 0])


def make_head(kind: Head, width: int, num_classes: int) -> nn.Module:
    """A classifier of features (B, D), or, ``attentive``, of tokens (B, N, D).

    Raises:
        ConfigError: an unknown kind.
    """
    check_one_of(("linear", "mlp", "attentive"), head=kind)
    if kind == "attentive":
        return AttentiveHead(width, num_classes, next(n for n in (8, 4, 2, 1) if width % n == 0))
    return nn.Linear(width, num_classes) if kind == "linear" else mlp([width, width, num_classes])


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Stochastic depth in a ViT: the share of samples that skip a block rises from 0 to ``rate``.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382.

    Raises:
        ConfigError: the encoder is not a ViT.
    """
    blocks = [part for part in encoder.modules() if isinstance(part, Block)]
    if not blocks:
        raise ConfigError(f"drop_path is for ViTs, but the encoder is {type(encoder).__name__}: leave it out")
    for block, share in zip(blocks, torch.linspace(0, rate, len(blocks), device="cpu").tolist(), strict=True):
        block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)


def depths(encoder: Encoder) -> tuple[dict[nn.Parameter, int], int]:
    """Depth of each parameter: 0 before the first block, i in block i, n + 1 after the last; and n + 1.

    As in BEiT's and MAE's code.
    Raises:
        ConfigError: the encoder does not list its blocks.
    """
    if not offers(encoder, "block_list"):
        raise ConfigError(
            f"layer_decay must be 1 for {type(encoder).__name__}, which does not list its blocks"
        )
    blocks = encoder.block_list()
    inside = {p: i + 1 for i, block in enumerate(blocks) for p in block.parameters()}
    begun, found = 0, dict.fromkeys(encoder.parameters(), 0)
    known = {id(block) for block in blocks}
    for part in encoder.modules():
        begun += id(part) in known
        outside = len(blocks) + 1 if begun == len(blocks) else begun
        found |= {p: inside.get(p, outside) for p in part.parameters(recurse=False)}
    return found, len(blocks) + 1
