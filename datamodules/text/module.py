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
    """What all token data shares: one tokenizer, which the checkpoint keeps, and ``input`` of (B, T) int64
    token ids.

    A subclass gives ``_make_tokenizer()`` and ``_load()``. Where there is padding it is id 0, [PAD], and a
    network finds its attention mask as ``tokens != 0``. Layouts without padding have no need of a mask, and
    id 0 may then be any token: ``pad_id`` says which of the two holds.

    Args:
        length: T, tokens of a sample, special ones included.
        vocabulary: a tokenizer that exists: the file tokenizer.json of a run, or its content, as a checkpoint
            keeps it. None = made from the training split.

    Attributes:
        pad_id: 0, or None where no sample is ever padded.
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

    # ---- given by a subclass -------------------------------------------------------------------------------

    @abstractmethod
    def _make_tokenizer(self) -> Tokenizer:
        """A tokenizer made from the training split."""

    @abstractmethod
    def _load(self) -> dict[str, Dataset]:
        """The data sets of train, bank, val and test."""

    # ---- tokens --------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """Made, or read from ``vocabulary``, when it is first asked for; from then on part of the
        checkpoint.
        """
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
        self.hparams["vocabulary"] = self.vocabulary  # what eval.py builds the data from
        self._datasets = {}
        if isinstance(self.views, TokenTransform):
            self.views.set_tokenizer(tokenizer)

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of token ids, special ones included."""
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer.encode([text])[0].tolist()

    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as text; special tokens give nothing, nor do ids that a network with a larger
        vocabulary may draw.
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
        """The samples of ``split``, made once and kept."""
        check_one_of(get_args(Split), split=split)
        assert self.tokenizer is not None  # before the tokens: a new one would drop them
        if not self._datasets:
            self._datasets = self._load()
        return self._datasets[split]

    def transform(self, batch: dict[str, Any], generator: torch.Generator | None) -> Batch:
        """With a generator, add what ``views`` makes of ``input`` (new dict, same device)."""
        if self.views is None or generator is None:
            return {**batch}  # type: ignore[typeddict-item]
        tokens, views = batch["input"], self.views
        if isinstance(views, TokenTransform):
            params = views.draw(tokens, generator, batch.get("document"))
        else:
            params = views.draw(tokens, generator)
        return {**batch, **views(tokens, params)}  # type: ignore[typeddict-item]

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Counts of the tokens, and TF-IDF with the document frequencies of the training split: (B, T) -> (B,
        vocab_size).
        """
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
            """Counts of tokens times ln((1 + N) / (1 + n)) + 1 of the training split, each row of length
            1.
            """
            return tfidf(tokens, idf.to(tokens.device), self.pad_id)

        return {"bag_of_words": counts, "tfidf": weighted}

    # ---- kept with the run ---------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the tokenizer as ``tokenizer.json`` into the run folder."""
        write_text(folder / "tokenizer.json", self.tokenizer.to_json())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "vocabulary": self.tokenizer.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        vocabulary = state.pop("vocabulary")
        super().load_state_dict(state)
        if vocabulary != self.tokenizer.to_json():  # the weights know the tokens of the checkpoint
            self._adopt(load_tokenizer(vocabulary))
