"""The base of token data: one tokenizer, kept in the checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import Batch, SSLDataModule
from datamodules.checks import check_at_least, check_one_of
from datamodules.errors import ConfigError
from datamodules.splits import Split
from datamodules.text.tokenizer import PAD, Tokenizer, load_tokenizer
from datamodules.transforms.tokens import TokenTransform, bag_of_words, inverse_document_frequency, tfidf
from runtime.files import write_text


class TextDataModule(SSLDataModule, ABC):
    """Base class of token data: (B, T) int64 token ids of one tokenizer, which is stored in the checkpoint.

    A subclass implements ``_make_tokenizer()`` and ``_load()``. Padding, if there is any, is id 0, [PAD], and
    a network's attention mask is ``tokens != 0``. Layouts without padding need no mask, and id 0 may then be
    any token: ``pad_id`` distinguishes the two cases.

    Args:
        length: T, tokens per sample, including special ones.
        vocabulary: an existing tokenizer: a run's file tokenizer.json, or its content as stored in a
            checkpoint. None = build it from the training split.

    Attributes:
        pad_id: 0, or None if no sample is ever padded.
        class_names: one name per class; empty for unlabeled data.
    """

    pad_id: int | None = PAD
    class_names: tuple[str, ...] = ()

    def __init__(self, length: int = 128, vocabulary: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least(2, length=length)
        self.length, self.vocabulary = length, vocabulary
        self._tokenizer: Tokenizer | None = None
        self._datasets: dict[str, Dataset] = {}

    # ---- implemented by a subclass -------------------------------------------------------------------------

    @abstractmethod
    def _make_tokenizer(self) -> Tokenizer:
        """Build a tokenizer from the training split."""

    @abstractmethod
    def _load(self) -> dict[str, Dataset]:
        """The data sets of train, bank, val and test."""

    # ---- tokens --------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """Built, or read from ``vocabulary``, on first access; from then on part of the checkpoint."""
        if self._tokenizer is None:
            if self.vocabulary is None:
                self._adopt(self._make_tokenizer())
            else:
                self._adopt(self._read_tokenizer(self.vocabulary))
        assert self._tokenizer is not None
        return self._tokenizer

    def _read_tokenizer(self, text: str) -> Tokenizer:
        if not text.lstrip().startswith("{"):
            try:
                text = Path(text).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"--data.vocabulary {text} cannot be read ({error}): expected a tokenizer.json"
                ) from None
        return load_tokenizer(text)

    def _adopt(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.vocabulary = tokenizer, tokenizer.to_json()
        self.hparams["vocabulary"] = self.vocabulary  # used by eval.py to rebuild the data
        self._datasets = {}
        if isinstance(self.views, TokenTransform):
            self.views.set_tokenizer(tokenizer)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of token ids, including special ones."""
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer.encode([text])[0].tolist()

    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as text, without special tokens and ids outside the vocabulary.

        A network with more outputs than the vocabulary may sample such ids.
        """
        return self.tokenizer.decode(tokens[tokens < self.vocab_size].tolist())

    # ---- data ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        self.dataset("train")

    def setup(self, stage: str) -> None:
        if (
            self.trainer is not None and self.trainer.world_size > 1
        ):  # one tokenizer for all: that of the first process
            vocabulary = self.trainer.strategy.broadcast(self.tokenizer.to_json())
            if vocabulary != self.vocabulary:
                self._adopt(load_tokenizer(vocabulary))
        super().setup(stage)

    def dataset(self, split: Split) -> Dataset:
        """The samples of ``split``, built once and cached."""
        check_one_of(get_args(Split), split=split)
        assert self.tokenizer is not None  # before the tokens: a new one would drop them
        if not self._datasets:
            self._datasets = self._load()
        return self._datasets[split]

    def transform(self, batch: dict[str, Any], generator: torch.Generator | None) -> Batch:
        """With a generator, add the keys that ``views`` makes from ``input`` (new dict, same device)."""
        if self.views is None or generator is None:
            return {**batch}  # type: ignore[typeddict-item]
        tokens, views = batch["input"], self.views
        views.check_dimensions(tokens)
        if isinstance(views, TokenTransform):
            params = views.draw(tokens, generator, batch.get("document"))
        else:
            params = views.draw(tokens, generator)
        return {**batch, **views(tokens, params)}  # type: ignore[typeddict-item]

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Counts of tokens, and TF-IDF with the training split's document frequencies: (B, T) -> (B, V)."""
        bank: Any = self.dataset("bank")
        starts = range(0, len(bank), 1024)
        idf = inverse_document_frequency(
            (bank.__getitems__(range(i, min(i + 1024, len(bank))))["input"] for i in starts),
            self.vocab_size,
            self.pad_id,
        )

        def counts(tokens: Tensor) -> Tensor:
            """How often each token occurs in the sample."""
            return bag_of_words(tokens, self.vocab_size, self.pad_id)

        def weighted(tokens: Tensor) -> Tensor:
            """Counts of tokens times ln((1 + N) / (1 + n)) + 1 of the training split, scaled to length 1."""
            return tfidf(tokens, idf.to(tokens.device), self.pad_id)

        return {"bag_of_words": counts, "tfidf": weighted}

    # ---- saved with the run --------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the tokenizer as ``tokenizer.json`` into the run folder."""
        write_text(folder / "tokenizer.json", self.tokenizer.to_json())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "vocabulary": self.tokenizer.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        vocabulary = state.pop("vocabulary")
        super().load_state_dict(state)
        if vocabulary != self.tokenizer.to_json():  # the weights belong to the checkpoint's tokenizer
            self._adopt(load_tokenizer(vocabulary))
