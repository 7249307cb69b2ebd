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
PATIENCE = 10.0  # seconds; data-loading workers of a killed run hold its lock for a while
PAUSE = 0.1  # seconds between two attempts
#: Together they identify the processes that torchrun, SLURM or Kubernetes start in one launch.
LAUNCH = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other runs until this process ends, even if it is killed.

    The folder is created if necessary. If nothing else appears in it, its former state is restored.

    Raises:
        ConfigError: another process uses it, or the folder cannot be created.
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
    """The open file whose lock this process holds; None in a read-only folder."""
    path, begin = folder / LOCK, time.monotonic()
    while True:
        try:
            folder.mkdir(
                parents=True, exist_ok=True
            )  # in each attempt: the previous holder may have removed it
        except OSError as error:
            raise ConfigError(
                f"--run_dir {folder} cannot be created ({error.strerror}): choose a writable folder"
            ) from None
        try:
            lock = path.open("a+")
        except FileNotFoundError:  # removed between the two lines
            continue
        except OSError:  # a finished run may be in a read-only place
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
        lock.close()  # of a file that the previous holder has removed


def _write(lock: TextIO, text: str) -> None:
    with suppress(OSError):  # a full disk: the others wait at most PATIENCE
        lock.truncate(0)
        lock.write(text)
        lock.flush()


def _launch() -> str:
    return " ".join(os.environ.get(name, "") for name in LAUNCH).strip()


def wait_for_first_process(folder: Path) -> None:
    """In the other processes of a launch: wait until the first one has the lock and has inspected the folder.

    Lightning starts them after that. If nothing identifies the launch, or the first process is late, they
    continue after ``PATIENCE`` seconds at most.
    """
    begin = time.monotonic()
    while _launch() and time.monotonic() - begin < PATIENCE:
        with suppress(OSError):
            if (folder / LOCK).read_text() == _launch():
                return
        time.sleep(PAUSE)
