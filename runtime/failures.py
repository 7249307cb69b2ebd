"""Ends a failed run with one error, in all of its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import ConfigError, DataFileError
from runtime.peers import LostProcess
from runtime.signals import REQUEUED

if TYPE_CHECKING:  # help and simple errors do not need torch
    from lightning import Trainer


def finish(error: Exception) -> int:
    """End a command that raised ``error``: one line for invalid input and files; others are raised again.

    Returns:
        The exit status, 2. ``SSL_TRACEBACK=1`` shows the traceback before the line.
    """
    line = one_line(error)
    if line is None:
        raise error
    if "SSL_TRACEBACK" in os.environ:
        traceback.print_exception(error)
    print(f"error: {line}", file=sys.stderr)
    return 2


def one_line(error: Exception) -> str | None:
    """One line for an error that the user can fix; None for an error in the code."""
    if isinstance(error, (ConfigError, DataFileError, LostProcess)):
        return " ".join(str(error).split())
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return " ".join(str(error).split()) if isinstance(error, MisconfigurationException) else hint(error)


def hint(error: BaseException) -> str | None:
    """One line with advice for system errors whose own text gives none, or None."""
    text = str(error)
    if re.search(r"DataLoader worker.*(killed|exited unexpectedly)", text) or isinstance(
        error, ConnectionResetError
    ):
        return (
            f"a data-loading worker was killed ({text.splitlines()[0].strip().rstrip('.')}): most often "
            "memory ran out, or shared memory (/dev/shm) is too small. Give fewer --data.num_workers, a "
            "smaller --data.batch_size, or the container more memory (docker run --shm-size 8g)"
        )
    if missing := re.match(r"Early stopping conditioned on metric `(.+?)` .*following: (.*)", text):
        known = missing[2].replace("`", "") or "nothing yet (metrics are logged every log_every_n_steps)"
        unlogged = f"EarlyStopping monitors {missing[1]!r}, which has not been logged"
        return f"trainer.callbacks: {unlogged}; logged: {known}"
    if "EADDRINUSE" in text:
        port = os.environ.get("MASTER_PORT", "that was chosen")
        return f"port {port} is in use by another program: set MASTER_PORT to a free one, or leave it unset"
    return None


def is_first_failure() -> bool:
    """Whether this is the first process of the run to fail; those that only lost a peer need not report.

    The process that can create ``.failed`` in the run folder is the first; a single process always is.
    """
    import torch

    folder = os.environ.get("SSL_RUN_DIR")
    if folder is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    try:
        os.close(os.open(Path(folder) / ".failed", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:  # a full disk: report twice rather than not at all
        return True
    return True


def forget_failures(folder: Path) -> None:
    """Called when a run starts: remove the mark of an earlier start."""
    for name in (".failed", REQUEUED):
        (folder / name).unlink(missing_ok=True)


def end_other_processes(trainer: Trainer | None, patience: float) -> None:
    """Kill the processes that this one started, after ``patience`` seconds: they may wait for it forever."""
    launcher = getattr(getattr(trainer, "strategy", None), "launcher", None)
    for process in getattr(
        launcher, "procs", []
    ):  # for Lightning's launcher; torchrun and SLURM do it themselves
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
