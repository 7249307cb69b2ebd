"""Lets one process prepare a folder that several share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".prepare.lock"


@contextmanager
def alone_in(folder: Path, quietly: bool = False) -> Iterator[None]:
    """Let one process at a time, of all nodes that see ``folder``, into the block.

    The first one prepares what is missing (a download, an index, token files); the others wait and find it.
    If no lock is available, because the folder is read-only or its file system has no locks, nobody waits.

    Args:
        folder: an existing folder.
        quietly: print no line when this process has to wait.
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
                print(f"waiting until another process has prepared {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # no locks on this file system
            pass
        yield
