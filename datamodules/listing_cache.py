"""Caches the listing of a large folder: made once for all processes, valid until the folder changes."""

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
"""Number of files above which a listing is cached; scanning fewer takes seconds even on a shared disk."""

SETTLED = 2.0
"""Minimum seconds from a folder's last change to a listing that is cached: another change within the same
tick of the file system's clock would go unnoticed.
"""


def listed(root: str, what: str, wanted: Callable[[str], bool], kinds: Iterable[str]) -> Tree:
    """Like ``list_tree``, but reuses the listing that another process or run has made of a large folder.

    Listings are stored in ``lightning-ssl/listings`` in the user's cache folder ($XDG_CACHE_HOME, or
    ~/.cache). A listing is valid as long as no folder below ``root`` has changed; all are checked. The
    processes of a run take turns: the first one scans, and the others find its listing.

    Args:
        root, what, wanted: see ``list_tree``.
        kinds: extensions that ``wanted`` depends on; if they change, a new listing is made.
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
    """Cache a listing, unless the cache folder is not writable."""
    with suppress(OSError):
        changed = _changed(tree)
        if max(changed) > begin - SETTLED * 1e9:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"changed": changed, "files": tree.files, "folders": tree.folders, "others": tree.others}
        write_bytes(file, gzip.compress(json.dumps(content).encode(), compresslevel=1))


def _kept(file: Path, root: str, what: str) -> Tree | None:
    """The cached listing; None if it is missing or damaged, or if a folder has changed since."""
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        tree = Tree(root, what, content["files"], content["folders"], Counter(content["others"]))
        return tree if _changed(tree) == content["changed"] else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _changed(tree: Tree) -> list[int]:
    """When ``root`` and each folder below it were last changed, in nanoseconds."""
    return [os.stat(tree.path(folder)).st_mtime_ns for folder in ("", *tree.folders)]
