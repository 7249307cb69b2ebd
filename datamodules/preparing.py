"""Lets one process prepare a folder that several share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".prepare.lock"


@contextmanager
def alone_in(folder: Path, quietly: bool = False) -> Iterator[None]:
    """Let one process at a time into the block, across all nodes that share ``folder``.

    The first one prepares what is missing (a download, an index, token files); the others wait, then find it.
    If locking is impossible, because the folder is read-only or its file system has no locks, nobody waits.

    Args:
        folder: an existing folder.
        quietly: do not print a line when this process has to wait.
    """
    try:
        lock = (folder / LOCK).open("a")
    except OSError:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quietly:
                print(f"waiting for another process to prepare {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # no locks on this file system
            pass
        yield
