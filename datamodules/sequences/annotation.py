"""Reads annotations of sequences: GFF and BED files by position, tables by record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataFileError
from datamodules.plain_text import text_lines
from datamodules.text.tables import table_rows

Interval = tuple[int, int]


class Coverage:
    """Which positions of a long array are in intervals; memory depends only on the number of intervals.

    Args:
        intervals: (n, 2) int64, [start, end) in any order; they may overlap.
    """

    def __init__(self, intervals: np.ndarray) -> None:
        ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
        reach = np.maximum.accumulate(ordered[:, 1])
        first = np.ones(len(ordered), dtype=bool)
        first[1:] = ordered[1:, 0] > reach[:-1]
        self.starts = ordered[first, 0]
        self.ends = reach[np.append(np.flatnonzero(first)[1:], len(ordered)) - 1] if len(ordered) else reach
        self.total = np.concatenate([[0], np.cumsum(self.ends - self.starts)])

    def before(self, places: np.ndarray) -> np.ndarray:
        """Number of covered positions before each of ``places`` (...)."""
        if not len(self.starts):
            return np.zeros_like(places)
        i = np.searchsorted(self.starts, places)
        beyond = np.where(i > 0, np.maximum(self.ends[np.maximum(i, 1) - 1] - places, 0), 0)
        return self.total[i] - beyond

    def within(self, starts: np.ndarray, span: int) -> np.ndarray:
        """Number of covered positions among the ``span`` positions from each of ``starts`` (...)."""
        return self.before(starts + span) - self.before(starts)


def runs_of(codes: np.ndarray, code: int) -> np.ndarray:
    """(n, 2) [start, end) of the runs of a code, found piece by piece."""
    piece, found = 2**20, []
    for first in range(0, len(codes), piece):
        is_code = np.concatenate([[False], codes[first : first + piece] == code, [False]])
        found.append(first + np.flatnonzero(np.diff(is_code)).reshape(-1, 2))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


class Features(NamedTuple):
    """The features in a file, by position."""

    kind: str  # type of the features; "" for BED
    found: dict[str, list[Interval]]  # [start, end) from 0, by record
    described: set[str]  # all records that the file mentions


def read_features(path: Path, kind: str | None) -> Features:
    """Features of a GFF3, GTF or BED file on either strand.

    Args:
        path: a file with .bed in its name is BED; all its lines count.
        kind: type to take (third column of GFF), such as CDS, gene or exon; None = CDS, or the only type that
            the file has.

    Raises:
        DataFileError: no file, a malformed line, or no such feature.
    """
    is_bed = ".bed" in path.name.lower()
    lines = list(_bed_lines(path) if is_bed else _gff_lines(path))
    kinds = {line[1] for line in lines}
    if is_bed:
        kind = ""
    elif kind is None:
        kind = kinds.copy().pop() if len(kinds) == 1 else "CDS"
    found: dict[str, list[Interval]] = {}
    for name, own, interval in lines:
        if own == kind:
            found.setdefault(name, []).append(interval)
    if not found:
        held = f"; it has {', '.join(sorted(kinds)[:8])}: name one with --data.feature" if kinds else ""
        expected = "BED" if is_bed else f"GFF3 with lines of type {kind}"
        raise DataFileError(
            f"{path} has no lines{f' of type {kind}' if kind else ''}: expected {expected}{held}"
        )
    return Features(kind, found, {line[0] for line in lines})


def _gff_lines(path: Path) -> Iterator[tuple[str, str, Interval]]:
    """(record, type, [start, end)) of each line, up to a sequence at the end of the file."""
    for number, line in enumerate(text_lines(path), start=1):
        line = line.rstrip("\r\n")
        if line.startswith((">", "##FASTA")):
            return
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) not in (8, 9) or not (fields[3].isdigit() and fields[4].isdigit()):
            raise DataFileError(
                f"{path}, line {number}: expected the nine columns of GFF3, got {line[:40]!r}"
            )
        yield fields[0], fields[2], (int(fields[3]) - 1, int(fields[4]))


def _bed_lines(path: Path) -> Iterator[tuple[str, str, Interval]]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        fields = line.split()
        if len(fields) < 3 or not (fields[1].isdigit() and fields[2].isdigit()):
            raise DataFileError(
                f"{path}, line {number}: expected BED: record, start, end, got {line[:40].rstrip()!r}"
            )
        yield fields[0], "", (int(fields[1]), int(fields[2]))


def read_labels(path: Path, columns: tuple[str, str]) -> dict[str, str]:
    """Class by record name, from two columns of a .csv, .tsv or .jsonl table.

    Raises:
        DataFileError: a row that cannot be read, or a record with two classes.
    """
    found: dict[str, str] = {}
    for name, label in table_rows(path, columns):
        if found.setdefault(name, label) != label:
            raise DataFileError(f"{path}: record {name} has two classes, {found[name]} and {label}")
    return found
