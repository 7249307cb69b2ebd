"""One rule for splits of images, audio, text and FASTA (docs/data/splits.md).

Folders, list files or file names give the splits; a missing split is held out of the training samples.
Hold-outs are drawn with a constant seed, never with the run's, so that different runs are evaluated on the
same samples.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import ConfigError, DataFileError
from datamodules.listing import Tree, is_hidden, printable

Split = Literal["train", "bank", "val", "test"]

SPLIT_SEED = 0
"""Seed of every hold-out in this file."""

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabeled": ("unlabeled", "unlabelled", "unsup", "unsupervised"),
}
"""Common names of the splits, including Hugging Face's and those of unlabeled data; case is ignored."""

SPLIT_OF = {
    name + end: split for split, names in NAMES.items() for name in names for end in ("", "set", "data")
}

FILLERS = frozenset(
    (
        *("set", "data", "dataset", "split", "list", "file", "files", "seg", "text", "texts"),
        *("image", "images", "img", "imgs", "audio", "wav", "wavs", "clip", "clips"),
    )
)
"""Words that may accompany the name of a split: ``training_set``, ``seg_train``, ``test-images``."""

MOST_SPLITS = 12
"""More sibling folders than this are not splits, whatever they contain."""

PAGE = "docs/data/splits.md"


# ---- names -------------------------------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    """The words of a name in lower case: ``TrainSet-2017`` contains train and set."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+", name)]


def splits_in(name: str) -> set[str]:
    """The splits named by the words of a name; "train unlabeled" is unlabeled."""
    found = {SPLIT_OF[word] for word in _words(name) if word in SPLIT_OF}
    return found - {"train"} if "unlabeled" in found else found


def split_named(name: str) -> str | None:
    """The split that a whole name denotes (``Training``, ``test_set``, ``val2017``); None for other names."""
    words = [word for word in _words(name) if word not in FILLERS]
    found = splits_in(name)
    return found.pop() if len(found) == 1 and all(word in SPLIT_OF for word in words) else None


# ---- given splits ------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """The files of one split, and the folder that contains their class folders: "" or "train/"."""

    folder: str
    files: list[str]

    def children(self) -> dict[str, set[str]]:
        """Sub-folders that contain files, each with the names of its own sub-folders."""
        found: dict[str, set[str]] = {}
        for file in self.files:
            parts = file[len(self.folder) :].split("/", 2)
            if len(parts) > 1:
                found.setdefault(parts[0], set()).update(parts[1:2] if len(parts) > 2 else ())
        return found

    def direct(self) -> list[str]:
        """Files directly in the folder."""
        return [file for file in self.files if "/" not in file[len(self.folder) :]]

    def below(self, name: str) -> Part:
        folder = f"{self.folder}{name}/"
        return Part(folder, [file for file in self.files if file.startswith(folder)])

    def unwrapped(self) -> Part:
        """The only sub-folder, if it contains nothing but folders: a tree nested one level too deep."""
        children = self.children()
        if len(children) != 1 or self.direct():
            return self
        inner = self.below(*children)
        return self if inner.direct() else inner


def given_splits(tree: Tree, classes: bool = True, lists: bool = True) -> dict[str, Part]:
    """The files by split: "train", and those of "val", "test" and "unlabeled" that exist.

    The first matching rule applies; if none does, all files are "train":
        folders: named after splits, "train" among them, at the top or below a single folder.
        list files: ``testing_list.txt``, ``val.txt``, ... at the top, with one path per line. A file in no
        list is "train".
        file names: every one contains the name of a split (``train_001.png``, ``a.valid.txt``); or files at
        the top are named only after splits (``train.fa``, ``test.fa``).

    Args:
        tree: all files.
        classes: folders below the splits are classes, so sibling folders with the same sub-folder names
            cannot be classes themselves.
        lists: read list files; False if text files are the data.

    Raises:
        DataFileError: folders that may be splits or classes, or a split that occurs twice.
    """
    whole = Part("", tree.files)
    while True:
        if found := _split_folders(tree, whole, classes):
            return found
        if found := (_listed_splits(tree, whole) if lists else {}) or _named_files(tree, whole):
            return found
        inner = whole.unwrapped()
        if inner is whole:
            return {"train": whole}
        rank_zero_info(f"{tree.root}: all {tree.what} are in {inner.folder}, which is used as the root")
        whole = inner


def split_of_files(root: Path, files: Sequence[Path], what: str) -> dict[Path, str]:
    """The split of each file that has one, in the order of ``files``; all are "train" if none is named.

    List files and class folders are not considered.

    Args:
        root: the folder that contains the files, or the only file.
        files: the files to read.
        what: plural noun for them in messages.
    """
    if root.is_file():
        return dict.fromkeys(files, "train")
    names = {file.relative_to(root).as_posix(): file for file in files}
    parts = given_splits(Tree(str(root), what, list(names), [], Counter()), classes=False, lists=False)
    found = {names[name]: split for split, part in parts.items() for name in part.files}
    return {file: found[file] for file in files if file in found}


