"""Lets one process prepare a folder that several share."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".prepare.lock"


@contextmanager
def alone_in(folder: Path, quietly: bool = False) -> Iterator[None]:
    """One process at a time, of all nodes that see ``folder``: the first one prepares what is missing there
    (a download, an index, token files), and the others wait and find it.

    Where no lock can be had, because the folder cannot be written or its file system has none, nobody waits.

    Args:
        folder: one that exists.
        quietly: no line tells that this process waits.
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
