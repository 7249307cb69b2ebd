"""Lets one run at a time use a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from datamodules.errors import ConfigError

LOCK = ".lock"
PATIENCE = 10.0  # seconds; data-loading workers of a killed run hold its lock for some
PAUSE = 0.1  # seconds between two tries
#: Together the same for all processes that torchrun, SLURM or Kubernetes start at once, and for no others.
LAUNCH = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of ``folder`` as long as this process lives, even if it is killed.

    The folder is made for it. Where nothing else appears in it, it is afterwards as it was before.

    Raises:
        ConfigError: another process is at it, or the folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    is_new = not (folder / LOCK).exists()
    lock = _acquire(folder)
    before = sorted(os.listdir(folder))
    try:
        yield
    finally:
        if is_new and sorted(os.listdir(folder)) == before:
            with suppress(OSError):
                (folder / LOCK).unlink()
                for path in made:
                    path.rmdir()
        if lock is not None:
            lock.close()


def _acquire(folder: Path) -> TextIO | None:
    """The open file whose lock this process has; None in a folder that cannot be written."""
    path, begin = folder / LOCK, time.monotonic()
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)  # each time: the one before may have removed it
        except OSError as error:
            raise ConfigError(
                f"--run_dir {folder} cannot be made ({error.strerror}): choose a folder where you may write"
            ) from None
        try:
            lock = path.open("a+")
        except FileNotFoundError:  # removed between the two lines
            continue
        except OSError:  # a finished run may be looked at where nothing can be written
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if time.monotonic() - begin > PATIENCE:
                raise ConfigError(
                    f"--run_dir {folder} is in use by another process: end it, or choose another"
                ) from None
            time.sleep(PAUSE)
            continue
        except OSError:  # a file system without locks
            return lock
        if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            _write(lock, _launch())
            return lock
        lock.close()  # of a file that the one before has removed


def _write(lock: TextIO, text: str) -> None:
    with suppress(OSError):  # a full disk: the others wait no longer than PATIENCE
        lock.truncate(0)
        lock.write(text)
        lock.flush()


def _launch() -> str:
    return " ".join(os.environ.get(name, "") for name in LAUNCH).strip()


def wait_for_first_process(folder: Path) -> None:
    """In the other processes of a launch: until the first one has the lock, and sees what they will see.

    Lightning starts them when that is done. If nothing identifies the launch of a process, or the first
    one is late, they go on after ``PATIENCE`` seconds at most.
    """
    begin = time.monotonic()
    while _launch() and time.monotonic() - begin < PATIENCE:
        with suppress(OSError):
            if (folder / LOCK).read_text() == _launch():
                return
        time.sleep(PAUSE)
