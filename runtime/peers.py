"""The processes of a run besides this one: which of them has died, and how the others end then."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

PATIENCE = 3.0  # seconds in which this process may find out by itself that another one is gone
PAUSE = 0.2  # seconds between two looks

#: What gloo, NCCL and the store that processes meet in say of a process that does not answer any more.
CONNECTION = r"gloo|NCCL|TCPStore|DistStore|closed by peer|reset by peer|Broken pipe|failed to recv"

#: (host, process) of every rank, once they have met.
_ranks: list[tuple[int, int]] = []


class LostProcess(RuntimeError):
    """A process of the run has died; the message is one line."""


def explain_lost_connection(error: Exception) -> None:
    """Raise ``LostProcess`` if ``error`` is only the consequence of the death of another process."""
    if isinstance(error, (RuntimeError, OSError)) and re.search(CONNECTION, str(error)):
        line = lost()
        if line is not None:
            raise LostProcess(line) from error


def meet(group: Any) -> None:
    """Tell each other the process behind each rank; called by all of them.

    Args:
        group: a process group on the CPU.
    """
    import torch
    from torch import distributed

    mine = torch.tensor([_host(), os.getpid()])
    everyone = [torch.zeros_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(everyone, mine, group)
    _ranks[:] = [(host, process) for host, process in (both.tolist() for both in everyone)]


def lost(patience: float = PATIENCE) -> str | None:
    """One line that tells which process of the run has died, or None if those of this machine are alive.

    Args:
        patience: seconds; a connection may break before its process is gone.
    """
    begin = time.monotonic()
    while True:
        for rank, (host, process) in enumerate(_ranks):
            if host == _host() and not _is_alive(process):
                return _line(rank, process)
        if len({host for host, _ in _ranks}) > 1 and time.monotonic() - begin > patience:
            return "the connection to a process of the run on another machine is lost: its output tells why"
        if time.monotonic() - begin > patience:
            return None
        time.sleep(PAUSE)


def _line(rank: int, process: int, number: int | None = None) -> str:
    folder = os.environ.get("SSL_RUN_DIR")
    how = "is gone" if number is None else f"was ended by {signal.Signals(number).name}"
    again = f"; the same command with --run_dir {shlex.quote(folder)} resumes the run" if folder else ""
    return (
        f"rank {rank} (process {process} on {socket.gethostname()}) {how}: most often memory ran "
        f"out, which the system's log shows{again}"
    )


def _host() -> int:
    return zlib.crc32(socket.gethostname().encode())


def _is_alive(process: int) -> bool:
    """Does the process exist on this machine, and not only wait for its parent to notice its end?"""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # of another user, or a system without /proc
        return True


class Watch(threading.Thread):
    """Ends a run whose processes were started by this one, when one of them dies and this one waits for it.

    It takes the place of Lightning's observer, which kills all of them without a word.

    Args:
        launcher: Lightning's, with its ``procs``: rank 1 and those after it. One that starts no processes has
            none.
    """

    def __init__(self, launcher: Any) -> None:
        super().__init__(daemon=True, name="watch")
        self.launcher, self.over = launcher, threading.Event()

    def run(self) -> None:
        while not self.over.wait(PAUSE):
            for rank, process in enumerate(getattr(self.launcher, "procs", ()), 1):
                if process.poll():
                    self._end(rank, process)
                    return

    def _end(self, rank: int, dead: subprocess.Popen) -> None:
        if self.over.wait(PATIENCE):
            return
        if dead.returncode < 0:  # any other has told why itself
            print(f"error: {_line(rank, dead.pid, -dead.returncode)}", file=sys.stderr, flush=True)
        for process in self.launcher.procs:
            process.kill()
        os._exit(1)
