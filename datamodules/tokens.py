"""Views of token batches, made on the device, and cheap features of tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from datamodules.tokenizer import SPECIALS, Tokenizer
from datamodules.views import BatchTransform


class TokenTransform(BatchTransform):
    """A transform of token batches (B, T); the DataModule tells it the tokenizer before it is used."""

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        raise NotImplementedError

    def draw(self, images: Tensor, generator: torch.Generator | None, document: Tensor | None = None) -> dict[str, Tensor]:
        """As ``BatchTransform.draw``; ``document`` (B,) tells which samples were cut from the same text."""
        raise NotImplementedError


# ---- cheap features --------------------------------------------------------------------------------------------------


def bag_of_words(tokens: Tensor, vocab_size: int, pad_id: int | None) -> Tensor:
    """How often each token occurs.

    Args:
        tokens: (B, T) int64.
        vocab_size: V.
        pad_id: 0 where padding and the other special tokens do not count; None = every id is text.

    Returns:
        (B, V) float32 counts.
    """
    counts = torch.zeros(len(tokens), vocab_size, device=tokens.device)
    counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=counts.dtype))
    if pad_id is not None:
        counts[:, : len(SPECIALS)] = 0
    return counts


def inverse_document_frequency(batches: Iterable[Tensor], vocab_size: int, pad_id: int | None) -> Tensor:
    """(V,) ln((1 + N) / (1 + n)) + 1 for a token in n of the N samples (scikit-learn's smoothed form)."""
    total, containing = 0, torch.zeros(vocab_size)
    for tokens in batches:
        total += len(tokens)
        containing += (bag_of_words(tokens, vocab_size, pad_id) > 0).sum(0)
    return torch.log((1 + total) / (1 + containing)) + 1


def tfidf(tokens: Tensor, idf: Tensor, pad_id: int | None) -> Tensor:
    """(B, T) tokens to (B, V) counts times ``idf`` (V,), each row of length 1."""
    weighted = bag_of_words(tokens, len(idf), pad_id) * idf
    return weighted / weighted.norm(dim=1, keepdim=True).clamp(min=1e-12)
