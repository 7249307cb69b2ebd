"""Labeled files in one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataFileError
from datamodules.listing import Tree, printable
from datamodules.splits import Part, given_splits, split_named


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
            f"{where} contains both {tree.what} ({printable([os.path.basename(file) for file in direct])}) "
            f"and folders with {tree.what} ({printable(children)}): move the former into a class folder, or "
            f"give --data.labeled false to use all {tree.what} without labels"
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


def _without_unlabeled(parts: Mapping[str, Part]) -> Mapping[str, Part]:
    """Move a folder named "unlabeled" among the classes of "train", as in IMDB, to the split "unlabeled"."""
    train = parts["train"]
    names = [name for name in train.children() if split_named(name) == "unlabeled"]
    if not names or len(train.children()) - len(names) < 2:
        return parts
    folders = tuple(f"{train.folder}{name}/" for name in names)
    moved = [file for file in train.files if file.startswith(folders)]
    kept = [file for file in train.files if not file.startswith(folders)]
    given = parts["unlabeled"].files if "unlabeled" in parts else []
    return {**parts, "train": Part(train.folder, kept), "unlabeled": Part("", [*given, *moved])}


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
    if labeled:
        parts = _without_unlabeled(parts)
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
        rank_zero_info(f"{printable(tree.root)}: {count} are used for pre-training without labels")
        made["unlabeled"] = (unlabeled.files, np.full(len(unlabeled.files), -1))
    return made, tuple(map(printable, classes)) if known else ()


def classes_of_files(root: Path, files: Sequence[Path], what: str) -> tuple[dict[Path, str], dict[Path, str]]:
    """The split and the class of files, from their folders and, for splits, names; files without are absent.

    Args:
        root: the folder that contains the files.
        files: the files to read.
        what: plural noun for them in messages.

    Raises:
        DataFileError: as for ``labeled_parts``, or no class folders.
    """
    if root.is_file():
        raise DataFileError(f"--data.root {root} is a file: class folders need a folder")
    paths = {file.relative_to(root).as_posix(): file for file in files}
    tree = Tree(str(root), what, list(paths), [], Counter())
    parts, names = labeled_parts(tree, given_splits(tree, lists=False), labeled=True)
    if not names:
        raise DataFileError(f"{printable(str(root))} contains no class folders: expected DIR/CLASS/FILE")
    splits = {paths[file]: split for split, (members, _) in parts.items() for file in members}
    labels = {
        paths[file]: names[label]
        for members, numbers in parts.values()
        for file, label in zip(members, numbers.tolist(), strict=True)
        if label >= 0
    }
    return {file: splits[file] for file in files if file in splits}, labels
