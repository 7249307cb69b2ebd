"""Remarks on splits before training: missing classes and duplicate files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from datamodules.listing import printable
from datamodules.splits import Samples

MOST_FILES = 50_000
"""Maximum number of files to search for copies: the size of each has to be looked up."""
MOST_BYTES = 2**30
"""Maximum number of bytes read to compare files of equal size."""
HEAD = 4096
"""Bytes of each file that are compared first."""


def split_remarks(
    root: str, found: Mapping[str, Samples], names: Sequence[str], are_files: bool = True
) -> list[str]:
    """Remarks on the splits train, val and test of ``found``.

    Args:
        root: where the data comes from, for the text.
        found: samples (N,) and labels (N,) by split.
        names: class names.
        are_files: samples are paths, which are searched for duplicates.
    """
    chosen = {split: found[split] for split in ("train", "val", "test")}
    lines = [missing_classes({split: labels for split, (_, labels) in chosen.items()}, names)]
    if are_files:
        lines.append(copies({s: list(map(os.fsdecode, paths)) for s, (paths, _) in chosen.items()}))
    return [f"{printable(root)}: {line}" for line in lines if line]


def missing_classes(labels: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """One line that counts the classes without samples in a split; "" if there are none.

    Args:
        labels: by split, (N,) integers, -1 = unknown.
        names: class names.
    """
    remarks = []
    for split, known in labels.items():
        counts = np.bincount(known[known >= 0], minlength=len(names))
        if absent := [names[i] for i in np.flatnonzero(counts == 0).tolist()]:
            remarks.append(
                f"{len(absent)} of {len(names)} classes have no sample in {split} ({printable(absent)})"
            )
    return "; ".join(remarks)


def copies(files: Mapping[str, Sequence[str]]) -> str:
    """One line that counts files of val and test that are byte-identical to one of an earlier split, or "".

    Args:
        files: paths by split, in the order train, val, test. The same path in two splits is not a duplicate.
    """
    split_of: dict[str, str] = {}
    for split, paths in files.items():
        for path in paths:
            split_of.setdefault(path, split)
    if len(split_of) > MOST_FILES:
        return f"did not search for copies between splits: {len(split_of)} files, more than {MOST_FILES}"
    alike = _alike([[*split_of]], split_of, os.path.getsize)
    alike = _alike(alike, split_of, lambda path: _digest(path, HEAD))
    budget = MOST_BYTES
    same: list[list[str]] = []
    for group in alike:
        budget -= sum(os.path.getsize(path) for path in group)
        if budget < 0:
            break
        same += _alike([group], split_of, _digest)
    order = list(files)
    found: dict[str, list[tuple[str, str]]] = {}
    for group in same:
        first = min(group, key=lambda path: order.index(split_of[path]))
        for path in group:
            if split_of[path] != split_of[first]:
                found.setdefault(split_of[path], []).append((path, first))
    if not found:
        return ""
    counts = " and ".join(f"{len(found[split])} files of {split}" for split in order if split in found)
    path, first = next(found[split][0] for split in order if split in found)
    least = "" if budget >= 0 else "at least "
    return (
        f"{least}{counts} are copies of files in another split, such as {printable(path)} of "
        f"{printable(first)} ({split_of[first]}): results on them are too good"
    )


def copied_samples(samples: Iterable[tuple[str, bytes]], what: str) -> str:
    """One line that counts samples of val and test that are equal to one of an earlier split, or "".

    Args:
        samples: split and content of each.
        what: plural noun for them: "documents".
    """
    contents: dict[str, Counter[bytes]] = {split: Counter() for split in ("train", "val", "test")}
    for split, content in samples:
        contents[split][hashlib.blake2b(content, digest_size=16).digest()] += 1
    earlier: set[bytes] = set()
    counts = []
    for split, found in contents.items():
        if count := sum(found[key] for key in found.keys() & earlier):
            counts.append(f"{count} of {found.total()} {what} of {split}")
        earlier |= found.keys()
    if not counts:
        return ""
    return f"{' and '.join(counts)} are copies of {what} in another split: results on them are too good"


def _alike(
    groups: Iterable[list[str]], split_of: Mapping[str, str], key: Callable[[str], object]
) -> list[list[str]]:
    """Split each group by ``key``; keep the parts with files of more than one split."""
    found = []
    for group in groups:
        pieces: dict[object, list[str]] = {}
        for path in group:
            try:
                pieces.setdefault(key(path), []).append(path)
            except OSError:  # a file that is gone is reported when it is read
                continue
        found += [piece for piece in pieces.values() if len({split_of[path] for path in piece}) > 1]
    return found


def _digest(path: str, most: int = -1) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(most)).digest()
