"""Samples of sequences: windows cut on access, or whole records with padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.samplers import SampleDataset
from datamodules.seeding import mix_seed, run_seed
from datamodules.sequences.alphabets import Letters, reverse_complement
from datamodules.sequences.annotation import Coverage
from datamodules.sequences.fasta import Records
from datamodules.sequences.labels import Labels
from datamodules.text.tokenizer import CLS, PAD, SEP

BLOCK_WINDOWS = 10
"""Windows per block of one split, if they do not overlap."""

BLOCKS = {8: "val", 9: "test"}
"""Of every ten blocks of a record, or of every ten values of a hash, the ninth and the tenth."""


def split_of_name(name: str) -> str:
    """The split of a whole record: the first eight bytes of its name's BLAKE2b hash, modulo 10."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return BLOCKS.get(number % 10, "train")


def windows_of_record(
    name: str, first: int, size: int, span: int, stride: int
) -> Iterator[tuple[str, int, int]]:
    """(split, first letter, number of windows) of pieces of a record, none of which crosses a split.

    A record of ten blocks or more is split by place, a shorter one as a whole by its name.

    Args:
        name: of the record.
        first: its first letter in the array of all records.
        size: its letters.
        span: letters of a window.
        stride: letters from one window to the next.
    """
    block = BLOCK_WINDOWS * span
    if size < 9 * block + span:
        if size >= span:
            yield split_of_name(name), first, (size - span) // stride + 1
        return
    for number, start in enumerate(range(0, size - span + 1, block)):
        count = (min(size - start, block) - span) // stride + 1
        yield BLOCKS.get(number % 10, "train"), first + start, count


def without_unknown(runs: np.ndarray, unknown: Coverage, span: int, stride: int) -> tuple[np.ndarray, int]:
    """Leave out windows with at least half of their letters unknown.

    Args:
        runs: (n, 2) int64: first letter of the first window, and number of windows ``stride`` apart.
        unknown: where unknown letters are.
        span, stride: of the windows, in letters.

    Returns:
        The runs of the other windows, and how many are left out.
    """
    reach = np.maximum(runs[:, 1] - 1, 0) * stride + span
    suspect = 2 * (unknown.before(runs[:, 0] + reach) - unknown.before(runs[:, 0])) >= span
    if not suspect.any():
        return runs, 0
    kept, dropped = [], 0
    for (start, count), look in zip(runs.tolist(), suspect, strict=True):
        if not look:
            kept.append(np.array([[start, count]]))
            continue
        starts = start + stride * np.arange(count)
        good = 2 * unknown.within(starts, span) < span
        dropped += int((~good).sum())
        edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]))).reshape(-1, 2)
        kept.append(np.stack([start + stride * edges[:, 0], edges[:, 1] - edges[:, 0]], 1))
    return np.concatenate(kept), dropped


class SequenceWindows(SampleDataset):
    """Windows of records as tokens, cut on access.

    Args:
        records: all records.
        runs: (n, 2) int64: first letter of the first window of a run, and the number of its windows.
        labels: of windows.
        letters: converts codes to tokens.
        length: T, tokens per window.
        stride: letters from one window of a run to the next.
        both_strands: half of the windows, different ones in each epoch, are read from the other strand.
    """

    def __init__(
        self,
        records: Records,
        runs: np.ndarray,
        labels: Labels,
        letters: Letters,
        length: int,
        stride: int,
        both_strands: bool = False,
    ) -> None:
        self.codes, self.starts = records.codes, records.starts
        self.runs, self.before = runs[:, 0], np.concatenate([[0], np.cumsum(runs[:, 1])])
        self.labeled, self.letters, self.length, self.stride = labels, letters, length, stride
        self.span = length * letters.k
        self.both_strands = both_strands
        self.seed = run_seed()
        # shared with workers that outlive an epoch
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._turned: tuple[int, np.ndarray] = (-1, np.empty(0, bool))

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self.before[-1])

    def first_letters(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) number of the record, and (B,) first letter in the array of all, of windows."""
        run = np.searchsorted(self.before, indices, side="right") - 1
        starts = self.runs[run] + (indices - self.before[run]) * self.stride
        return np.searchsorted(self.starts, starts, side="right") - 1, starts

    @property
    def places(self) -> np.ndarray:
        """(N, 2) record number and first letter in it, of all windows."""
        record, starts = self.first_letters(np.arange(len(self)))
        return np.stack([record, starts - self.starts[record]], 1)

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.labeled.of(*self.first_letters(np.arange(len(self))), self.span)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, T) int64, "label": (B,) int64}``."""
        chosen = np.asarray(indices, np.int64)
        record, starts = self.first_letters(chosen)
        codes = self.codes[starts[:, None] + np.arange(self.span)]  # (B, T * k)
        if self.both_strands:
            coins = self._coins()[chosen]
            codes[coins] = reverse_complement(codes[coins])
        labels = self.labeled.of(record, starts, self.span)
        return {"input": torch.from_numpy(self.letters.tokens(codes)), "label": torch.from_numpy(labels)}

    def _coins(self) -> np.ndarray:
        """(N,) bool: windows that are read from the other strand in this epoch."""
        epoch = int(self.epoch)
        if self._turned[0] != epoch:
            rng = np.random.default_rng(mix_seed(self.seed, epoch))
            self._turned = (epoch, rng.random(len(self)) < 0.5)
        return self._turned[1]


class WholeRecords(SampleDataset):
    """Records as samples: [CLS] letters [SEP], cut and padded to one length.

    Args:
        records: all records.
        chosen: (N,) numbers of the records.
        labels: (N,) int64, -1 = unknown.
        letters: converts codes to tokens, with special tokens.
        length: T.
    """

    labels: np.ndarray

    def __init__(
        self, records: Records, chosen: np.ndarray, labels: np.ndarray, letters: Letters, length: int
    ) -> None:
        self.records, self.chosen, self.labels = records, chosen, labels
        self.letters, self.length = letters, length

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, T) int64, "label": (B,) int64}``."""
        padded = np.full((len(indices), self.length), PAD, np.int64)
        for row, index in enumerate(indices):
            codes = self.records[self.chosen[index]][: (self.length - 2) * self.letters.k]
            tokens = self.letters.tokens(codes[: len(codes) // self.letters.k * self.letters.k])
            padded[row, : len(tokens) + 2] = [CLS, *tokens, SEP]
        labels = self.labels[np.asarray(indices, np.int64)]
        return {"input": torch.from_numpy(padded), "label": torch.from_numpy(labels)}