def _split_folders(tree: Tree, whole: Part, classes: bool) -> dict[str, Part]:
    children, where = whole.children(), printable(tree.path(whole.folder))
    named = {name: split for name in children if (split := split_named(name))}
    splits = list(named.values())
    rest = {name: below for name, below in children.items() if name not in named}
    if len(children) > 1 and len(named) > 1 and "train" not in splits:
        raise DataFileError(
            f"{where} contains folders named after splits ({printable(list(named))}), but none for train: "
            f"name one of them train, or give another --data.root ({PAGE})"
        )
    if "train" not in splits or (len(named) == 1 and rest):
        if classes:
            _check_classes(children, named, where)
        return {}
    if len(set(splits)) < len(splits):
        raise DataFileError(
            f"{where} contains more than one folder for the same split ({printable(list(named))}): keep one "
            f"folder each for train, val, test and unlabeled ({PAGE})"
        )
    parts = {split: whole.below(name) for name, split in named.items()}
    train = children[next(name for name, split in named.items() if split == "train")]
    alike = [name for name, below in rest.items() if below == train or _same_classes(below, train)]
    if alike:
        raise DataFileError(
            f"{where} contains folders named after splits ({printable(list(named))}) and similar ones "
            f"({printable(alike)}): name these val, test or unlabeled, or move them elsewhere ({PAGE})"
        )
    left = {name: sum(file.startswith(f"{whole.folder}{name}/") for file in whole.files) for name in rest}
    if direct := len(whole.direct()):
        left["the folder itself"] = direct
    if left:
        counts = ", ".join(f"{count} in {printable(name)}" for name, count in left.items())
        rank_zero_info(f"{where}: {tree.what} that belong to no split are left out: {counts}")
    return {split: part.unwrapped() if classes else part for split, part in parts.items()}


def _same_classes(one: set[str], two: set[str]) -> bool:
    """Whether folders with these sub-folders could be two splits of the same classes."""
    common = len(one & two)
    return common >= 2 and 2 * common >= min(len(one), len(two))


def _check_classes(children: Mapping[str, set[str]], named: Mapping[str, str], where: str) -> None:
    """Raise DataFileError if the folders that would be classes look like splits."""
    with_folders = [name for name, below in children.items() if len(below) > 1]
    for one, two in combinations(with_folders if len(children) <= MOST_SPLITS else (), 2):
        if _same_classes(children[one], children[two]):
            both = sorted(children[one] & children[two])
            raise DataFileError(
                f"{where}: the folders {printable(one)} and {printable(two)} contain folders with the same "
                f"names ({printable(both)}): if they are splits, name them train, val, test or unlabeled; if "
                f"they are classes, move all classes into a folder train ({PAGE})"
            )
    if len(children) > 1 and with_folders and set(with_folders) == set(named):
        other = printable([name for name in children if name not in named])
        raise DataFileError(
            f"{where}: {printable(with_folders)} is named after a split and contains folders, but {other} "
            f"next to it contains none: name that one val, test or unlabeled; if both are classes, move them "
            f"into a folder train ({PAGE})"
        )


def _listed_splits(tree: Tree, whole: Part) -> dict[str, Part]:
    """Splits by list files in the folder: relative paths, one per line, with or without extension.

    Anything after a space, such as a label, is ignored.
    """
    folder = tree.path(whole.folder)
    own = {os.path.basename(file) for file in whole.direct()}
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name) and name not in own)
    lists = {name: split_named(name[:-4]) for name in names if name.lower().endswith(".txt")}
    split_of: dict[str, str] = {}
    known = {file[len(whole.folder) :]: file for file in whole.files}
    known = {os.path.splitext(name)[0]: file for name, file in known.items()} | known
    for name, split in lists.items():
        if split is None:
            continue
        with open(os.path.join(folder, name), encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip().removeprefix("./") for line in file if line.strip()]
        found = [known.get(line) or known.get(line.split()[0]) for line in lines]
        here = [path for path in found if path is not None]
        where = printable(os.path.join(folder, name))
        if not here:
            raise DataFileError(
                f"{where}: its {len(lines)} lines name no {tree.what} in {printable(folder)}. Expected paths "
                f"relative to that folder; rename the file if it is not the list of a split ({PAGE})"
            )
        if len(here) < len(lines):
            missing = next(line for line, path in zip(lines, found, strict=True) if path is None)
            rank_zero_info(
                f"{where}: {len(lines) - len(here)} of {len(lines)} files do not exist, such as {missing}"
            )
        for path in here:
            if split_of.setdefault(path, split) != split:
                raise DataFileError(
                    f"{where} lists {printable(path)}, which is also in a list of {split_of[path]}"
                )
    if not split_of:
        return {}
    without = [file for file in whole.files if file not in split_of]
    if "train" not in split_of.values():
        split_of.update(dict.fromkeys(without, "train"))
    elif without:
        rank_zero_info(f"{printable(folder)}: {len(without)} {tree.what} that are in no list are left out")
    return _grouped(whole, split_of)


