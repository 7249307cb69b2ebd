"""Reads FASTA files: one byte per letter, all records in one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataFileError
from datamodules.listing import hidden_below
from datamodules.plain_text import text_lines
from datamodules.sequences.alphabets import Alphabet

DERIVED = "_from_genomic."
"""Parts of the names of NCBI files that repeat parts of a genome (``..._cds_from_genomic.fna``)."""


class Records:
    """The sequences of one or more files, concatenated.

    Attributes:
        names: the first word of each record's header.
        files: (R,) number of the file that each record comes from.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.files: list[int] = []
        self._letters = bytearray()
        self._starts: list[int] = []
        self._known: set[str] = set()

    @property
    def codes(self) -> np.ndarray:
        """(total,) uint8 letters of all records."""
        return np.frombuffer(self._letters, np.uint8)

    @property
    def starts(self) -> np.ndarray:
        """(R + 1,) int64: record i is ``codes[starts[i] : starts[i + 1]]``."""
        return np.array([*self._starts, len(self._letters)])

    def __getitem__(self, i: int) -> np.ndarray:
        stop = self._starts[i + 1] if i + 1 < len(self._starts) else len(self._letters)
        return self.codes[self._starts[i] : stop]

    def begin(self, name: str, file: int, where: str) -> None:
        """Add an empty record.

        Raises:
            DataFileError: a record of this name exists.
        """
        if name in self._known:
            raise DataFileError(f"{where}: a second record named {name}: rename one")
        self._known.add(name)
        self.names.append(name)
        self.files.append(file)
        self._starts.append(len(self._letters))

    def add(self, codes: bytes) -> None:
        """Add letters to the last record."""
        self._letters += codes

    def size(self) -> int:
        """Letters of the last record so far."""
        return len(self._letters) - self._starts[-1]


def read_fasta(path: Path, alphabet: Alphabet, records: Records, number: int = 0) -> None:
    """Add the records of a FASTA file to ``records``; ``number`` is the file's number.

    Raises:
        DataFileError: no file, an empty file, no record, a name twice, sequence before the first header, or
            another alphabet.
    """
    before, ambiguous = len(records.names), 0
    for line_number, line in enumerate(text_lines(path), start=1):
        line = line.strip()
        if line.startswith(">"):
            name = (line[1:].split() or [f"record at line {line_number}"])[0]
            records.begin(name, number, f"{path}, line {line_number}")
        elif line and not line.startswith(";"):
            if len(records.names) == before:
                raise DataFileError(
                    f"{path}, line {line_number}: sequence before any header: expected FASTA, which begins "
                    "with >"
                )
            where = f"{path}, record {records.names[-1]},"
            codes, count = alphabet.codes(line, where, records.size())
            records.add(codes)
            ambiguous += count
    if len(records.names) == before:
        raise DataFileError(
            f"{path} contains no record: expected FASTA, a line that begins with > and then letters"
        )
    if records.starts[before] == len(records.codes):
        raise DataFileError(f"{path} has headers but no letters: expected a sequence below each")
    if ambiguous:
        unknown = alphabet.letters[alphabet.unknown]
        rank_zero_info(f"{path}: {ambiguous} ambiguous letters are read as {unknown}")


def sequence_files(root: Path, patterns: Sequence[str], endings: Sequence[str], option: str) -> list[Path]:
    """``root`` itself if it is a file, otherwise the files below it that match, sorted.

    Args:
        root: a file or a folder.
        patterns: glob patterns; if empty, files at any depth with one of ``endings``.
        endings: extensions of the files to read, each also followed by ``.gz``.
        option: name of the option for ``root``, for messages.

    Raises:
        DataFileError: ``root`` does not exist, or nothing in it matches.
    """
    root = root.expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataFileError(f"{option} {root} does not exist: expected a file or a folder")
    globs = patterns or [f"**/*{ending}{zipped}" for ending in endings for zipped in ("", ".gz")]
    matching = {path for pattern in globs for path in root.glob(pattern)}
    found = sorted(path for path in matching if path.is_file() and not hidden_below(path, root))
    if not found:
        raise DataFileError(f"{option} {root} contains no file that matches {', '.join(globs)}")
    derived = [path for path in found if DERIVED in path.name]
    if patterns or not derived or len(derived) == len(found):
        return found
    rank_zero_info(
        f"{root}: {', '.join(path.name for path in derived)} are left out: they repeat parts of the genome "
        "(give --data.files to read them)"
    )
    return [path for path in found if path not in derived]
