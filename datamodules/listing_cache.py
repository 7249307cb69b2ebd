"""The listing of a large folder, made once for all processes, and kept until the folder changes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from datamodules.listing import Tree, list_tree
from datamodules.preparing import alone_in
from runtime.files import write_bytes

MANY = 50_000
"""Files above which a listing is kept: scanning fewer takes seconds even on a shared file system."""

SETTLED = 2.0
"""Seconds between the last change of a folder and a listing that is kept: a change within the same tick of
the file system's clock would not be noticed.
"""


def listed(root: str, what: str, wanted: Callable[[str], bool], kinds: Iterable[str]) -> Tree:
    """As ``list_tree``; of a folder with many files the listing that another process or run has made.

    It lies in ``lightning-ssl/listings`` of the user's cache folder ($XDG_CACHE_HOME, or ~/.cache) and counts
    as long as no folder below ``root`` has changed, which a look at each of them tells. Processes of a run
    ask one after the other, so that the first one scans and the others find what it has listed.

    Args:
        root, what, wanted: see ``list_tree``.
        kinds: endings that ``wanted`` goes by; with others the listing is made anew.
    """
    key = json.dumps([os.path.realpath(root), root, what, sorted(kinds)])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "lightning-ssl" / "listings" / hashlib.sha256(key.encode()).hexdigest()[:16]
    file = folder / "tree.json.gz"
    if (tree := _kept(file, root, what)) is not None:
        return tree
    several = {"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys()
    if several:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, quietly=True) if several else nullcontext():
        if (tree := _kept(file, root, what)) is not None:
            return tree
        begin = time.time_ns()
        tree = list_tree(root, what, wanted)
        if len(tree.files) > MANY:
            _keep(file, tree, begin)
        return tree


def _keep(file: Path, tree: Tree, begin: int) -> None:
    """Where the cache cannot be written, nothing is kept."""
    with suppress(OSError):
        changed = _changed(tree)
        if max(changed) > begin - SETTLED * 1e9:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"changed": changed, "files": tree.files, "folders": tree.folders, "others": tree.others}
        write_bytes(file, gzip.compress(json.dumps(content).encode(), compresslevel=1))


def _kept(file: Path, root: str, what: str) -> Tree | None:
    """The listing, unless there is none, it is damaged, or a folder has changed since."""
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        tree = Tree(root, what, content["files"], content["folders"], Counter(content["others"]))
        return tree if _changed(tree) == content["changed"] else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _changed(tree: Tree) -> list[int]:
    """When ``root`` and each folder below it were changed: nanoseconds."""
    return [os.stat(tree.path(folder)).st_mtime_ns for folder in ("", *tree.folders)]
