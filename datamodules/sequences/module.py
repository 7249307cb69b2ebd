"""DNA and protein from FASTA files, labeled by features, by file or by a table.

Files named after splits (``train.fa``, ``test.fa``; docs/data/splits.md) are used as such. Otherwise splits
follow a fixed rule, independent of the run's seed. Long records are split by position: each is cut into
blocks; of every ten blocks the ninth is val and the tenth test, and no window crosses from one to the other.
Shorter records, and whole ones, are split by a hash of their name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SSLDataModule
from datamodules.checks import check, check_at_least, check_one_of, check_within
from datamodules.errors import ConfigError, DataFileError
from datamodules.listing import fingerprint, printable
from datamodules.remarks import copied_samples, missing_classes
from datamodules.samplers import SampleDataset
from datamodules.sequences.alphabets import ALPHABETS, DNA, AlphabetName, Letters
from datamodules.sequences.annotation import Coverage, runs_of
from datamodules.sequences.counts import count_words
from datamodules.sequences.fasta import Records, read_fasta, sequence_files
from datamodules.sequences.labels import (
    Labels,
    labels_of_places,
    labels_of_table,
    made_up_labels,
    unlabeled,
)
from datamodules.sequences.samples import (
    BLOCK_WINDOWS,
    SequenceWindows,
    WholeRecords,
    split_of_name,
    windows_of_record,
    without_unknown,
)
from datamodules.splits import Split, split_of_files
from datamodules.text.corpus import class_list
from datamodules.text.tokenizer import PAD
from datamodules.transforms.tokens import MaskedTokens, TokenTransform

Layout = Literal["windows", "records"]

SPLITS = ("train", "val", "test")


class Fasta(SSLDataModule):
    """DNA or protein from FASTA files, plain or gzipped: windows of letters or k-mers, or whole records.

    Lower case is read as upper case and IUPAC's ambiguous letters of DNA as N; windows with at least half of
    their letters N (X in protein) are dropped. Labels come from ``gff``, ``class_files`` or ``labels``.

    With views that mask tokens, and in the layout ``records``, ids 0 to 4 are special tokens as in text.

    Layouts::

        any number of files; long records are split by position, others by a hash of their name:
            DIR/genome.fna.gz  DIR/more/contigs.fa
        files named after splits:
            DIR/train.fa  DIR/valid.fa  DIR/test.fa
        classes by position, from GFF3, GTF or BED (--data.gff DIR/genome.gff.gz):
            DIR/genome.fna.gz  DIR/genome.gff.gz
        a file per class (--data.class_files true):
            DIR/nuclear.fasta  DIR/cytoplasm.fasta
        classes of records, in columns id and label (--data.labels DIR/table.csv):
            DIR/records.fa  DIR/table.csv
        proteins (--data.alphabet protein):
            DIR/proteome.faa.gz

    Args:
        root: a file, or a folder.
        files: glob patterns of the files in the folder; default: the usual extensions of FASTA files of the
            alphabet, at any depth, with or without ``.gz``.
        alphabet: ``dna`` (A, C, G, T, N), or ``protein`` (the 20 amino acids, B, J, O, U, X, Z, * and -).
        layout: ``windows`` of ``length`` tokens, or ``records``: [CLS] letters [SEP], cut and padded to
            ``length``.
        gff: a GFF3, GTF or BED file, or a folder of them, for records of the same names. A window is positive
            if at least half of its letters lie in a feature on either strand, negative if none do, and
            unlabeled otherwise; all windows of a record that the file does not mention are unlabeled.
        feature: which lines of a GFF file count (third column): CDS, gene, exon, ...; None = CDS, or the only
            type that the file has.
        class_files: each file is one class, named after the file.
        labels: a .csv, .tsv or .jsonl table with the class of each record.
        label_columns: its columns: name of the record, and class.
        length: T, tokens per sample.
        kmer: letters per token of DNA; k-mers do not overlap, since each would otherwise reveal all but one
            letter of the next.
        stride: letters from one window to the next; None = the window length in letters, so that windows do
            not overlap.
        both_strands: train on windows of DNA of both strands (reverse complement), redrawn in each epoch.
        **kwargs: ``SSLDataModule``'s.

    Attributes:
        vocab_size: letters of the alphabet (DNA: 5), or 4^k + 1; 5 more with special tokens.

    Raises:
        DataFileError: files that are missing, empty, damaged, of another kind, or too short for a window.
        ValueError: a bad argument.
    """

    def __init__(
        self,
        root: str | None = None,
        files: tuple[str, ...] = (),
        alphabet: AlphabetName = "dna",
        layout: Layout = "windows",
        gff: str | None = None,
        feature: str | None = None,
        class_files: bool = False,
        labels: str | None = None,
        label_columns: tuple[str, str] = ("id", "label"),
        length: int = 256,
        kmer: int = 1,
        stride: int | None = None,
        both_strands: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_one_of(get_args(AlphabetName), alphabet=alphabet)
        check_one_of(get_args(Layout), layout=layout)
        check_at_least(3 if layout == "records" else 2, length=length)
        check_at_least(1, stride=stride)
        check_within(1, 8, kmer=kmer)
        check(alphabet == "dna" or kmer == 1, "kmer", "1 for protein", kmer)
        if (gff is not None) + class_files + (labels is not None) > 1:
            raise ConfigError("gff, class_files and labels each define the class: give only one of them")
        if layout == "records" and gff is not None:
            raise ConfigError("gff labels positions, not whole records: give layout windows, or labels")
        if isinstance(self.views, MaskedTokens) and self.views.next_sentence:
            raise ConfigError("sequences have no second segment: give --data.views.next_sentence false")
        self.root, self.patterns, self.alphabet = root, tuple(files), ALPHABETS[alphabet]
        self.layout, self.gff, self.feature = layout, gff, feature
        self.class_files, self.labels, self.label_columns = class_files, labels, label_columns
        self.length, self.kmer, self.stride = length, kmer, stride or length * kmer
        self.both_strands = both_strands and self.alphabet is DNA
        specials = layout == "records" or isinstance(self.views, TokenTransform)
        self.tokenizer = Letters(self.alphabet, kmer, specials)
        if isinstance(self.views, TokenTransform):
            self.views.set_tokenizer(self.tokenizer)
        self.pad_id = PAD if specials else None
        self._datasets: dict[str, Any] = {}
        self._class_names: tuple[str, ...] = ()
        self._fingerprint: dict[str, Any] | None = None

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.tokenizer.vocab_size

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names; the files are read on first access."""
        if self.gff is not None or self.class_files or self.labels is not None:
            self.dataset("train")
        return self._class_names

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

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
        return self.tokenizer.encode([text])[0].tolist()

    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as letters, without special tokens and ids beyond the vocabulary.

        A network with more outputs than the vocabulary may sample such ids.
        """
        return self.tokenizer.decode(tokens[tokens < self.vocab_size].tolist())

    @property
    def characters_per_token(self) -> float | None:  # type: ignore[override]
        return None if self.tokenizer.specials else self.kmer

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Features without learning. DNA: counts of 4-mers, (B, T) -> (B, 256). Protein: shares of amino
        acids, (B, 28), and of pairs of neighbors, (B, 784).
        """

        def kmers(tokens: Tensor) -> Tensor:
            """How often each of the 256 4-mers occurs in the window, at all positions of the given strand."""
            return count_words(self._codes(tokens), 4, 4)

        def composition(tokens: Tensor) -> Tensor:
            """Share of each amino acid."""
            counts = count_words(self._codes(tokens), 1, len(self.alphabet.letters))
            return counts / counts.sum(1, keepdim=True).clamp(min=1)

        def dipeptides(tokens: Tensor) -> Tensor:
            """Share of each pair of neighboring amino acids."""
            counts = count_words(self._codes(tokens), 2, len(self.alphabet.letters))
            return counts / counts.sum(1, keepdim=True).clamp(min=1)

        return (
            {"kmers": kmers}
            if self.alphabet is DNA
            else {"composition": composition, "dipeptides": dipeptides}
        )

    def _codes(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens -> (B, T * k) codes; -1 for special tokens."""
        return torch.from_numpy(self.tokenizer.codes(tokens.cpu().numpy())).flatten(1).to(tokens.device)

    # ---- files ---------------------------------------------------------------------------------------------

    def _paths(self) -> dict[Path, str]:
        """The split of each file."""
        if self.root is None:
            raise DataFileError("Fasta needs --data.root: a FASTA file, or a folder of them")
        root = Path(self.root).expanduser()
        files = sequence_files(root, self.patterns, self.alphabet.endings, "--data.root")
        return split_of_files(root, files, "FASTA files")

    def fingerprint(self) -> dict[str, Any] | None:
        if self.synthetic or self.root is None:
            return None
        if self._fingerprint is None:
            root = Path(self.root).expanduser()
            folder = root.parent if root.is_file() else root
            paths = sequence_files(root, self.patterns, self.alphabet.endings, "--data.root")
            self._fingerprint = fingerprint(str(folder), [str(path.relative_to(folder)) for path in paths])
        return self._fingerprint

    def remarks(self) -> list[str]:
        if self.synthetic:
            return []
        made = {split: self.dataset(split) for split in SPLITS}  # type: ignore[arg-type]
        lines = [missing_classes({split: d.labels for split, d in made.items()}, self.class_names)]  # type: ignore[attr-defined]
        if self.layout == "records":
            records = ((s, d.records[i].tobytes()) for s, d in made.items() for i in d.chosen)  # type: ignore[attr-defined]
            lines.append(copied_samples(records, "records"))
        return super().remarks() + [f"{printable(str(self.root))}: {line}" for line in lines if line]

    def _load(self) -> dict[str, SampleDataset]:
        records, given = (self._synthetic(), {}) if self.synthetic else self._read()
        labels = self._labels(records, given)
        self._class_names = labels.names
        return (self._whole if self.layout == "records" else self._windows)(
            records, list(given.values()), labels
        )

    def _read(self) -> tuple[Records, dict[Path, str]]:
        records, given = Records(), self._paths()
        for number, path in enumerate(given):
            read_fasta(path, self.alphabet, records, number)
        return records, given

    def _synthetic(self) -> Records:
        """Two long records for windows; 400 of up to twice a sample's length for whole records."""
        rng, records = np.random.default_rng(0), Records()
        n = len(self.alphabet.letters) - (self.alphabet is DNA)
        span = self.length * self.kmer
        sizes = rng.integers(span // 2 + 1, 2 * span, 400) if self.layout == "records" else [200 * span] * 2
        for number, size in enumerate(sizes):
            records.begin(str(number), number % 2, "")
            records.add(rng.integers(0, n, size).astype(np.uint8).tobytes())
        return records

    # ---- labels --------------------------------------------------------------------------------------------

    def _labels(self, records: Records, given: dict[Path, str]) -> Labels:
        if self.synthetic and (self.gff or self.labels):
            labels = made_up_labels(records, places=self.gff is not None)
        elif self.gff is not None:
            labels = labels_of_places(records, Path(self.gff), self.feature)
        elif self.class_files:
            stems = [path.name.partition(".")[0] for path in given] if given else ["one", "two"]
            names = class_list(stems)
            numbers = np.array([names.index(stem) for stem in stems])
            labels = Labels(names, numbers[records.files])
        elif self.labels is not None:
            labels = labels_of_table(records, Path(self.labels).expanduser(), self.label_columns)
        else:
            labels = unlabeled(len(records.names))
        files = [number for number, split in enumerate(given.values()) if split == "unlabeled"]
        labels.of_record[np.isin(records.files, files)] = -1
        return labels

    # ---- splits --------------------------------------------------------------------------------------------

    def _split(self, natural: str, given: str, others: set[str]) -> str:
        """The split of a piece: its file's, or the one that its position or name determines.

        Args:
            natural: by position or name.
            given: that of its file.
            others: those of val and test that files are named after; a single one is reported as test.
        """
        if given in others:
            return given if len(others) == 2 else "test"
        if given == "unlabeled" or len(others) == 2 or (others and natural == "test"):
            return "train"
        return natural

    def _windows(self, records: Records, given: list[str], labels: Labels) -> dict[str, SampleDataset]:
        span, others = self.length * self.kmer, set(given) & {"val", "test"}
        found: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        starts = records.starts.tolist()
        short = lost = 0
        for i, (name, file) in enumerate(zip(records.names, records.files, strict=True)):
            size = starts[i + 1] - starts[i]
            if size < span:
                short, lost = short + 1, lost + size
            of_file = given[file] if given else "train"
            for natural, first, count in windows_of_record(name, starts[i], size, span, self.stride):
                found[self._split(natural, of_file, others)].append((first, count))
        if short:
            rank_zero_info(
                f"{self.root}: {short} of {len(records.names)} records are shorter than a window ({span} "
                f"letters) and left out: {100 * lost / starts[-1]:.0f} % of all letters"
            )
        unknown = Coverage(runs_of(records.codes, self.alphabet.unknown))
        runs, unread = {}, 0
        for split, pieces in found.items():
            array = np.array(pieces, np.int64).reshape(-1, 2)
            runs[split], dropped = without_unknown(array, unknown, span, self.stride)
            unread += dropped
            self._check_any(split, int(runs[split][:, 1].sum()), f"window of {span} letters", span)
        if unread:
            letter = self.alphabet.letters[self.alphabet.unknown]
            rank_zero_info(f"{unread} windows with at least half of their letters {letter} are left out")

        def made(split: str, both: bool = False) -> SampleDataset:
            return SequenceWindows(
                records, runs[split], labels, self.tokenizer, self.length, self.stride, both
            )

        bank = made("train")
        train = made("train", both=True) if self.both_strands else bank
        return {"train": train, "bank": bank, "val": made("val"), "test": made("test")}

    def _whole(self, records: Records, given: list[str], labels: Labels) -> dict[str, SampleDataset]:
        others, sizes = set(given) & {"val", "test"}, np.diff(records.starts)
        of_file = [given[file] if given else "train" for file in records.files]
        splits = np.array(
            [self._split(split_of_name(n), s, others) for n, s in zip(records.names, of_file, strict=True)]
        )
        room = (self.length - 2) * self.kmer
        if cut := int((sizes > room).sum()):
            rank_zero_info(
                f"{self.root}: {cut} of {len(sizes)} records are cut to their first {room} letters"
            )
        if empty := int((sizes < self.kmer).sum()):
            rank_zero_info(f"{self.root}: {empty} records without letters are left out")
        made = {}
        for split in SPLITS:
            chosen = np.flatnonzero((splits == split) & (sizes >= self.kmer))
            self._check_any(split, len(chosen), "record", 0)
            of_chosen = labels.of_record[chosen]
            made[split] = WholeRecords(records, chosen, of_chosen, self.tokenizer, self.length)
        return {**made, "bank": made["train"]}

    def _check_any(self, split: str, count: int, what: str, span: int) -> None:
        if count:
            return
        long = 10 * BLOCK_WINDOWS * span
        shorter = f", one of {long} letters, or a shorter --data.length" if span else ""
        raise DataFileError(
            f"--data.root {self.root} gives no {what} for {split}, which gets one tenth of the records, or "
            f"of each long record: give more records{shorter}"
        )