def _named_files(tree: Tree, whole: Part) -> dict[str, Part]:
    """Splits by file names: of all files, or of those named only after a split."""
    split_of: dict[str, str] = {}
    for file in whole.files:
        splits = splits_in(os.path.basename(file))
        if len(splits) != 1:
            break
        split_of[file] = splits.pop()
    else:
        return _grouped(whole, split_of) if {"train"} < set(split_of.values()) else {}
    direct = whole.direct()
    exact = {file: split for file in direct if (split := split_named(_stem(file)))}
    if not {"train"} < set(exact.values()):
        return {}
    if without := [file for file in whole.files if file not in exact]:
        rank_zero_info(
            f"{printable(tree.root)}: {len(without)} {tree.what} that belong to no split are left out: "
            f"{printable(without)}"
        )
    return _grouped(whole, exact)


def _stem(file: str) -> str:
    """A file's name up to its first dot."""
    return os.path.basename(file).partition(".")[0]


def _grouped(whole: Part, split_of: Mapping[str, str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for file in whole.files:
        if file in split_of:
            parts.setdefault(split_of[file], Part(whole.folder, [])).files.append(file)
    return parts


# ---- hold-outs ---------------------------------------------------------------------------------------------

Samples = tuple[np.ndarray, np.ndarray]
"""Samples (N,), such as paths or indices, and their labels (N,), -1 = unknown."""


def complete_splits(
    parts: Mapping[str, Samples],
    what: str,
    fractions: Mapping[str, float],
    hold_out_test: bool,
    train_on_val: bool = False,
) -> dict[str, Samples]:
    """train, bank, val and test, derived from the given splits.

    If only one of val and test is given, it is reported as test, as is usual for ImageNet's 50,000 validation
    images, and val is held out of train. If neither is given, test is held out too.

    Args:
        parts: "train", and those of "val", "test" and "unlabeled" that exist. "unlabeled" joins train and no
            other split.
        what: what the samples are and where, for messages: "images in DIR".
        fractions: ``val_fraction`` and ``test_fraction``.
        hold_out_test: False uses val as test too, for data that is not evaluated.
        train_on_val: train also includes the samples of val.

    Raises:
        ConfigError: too few samples to split.
    """
    splits = {split: part for split, part in parts.items() if split != "unlabeled"}
    if len(splits) == 2 and "val" in splits:
        splits["test"] = splits.pop("val")
    if len(splits) == 1 and hold_out_test:
        splits["train"], splits["test"] = _hold_out(splits["train"], what, "test_fraction", fractions)
    if "val" not in splits:
        splits["train"], splits["val"] = _hold_out(splits["train"], what, "val_fraction", fractions)
    splits.setdefault("test", splits["val"])
    splits["bank"] = splits["train"]
    joined = [splits["train"], *([splits["val"]] if train_on_val else [])]
    joined += [parts["unlabeled"]] if "unlabeled" in parts else []
    if len(joined) > 1:
        splits["train"] = (np.concatenate([x for x, _ in joined]), np.concatenate([y for _, y in joined]))
    return splits


def _hold_out(part: Samples, what: str, name: str, fractions: Mapping[str, float]) -> tuple[Samples, Samples]:
    samples, labels = part
    size = round(fractions[name] * len(labels))
    if not 0 < size < len(labels):
        raise ConfigError(f"{name} {fractions[name]} of {len(labels)} {what} is {size}: cannot split")
    kept, held = stratified_holdout(labels, size)
    return (samples[kept], labels[kept]), (samples[held], labels[held])


def stratified_holdout(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``size`` samples, stratified by class (largest remainder) and fixed by ``SPLIT_SEED``.

    Args:
        labels: (N,) integers; if all are equal (unlabeled data) the choice is uniformly random.
        size: samples to hold out, at most N.

    Returns:
        Sorted indices (N - size,) to keep and (size,) to hold out.
    """
    rng = np.random.RandomState(
        SPLIT_SEED
    )  # legacy generator: NumPy guarantees that its stream never changes
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * size / len(labels)
    quota = np.floor(share).astype(np.int64)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    held = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, quota, strict=True):
        held[rng.permutation(np.flatnonzero(labels == label))[:n]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
