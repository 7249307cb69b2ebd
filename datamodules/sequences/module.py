"""DNA windows from FASTA files, labeled by a GFF file if there is one.

Files that are named for splits (``train.fa``, ``test.fa``; docs/data/splits.md) are these. Else splits follow
the place on the chromosome and never the run's seed: each record is cut into blocks, of every ten of which
the ninth is val and the tenth test, and no window crosses the border of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.base import SSLDataModule
from datamodules.checks import check_at_least, check_one_of, check_within
from datamodules.errors import DataFileError
from datamodules.listing import fingerprint, hidden_below
from datamodules.samplers import SampleDataset
from datamodules.seeding import mix_seed, run_seed
from datamodules.sequences.fasta import (
    BASES,
    N,
    base_codes,
    read_coding,
    read_fasta,
    reverse_complement,
    to_tokens,
)
from datamodules.splits import Split, split_of_files

BLOCK_WINDOWS = 10
"""Windows of a block of one split, where they do not overlap."""

CODING = 0.5
"""A window with at least this share of its bases in coding sequence is coding, one with none is
non-coding.
"""


class SequenceWindows(SampleDataset):
    """Windows of records as tokens.

    Args:
        records: base codes of each record.
        places: (record number, first base) of each window.
        labels: one per window, -1 = unknown.
        length: T, tokens per window.
        k: bases per token.
        both_strands: half of the windows, different ones in each epoch, are read from the other strand.
    """

    labels: np.ndarray

    def __init__(
        self,
        records: Sequence[np.ndarray],
        places: np.ndarray,
        labels: np.ndarray,
        length: int,
        k: int,
        both_strands: bool = False,
    ) -> None:
        self.records, self.places, self.labels = records, places.reshape(-1, 2), labels
        self.length, self.k, self.both_strands = length, k, both_strands
        self.seed = run_seed()
        self.epoch = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # shared with workers that outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, T) int64, "label": (B,) int64}``."""
        chosen, span = np.asarray(indices, np.int64), self.length * self.k
        rows = [self.records[record][start : start + span] for record, start in self.places[chosen]]
        codes = np.stack(rows)  # (B, T * k)
        if self.both_strands:
            coins = (
                np.random.default_rng(mix_seed(self.seed, int(self.epoch))).random(len(self))[chosen] < 0.5
            )
            codes[coins] = reverse_complement(codes[coins])
        tokens = to_tokens(codes, self.k)
        return {"input": torch.from_numpy(tokens), "label": torch.from_numpy(self.labels[chosen])}


