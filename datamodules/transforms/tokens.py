"""Masked tokens and sentence pairs for a whole batch, and bag-of-words features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from datamodules.checks import check_within
from datamodules.errors import ConfigError
from datamodules.text.tokenizer import MASK, PAD, SEP, SPECIALS, Tokenizer
from datamodules.transforms.base import BatchTransform


class TokenTransform(BatchTransform, ABC):
    """A transform of token batches (B, T); the DataModule passes it the tokenizer before use."""

    dimensions = 2

    @abstractmethod
    def set_tokenizer(self, tokenizer: Tokenizer) -> None: ...

    @abstractmethod
    def draw(
        self, images: Tensor, generator: torch.Generator | None, document: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As for ``BatchTransform.draw``.

        ``document`` (B,) marks samples that come from the same text; None = all differ.
        """

    def chunk_size(self, images: Tensor) -> int:
        """The whole batch: a sample may take its second segment from any other."""
        return len(images)


def segments_of(tokens: Tensor) -> Tensor:
    """(B, T) int64 segment ids of tokens [CLS] A [SEP] B [SEP]: 1 for the second segment, otherwise 0."""
    ends = (tokens == SEP).long()
    return ((ends.cumsum(1) - ends > 0) & (tokens != PAD)).long()


def swap_second_segments(tokens: Tensor, partner: Tensor, swap: Tensor) -> Tensor:
    """Replace the second segment of some samples by that of another sample.

    Args:
        tokens: (B, T) [CLS] A [SEP] B [SEP], padded.
        partner: (B,) the row to take B from.
        swap: (B,) bool, True = take the partner's; the others are unchanged.

    Returns:
        (B, T); tokens that do not fit are cut, and the result always ends in [SEP].
    """
    length = tokens.shape[1]
    first = ((tokens == SEP).cumsum(1) == 0).sum(1) + 1  # (B,) tokens up to and including the first [SEP]
    place = torch.arange(length, device=tokens.device)  # (T,)
    source = (
        place - first[:, None] + first[partner][:, None]
    )  # (B, T) position of B's tokens in the partner's row
    second = tokens[partner].gather(1, source.clamp(0, length - 1)).masked_fill(source >= length, PAD)
    swapped = torch.where(place < first[:, None], tokens, second)
    swapped[:, -1].masked_fill_(swapped[:, -1] != PAD, SEP)
    return torch.where(swap[:, None], swapped, tokens)


class MaskedTokens(TokenTransform):
    """BERT's two tasks (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), redrawn at every step.

    Masked words: each non-special token is selected with probability ``ratio``; of the selected, 80 % become
    [MASK], 10 % a random non-special token, and 10 % are unchanged. Next sentence: half of the samples keep
    their second segment, the others get one from another document of the batch, of the nearest length so that
    the length reveals nothing. A sample with no other document in its batch keeps its own and is labeled
    accordingly.

    Args:
        ratio: share of the tokens to predict, in (0, 1).
        whole_words: select all pieces of a word or none; needs the wordpiece tokenizer.
        next_sentence: also draw the second task; needs samples of two segments (layout ``pairs``).

    Raises:
        ValueError: ``ratio`` is not in (0, 1), or (once the tokenizer is known) it has no special tokens or
            no words.
    """

    def __init__(self, ratio: float = 0.15, whole_words: bool = False, next_sentence: bool = True) -> None:
        super().__init__()
        check_within(0, 1, "()", ratio=ratio)
        self.ratio, self.whole_words, self.next_sentence = ratio, whole_words, next_sentence
        self.vocab_size = 0
        self.continues: Tensor | None = None

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.specials:
            raise ConfigError("masking needs [MASK] and padding: give --data.layout pairs or documents")
        self.vocab_size = tokenizer.vocab_size
        if self.whole_words:
            self.continues = torch.from_numpy(tokenizer.continuations())

    def draw(
        self, images: Tensor, generator: torch.Generator | None, document: Tensor | None = None
    ) -> dict[str, Tensor]:
        """{"select", "action": (B, T) in [0, 1), "random": (B, T) token ids}.

        For the second task also {"partner": (B,) int64, "is_next": (B,) bool}.
        """
        tokens = images
        like: dict[str, Any] = {"generator": generator, "device": tokens.device}
        params = {
            "select": torch.rand(tokens.shape, **like),
            "action": torch.rand(tokens.shape, **like),
            "random": torch.randint(len(SPECIALS), self.vocab_size, tokens.shape, **like),
        }
        if self.next_sentence:
            rows = len(tokens)
            document = torch.arange(rows, device=tokens.device) if document is None else document
            size = segments_of(tokens).sum(1).float()  # (B,) of the second segment
            # the nearest length, with ties broken at random: the noise is less than a whole token
            distance = (size[:, None] - size).abs() + torch.rand(rows, rows, **like)  # (B, B)
            distance = distance.masked_fill(document[:, None] == document, torch.inf)
            nearest, params["partner"] = distance.min(1)
            params["is_next"] = (torch.rand(rows, **like) < 0.5) | nearest.isinf()
        return params

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Tokens (B, T) -> {"corrupted", "target", "segment": (B, T)}, target -100 where nothing is
        predicted.

        With the second task also {"is_next": (B,)} int64, 1 = true pair.
        """
        tokens, added = images, {}
        if self.next_sentence:
            tokens = swap_second_segments(tokens, params["partner"], ~params["is_next"])
            added["is_next"] = params["is_next"].long()
        select = params["select"]
        if self.continues is not None:  # all pieces of a word get the number drawn for its first piece
            self.continues = self.continues.to(tokens.device)
            place = torch.arange(tokens.shape[1], device=tokens.device)
            start = (
                place.expand_as(tokens).masked_fill(self.continues[tokens], 0).cummax(1).values
            )  # (B, T) where the word begins
            select = select.gather(1, start)
        selected = (select < self.ratio) & (tokens >= len(SPECIALS))
        action = params["action"]
        replaced = torch.where(action < 0.8, MASK, torch.where(action < 0.9, params["random"], tokens))
        return {
            "corrupted": torch.where(selected, replaced, tokens),
            "target": tokens.masked_fill(~selected, -100),
            "segment": segments_of(tokens),
            **added,
        }


# ---- cheap features ----------------------------------------------------------------------------------------


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
