"""Labels of sequences: by position, from features, or by record, from a file's name or a table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataFileError
from datamodules.listing import printable
from datamodules.sequences.annotation import Coverage, read_features, read_labels
from datamodules.sequences.fasta import Records, sequence_files
from datamodules.text.corpus import class_list

POSITIVE = 0.5
"""A window is positive with at least this share of its letters in features, negative with none."""

ANNOTATIONS = (".gff", ".gff3", ".gtf", ".bed")
"""Extensions of files with features."""


class Labels(NamedTuple):
    """Labels of windows or of whole records."""

    names: tuple[str, ...]
    of_record: np.ndarray  # (R,) int64, -1 = unknown
    features: Coverage | None = None  # in which windows are positive

    def of(self, record: np.ndarray, starts: np.ndarray, span: int) -> np.ndarray:
        """(B,) int64 labels of windows: records (B,) and first letters (B,)."""
        labels = self.of_record[record]
        if self.features is None:
            return labels
        inside = self.features.within(starts, span)
        placed = np.where(inside >= POSITIVE * span, 1, np.where(inside == 0, 0, -1))
        return np.where(labels < 0, -1, placed)


def unlabeled(records: int) -> Labels:
    return Labels((), np.full(records, -1))


def made_up_labels(records: Records, places: bool) -> Labels:
    """Two classes: the first half of each record and the rest, or the two files."""
    if not places:
        return Labels(("one", "two"), np.array(records.files))
    starts = records.starts[:-1]
    halves = np.stack([starts, starts + np.diff(records.starts) // 2], 1)
    return Labels(_names("CDS"), np.zeros(len(starts), np.int64), Coverage(halves))


def _names(kind: str) -> tuple[str, str]:
    return {"CDS": ("non-coding", "coding"), "": ("outside", "inside")}.get(kind, (f"no {kind}", kind))


def _tell_absent(where: Path, records: list[str], known: set[str]) -> None:
    """Print how many records a file does not mention, and which unknown records it mentions."""
    if absent := [name for name in records if name not in known]:
        others = sorted(known - set(records))
        rank_zero_info(
            f"{where}: {len(absent)} of {len(records)} records are not in it and have no label: "
            f"{printable(absent, 3)}" + (f"; it has others: {printable(others, 3)}" if others else "")
        )


def labels_of_table(records: Records, table: Path, columns: tuple[str, str]) -> Labels:
    """The class of each record in a table; see ``read_labels``.

    Raises:
        DataFileError: a table that cannot be used, or of other records.
    """
    known = read_labels(table, columns)
    found = [known.get(name) for name in records.names]
    if not any(label is not None for label in found):
        raise DataFileError(
            f"--data.labels {table} contains none of the records {printable(records.names, 3)}"
        )
    _tell_absent(table, records.names, set(known))
    names = class_list(found)
    return Labels(names, np.array([-1 if label is None else names.index(label) for label in found]))


def labels_of_places(records: Records, gff: Path, kind: str | None) -> Labels:
    """Labels of windows inside or outside of features, for records in an annotation (``read_features``).
    Raises:
        DataFileError: files that cannot be used, or of other records.
    """
    starts, sizes = records.starts[:-1].tolist(), np.diff(records.starts).tolist()
    number = {name: i for i, name in enumerate(records.names)}
    intervals: list[tuple[int, int]] = []
    described: set[str] = set()
    for path in sequence_files(gff, (), ANNOTATIONS, "--data.gff"):
        features = read_features(path, kind)
        described |= features.described
        for i, pieces in ((number[n], pieces) for n, pieces in features.found.items() if n in number):
            inside = ((start, min(end, sizes[i])) for start, end in pieces if start < sizes[i])
            intervals += [(starts[i] + start, starts[i] + end) for start, end in inside]
    if not intervals:
        what = features.kind or "line"
        raise DataFileError(f"--data.gff {gff} has no {what} of the records {printable(records.names, 3)}")
    _tell_absent(gff, records.names, described)
    of_record = np.array([0 if name in described else -1 for name in records.names])
    return Labels(_names(features.kind), of_record, Coverage(np.array(intervals, np.int64)))