class Fasta(SSLDataModule):
    """DNA from FASTA files, plain or gzipped, as windows of bases or of k-mers.

    Lower case is read as upper case and ambiguous IUPAC letters as N; windows that are half N or more are
    dropped.

    Args:
        root: a file, or a folder.
        files: glob patterns of the files in the folder.
        gff: a GFF3 file, or a folder of them, for records of the same names. A window is coding if at least
            half of its bases are in a CDS of either strand, non-coding if none are, and unlabeled otherwise.
            None = unlabeled.
        length: T, tokens per window.
        kmer: bases per token; k-mers do not overlap, otherwise all but one base of the next would be known.
        stride: bases from one window to the next; None = the window length in bases, so that windows do not
            overlap.
        both_strands: train on windows of both strands (reverse complement), redrawn in each epoch.
        **kwargs: ``SSLDataModule``'s.

    Attributes:
        vocab_size: 5 (bases and N), or 4^k + 1.

    Raises:
        DataFileError: files that are missing, empty, damaged, of another kind, or too short for a window.
        ValueError: a bad argument.
    """

    vocab_size: int

    def __init__(
        self,
        root: str | None = None,
        files: tuple[str, ...] = ("*.fa*", "*.fna*"),
        gff: str | None = None,
        length: int = 256,
        kmer: int = 1,
        stride: int | None = None,
        both_strands: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least(2, length=length)
        check_at_least(1, stride=stride)
        check_within(1, 8, kmer=kmer)
        self.root, self.patterns, self.gff, self.length, self.kmer = root, tuple(files), gff, length, kmer
        self.stride, self.both_strands = stride or length * kmer, both_strands
        self.vocab_size = 4**kmer + 1
        self.num_classes = 2 if gff else None
        self.class_names: tuple[str, ...] = ("non-coding", "coding") if gff else ()
        self._datasets: dict[str, Dataset] = {}
        self._given: dict[str, str] = {}
        self._fingerprint: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        self.dataset("train")

    def dataset(self, split: Split) -> Dataset:
        check_one_of(get_args(Split), split=split)
        if not self._datasets:
            self._datasets = self._load()
        return self._datasets[split]

    # ---- tokens and letters --------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of letters, ignoring white space; an incomplete last k-mer is dropped."""
        codes, _ = base_codes("".join(text.split()), "the text")
        return to_tokens(codes[: len(codes) // self.kmer * self.kmer], self.kmer).tolist()

    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as letters; ids beyond the vocabulary, which a larger network may draw,
        are dropped.
        """
        return "".join(BASES[i] for i in self._bases(tokens[tokens < self.vocab_size]).flatten().tolist())

    def _bases(self, tokens: Tensor) -> Tensor:
        """(..., T) tokens -> (..., T, k) codes in 0..4."""
        if self.kmer == 1:
            return tokens[..., None]
        powers = 4 ** torch.arange(self.kmer - 1, -1, -1, device=tokens.device)
        return torch.where(tokens[..., None] == 4**self.kmer, N, tokens[..., None] // powers % 4)

    @property
    def characters_per_token(self) -> float:  # type: ignore[override]
        return self.kmer

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Counts of 4-mers, the usual features of DNA without learning: (B, T) -> (B, 256)."""

        def kmers(tokens: Tensor) -> Tensor:
            """How often each of the 256 4-mers occurs in the window, at every place and on the strand that is
            given.
            """
            bases = self._bases(tokens).flatten(1)  # (B, T * k)
            words = bases.unfold(1, 4, 1)  # (B, T * k - 3, 4)
            numbers = words @ torch.tensor([64, 16, 4, 1], device=bases.device)
            counts = F.one_hot(numbers.clamp(max=255), 256) * (words != N).all(-1, keepdim=True)
            return counts.sum(1).float()

        return {"kmers": kmers}

    # ---- files ---------------------------------------------------------------------------------------------

    def _records(self) -> dict[str, np.ndarray]:
        """Base codes by record name; also notes the split of each record whose file belongs to one."""
        if self.synthetic:
            rng = np.random.default_rng(0)
            return {
                name: rng.integers(0, 4, 200 * self.length * self.kmer).astype(np.uint8)
                for name in ("one", "two")
            }
        if self.root is None:
            raise DataFileError("Fasta needs --data.root: a FASTA file, or a folder of them")
        records: dict[str, np.ndarray] = {}
        root = Path(self.root).expanduser()
        files = _paths(root, self.patterns, "--data.root")
        for path, split in split_of_files(root, files, "FASTA files").items():
            for name, codes in read_fasta(path).items():
                if name in records:
                    raise DataFileError(f"{path} has a record {name}, as an earlier file has: rename one")
                records[name] = codes
                self._given[name] = split
        return records

    def _split(self, record: str, block: int) -> str:
        """The split of a block of a record: that of its file, or by position."""
        given, others = self._given.get(record, "train"), set(self._given.values()) & {"val", "test"}
        if given in others:  # a single given split is reported as test
            return given if len(others) == 2 else "test"
        if given == "unlabeled" or len(others) == 2:
            return "train"
        return {8: "val", 9: "train" if others else "test"}.get(block % 10, "train")

    def fingerprint(self) -> dict[str, Any] | None:
        if self.synthetic or self.root is None:
            return None
        if self._fingerprint is None:
            root = Path(self.root).expanduser()
            folder = root.parent if root.is_file() else root
            names = [str(path.relative_to(folder)) for path in _paths(root, self.patterns, "--data.root")]
            self._fingerprint = fingerprint(str(folder), names)
        return self._fingerprint

    def _coding(self, records: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """(n + 1,) number of coding bases before each position, by record; None without labels."""
        if self.gff is None:
            return None
        coding = {name: np.zeros(len(codes), dtype=bool) for name, codes in records.items()}
        if self.synthetic:
            for mask in coding.values():
                mask[: len(mask) // 2] = True
        else:
            known = 0
            for path in _paths(Path(self.gff), ("*.gff*",), "--data.gff"):
                for name, pieces in read_coding(path).items():
                    for start, end in pieces if name in coding else []:
                        coding[name][start:end] = True
                        known += 1
            if not known:
                raise DataFileError(
                    f"--data.gff {self.gff} has no CDS of the records {', '.join(list(records)[:3])}"
                )
        return {name: np.concatenate([[0], np.cumsum(mask)]) for name, mask in coding.items()}

    def _load(self) -> dict[str, Dataset]:
        records = self._records()
        coding, span = self._coding(records), self.length * self.kmer
        places: dict[str, list[tuple[int, int]]] = {"train": [], "val": [], "test": []}
        labels: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        unread = 0
        for number, (name, codes) in enumerate(records.items()):
            unknown = np.concatenate([[0], np.cumsum(codes == N)])
            for block, first in enumerate(range(0, len(codes), BLOCK_WINDOWS * span)):
                split = self._split(name, block)
                last = min(len(codes), first + BLOCK_WINDOWS * span) - span
                for start in range(first, last + 1, self.stride):
                    if 2 * (unknown[start + span] - unknown[start]) >= span:
                        unread += 1
                        continue
                    places[split].append((number, start))
                    share = (
                        0.0 if coding is None else (coding[name][start + span] - coding[name][start]) / span
                    )
                    labels[split].append(-1 if coding is None or 0 < share < CODING else int(share >= CODING))
        if unread:
            rank_zero_info(f"{unread} windows that are half N or more are left out")
        for split, found in places.items():
            if not found:
                raise DataFileError(
                    f"--data.root {self.root} gives no window of {span} bases for {split}, which takes one "
                    "tenth of at least "
                    f"{10 * BLOCK_WINDOWS * span} bases of a record: give a longer sequence or a shorter "
                    "--data.length"
                )

        def made(split: str, both_strands: bool = False) -> SequenceWindows:
            where, what = np.array(places[split]), np.array(labels[split], dtype=np.int64)
            return SequenceWindows(list(records.values()), where, what, self.length, self.kmer, both_strands)

        return {
            "train": made("train", self.both_strands),
            "bank": made("train"),
            "val": made("val"),
            "test": made("test"),
        }


def _paths(root: Path, patterns: Sequence[str], option: str) -> list[Path]:
    root = root.expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataFileError(f"{option} {root} does not exist: expected a file or a folder")
    found = sorted(
        {
            path
            for pattern in patterns
            for path in root.glob(pattern)
            if path.is_file() and not hidden_below(path, root)
        }
    )
    if not found:
        raise DataFileError(f"{option} {root} holds no file that fits {', '.join(patterns)}")
    return found
