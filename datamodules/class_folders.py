"""Labeled files in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataFileError
from datamodules.listing import Tree, printable
from datamodules.splits import Part


def by_class(tree: Tree, part: Part, labeled: bool) -> dict[str, list[str]]:
    """Files grouped by class folder; without labels, all under the empty name.

    Raises:
        DataFileError: files next to class folders, or class folders without files.
    """
    children, direct = list(part.children()), part.direct()
    if not labeled or not children:
        return {"": part.files}
    where = printable(tree.path(part.folder))
    if direct:
        raise DataFileError(
            f"{tree.what} ({printable([os.path.basename(file) for file in direct])}) lie beside folders with "
            f"{tree.what} ({printable(children)}) in {where}: move them into a class folder, or give "
            "--data.labeled false to use all of them without labels"
        )
    empty = [
        name[len(part.folder) :]
        for name in tree.folders
        if name.startswith(part.folder)
        and "/" not in name[len(part.folder) :]
        and name[len(part.folder) :] not in children
    ]
    if empty:
        raise DataFileError(
            f"class folders without {tree.what} in {where}: {printable(empty)}; with {tree.what}: "
            f"{printable(children)}. Remove the empty ones or fill them, or give --data.labeled false"
        )
    found: dict[str, list[str]] = {name: [] for name in children}
    for file in part.files:
        found[file[len(part.folder) :].split("/", 1)[0]].append(file)
    return found


def labeled_parts(
    tree: Tree, parts: Mapping[str, Part], labeled: bool
) -> tuple[dict[str, tuple[list[str], np.ndarray]], tuple[str, ...]]:
    """Files and labels (N,) of each given split, class by class, and the class names.

    All labels are -1 in "unlabeled", and everywhere if there is only a single class.

    Args:
        tree: all files.
        parts: the files of each split, from ``given_splits``.
        labeled: False ignores labels.

    Raises:
        DataFileError: a layout that ``by_class`` rejects, or a split whose classes differ from those of
            "train".
    """
    found = {split: by_class(tree, part, labeled) for split, part in parts.items() if split != "unlabeled"}
    classes = sorted(found["train"], key=os.fsencode)
    for split, files in found.items():
        if set(files) != set(classes):
            extra, absent = (
                printable([name or "(no class folder)" for name in sorted(set(one) - set(two))]) or "none"
                for one, two in ((files, classes), (classes, files))
            )
            raise DataFileError(
                f"the classes of {split} and train differ in {printable(tree.root)}: only in {split}: "
                f"{extra}; only in train: {absent}"
            )
    known = len(classes) > 1
    made = {}
    for split, files in found.items():
        counts = [len(files[name]) for name in classes]
        labels = np.repeat(np.arange(len(classes)) if known else -1, counts)
        made[split] = ([file for name in classes for file in files[name]], labels)
    if unlabeled := parts.get("unlabeled"):
        count = f"{len(unlabeled.files)} {tree.what} of the split unlabeled"
        rank_zero_info(f"{printable(tree.root)}: {count} join pre-training without labels")
        made["unlabeled"] = (unlabeled.files, np.full(len(unlabeled.files), -1))
    return made, tuple(map(printable, classes)) if known else ()
