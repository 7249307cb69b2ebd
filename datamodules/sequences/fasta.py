"""Reads FASTA and GFF files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataFileError

BASES = "ACGTN"
N = 4
COMPLEMENT = np.array([3, 2, 1, 0, N], dtype=np.uint8)
AMBIGUOUS = "RYSWKMBDHV"
"""IUPAC's letters for more than one base: read as N."""


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain or gzipped, without line ends."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="ascii") if zipped else path.open(encoding="ascii") as file:
            for line in file:
                yield line.rstrip()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(f"{path} is a damaged gzip file ({error}): fetch it again") from None
    except UnicodeDecodeError:
        raise DataFileError(f"{path} is not text: expected FASTA or GFF, plain or gzipped") from None
    except OSError as error:
        raise DataFileError(f"{path} cannot be read ({error.strerror})") from None


def _table() -> np.ndarray:
    """(256,) uint8: byte -> base number, 5 for an ambiguous letter, 255 for anything else."""
    table = np.full(256, 255, dtype=np.uint8)
    for letters, code in (("A", 0), ("C", 1), ("G", 2), ("TU", 3), ("N", N), (AMBIGUOUS, 5)):
        for letter in letters + letters.lower():  # lower case marks repeats, which are ordinary bases
            table[ord(letter)] = code
    return table


TABLE = _table()


def base_codes(letters: str, where: str) -> tuple[np.ndarray, int]:
    """Letters of either case as (n,) uint8 in 0..4 (``BASES``; U is T), and the number of ambiguous ones, now
    N.

    Raises:
        DataFileError: a letter that is not a base, prefixed with ``where``.
    """
    codes = TABLE[np.frombuffer(letters.encode("ascii", "replace"), dtype=np.uint8)]
    if (codes == 255).any():
        place = int((codes == 255).argmax())
        raise DataFileError(
            f"{where} has {letters[place]!r} at position {place + 1}, which is no letter of DNA (A, C, G, "
            "T, U, N or "
            "another of IUPAC's): is it protein? Expected nucleotides"
        )
    ambiguous = codes == 5
    codes[ambiguous] = N
    return codes, int(ambiguous.sum())


def read_fasta(path: Path) -> dict[str, np.ndarray]:
    """Records by name (the first word of the header): (n,) uint8 codes in 0..4.

    Raises:
        DataFileError: no file, an empty file, no record, a duplicate name, sequence before the first header,
            or protein.
    """
    parts: dict[str, list[str]] = {}
    name = None
    for number, line in enumerate(_lines(path), start=1):
        if line.startswith(">"):
            name = (line[1:].split() or [f"record at line {number}"])[0]
            if name in parts:
                raise DataFileError(f"{path}, line {number}: a second record named {name}: rename one")
            parts[name] = []
        elif line and not line.startswith(";"):
            if name is None:
                raise DataFileError(
                    f"{path}, line {number}: sequence before any header: expected FASTA, which begins with >"
                )
            parts[name].append(line)
    if not parts:
        raise DataFileError(
            f"{path} holds no record: expected FASTA, a line that begins with > and then bases"
        )
    records, ambiguous = {}, 0
    for name, rows in parts.items():
        records[name], count = base_codes("".join(rows), f"{path}, record {name},")
        ambiguous += count
    if not any(map(len, records.values())):
        raise DataFileError(f"{path} has headers and no bases: expected sequence below each")
    if ambiguous:
        rank_zero_info(f"{path}: {ambiguous} letters stand for more than one base and are read as N")
    return records


def read_coding(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Coding sequences (CDS) of a GFF3 file on either strand: by record, [start, end) from 0.

    Raises:
        DataFileError: no file, a malformed line, or no CDS at all.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line == "##FASTA":
            break
        if not line or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 9 or not (fields[3].isdigit() and fields[4].isdigit()):
            raise DataFileError(
                f"{path}, line {number}: expected the nine columns of GFF3, got {line[:40]!r}"
            )
        if fields[2] == "CDS":
            found.setdefault(fields[0], []).append((int(fields[3]) - 1, int(fields[4])))
    if not found:
        raise DataFileError(f"{path} has no CDS line: expected a GFF3 annotation with coding sequence")
    return found


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """(..., n) codes as read from the other strand."""
    return COMPLEMENT[codes[..., ::-1]]


def to_tokens(codes: np.ndarray, k: int) -> np.ndarray:
    """(..., T * k) codes -> (..., T) int64.

    With k = 1 the bases (N is 4); otherwise k consecutive bases as one number in base 4, the first one most
    significant, and 4^k for any k-mer with an N.
    """
    if k == 1:
        return codes.astype(np.int64)
    words = codes.reshape(*codes.shape[:-1], -1, k).astype(np.int64)
    numbers = words @ 4 ** np.arange(k - 1, -1, -1)
    return np.where((words == N).any(-1), 4**k, numbers)
