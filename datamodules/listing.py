"""Lists the data files below a folder, for every modality.

Hidden files and leftovers of other programs are skipped, by one rule for all data. Links are followed. Other
files are counted and reported, so that nothing is ignored silently.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import readable

NOT_DATA = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""Folders that other programs create; some contain copies of the data."""

NO_CLASS = ("_background_noise_",)
"""Folders next to class folders that are not classes (Speech Commands): skipped and reported."""

MOST_SIZES = 10_000
"""Maximum number of files whose sizes go into a fingerprint: checking a million files takes minutes."""


class Tree(NamedTuple):
    """The contents of a folder. Paths are relative to ``root``, with "/" as separator."""

    root: str
    what: str  # plural noun for the files in messages: "images"
    files: list[str]  # files of each folder before those of its sub-folders, sorted
    folders: list[str]  # same order; includes folders without files
    others: Counter[str]  # other files, counted by extension

    def path(self, name: str = "") -> str:
        return os.path.join(self.root, name) if name else self.root


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped: its name starts with a dot (``._x.jpg``,
    ``.ipynb_checkpoints``) or is in ``NOT_DATA``.
    """
    return name.startswith(".") or name in NOT_DATA


def hidden_below(path: PurePath, root: PurePath) -> bool:
    """Whether ``path``, or any folder between ``root`` and it, is hidden."""
    return any(map(is_hidden, path.relative_to(root).parts))


def list_tree(root: str, what: str, wanted: Callable[[str], bool]) -> Tree:
    """All files below ``root`` for which ``wanted(path)`` is true, in a fixed order.

    A link back to a parent folder is not followed. Broken links are counted among the other files.
    """
    tree = Tree(root, what, [], [], Counter())

    def visit(folder: str, below: str, parents: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in parents:
            return
        with readable(folder), os.scandir(folder) as scan:
            entries = sorted((e for e in scan if not is_hidden(e.name)), key=lambda e: os.fsencode(e.name))
        folders = [e for e in entries if e.is_dir()]
        for entry in entries:
            if not entry.is_dir():
                if not entry.is_file():
                    tree.others["broken links"] += 1
                elif wanted(entry.path):
                    tree.files.append(below + entry.name)
                else:
                    tree.others[os.path.splitext(entry.name)[1].lower() or "without an extension"] += 1
        for entry in folders:
            if entry.name in NO_CLASS:
                tree.others[f"in {entry.name}"] += len(os.listdir(entry.path))
                continue
            tree.folders.append(below + entry.name)
            visit(entry.path, f"{below}{entry.name}/", (*parents, real))

    visit(root, "", ())
    return tree


def left_out(tree: Tree) -> str:
    """One line that counts the ignored files by extension; empty if there are none."""
    total = sum(tree.others.values())
    if not total:
        return ""
    most = tree.others.most_common(8)
    rest = total - sum(count for _, count in most)
    counts = ", ".join(f"{count} {printable(kind)}" for kind, count in most)
    more = f", {rest} others" if rest else ""
    return f"{printable(tree.root)}: ignored files that are not {tree.what}: {counts}{more}"


def fingerprint(root: str, files: Sequence[str]) -> dict[str, Any]:
    """``count`` and ``digest`` of files, to detect changes since an earlier start.

    The digest hashes names and sizes of at most ``MOST_SIZES`` files, evenly spaced. Contents are not read.
    """
    digest = hashlib.sha256()
    for name in files:
        digest.update(os.fsencode(name) + b"\0")
    for i in np.linspace(0, len(files) - 1, min(len(files), MOST_SIZES)).astype(int).tolist():
        digest.update(b"%d " % os.path.getsize(os.path.join(root, files[i])))
    return {"count": len(files), "digest": digest.hexdigest()[:32]}


def difference(root: str | None, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """How two fingerprints of the files in ``root`` differ, in words; "" if they do not or one is unknown."""
    if not before or not now or before == now:
        return ""
    return (
        f"the files of {root} have changed since the checkpoint was written ({before['count']} then, "
        f"{now['count']} now, or other names or sizes)"
    )


def printable(names: str | Sequence[str], most: int = 5) -> str:
    """The first few file names for a message, with unprintable bytes and escape sequences made visible."""
    if isinstance(names, str):
        text = os.fsencode(names).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    shown = ", ".join(map(printable, names[:most]))
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")
