"""The other processes of a run: communication with them, and what to do when one dies."""

from __future__ import annotations

import itertools
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

PATIENCE = 3.0  # seconds for this process to notice by itself that another one is gone
PAUSE = 0.2  # seconds between two checks

#: Messages of gloo, NCCL and the store when a process no longer answers.
CONNECTION = r"gloo|NCCL|TCPStore|DistStore|closed by peer|reset by peer|Broken pipe|failed to recv"

#: (host, process id) of every rank, after ``meet``.
_ranks: list[tuple[int, int]] = []

#: Counts the exchanges of a process, because the store keeps the lines of earlier ones.
_exchanges = itertools.count()


class LostProcess(RuntimeError):
    """A process of the run has died; the message is one line."""


def explain_lost_connection(error: Exception) -> None:
    """Raise ``LostProcess`` if ``error`` is only a consequence of another process's death."""
    if isinstance(error, (RuntimeError, OSError)) and re.search(CONNECTION, str(error)):
        line = lost()
        if line is not None:
            raise LostProcess(line) from error


class Exchange:
    """Each rank sends lines to all others and reads theirs, any number of times.

    It uses the rendezvous store and opens no connections of its own: gloo would listen on the address of the
    host's name, which on Debian is 127.0.1.1, unreachable for other machines. All ranks must create their
    exchanges in the same order.
    """

    def __init__(self) -> None:
        from torch import distributed
        from torch.distributed import distributed_c10d

        self.store = distributed.PrefixStore(f"ssl-{next(_exchanges)}", distributed_c10d._get_default_store())
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.sent, self.read = 0, 0  # lines

    def send(self, line: str) -> None:
        """Send a line without waiting."""
        self.store.set(f"{self.sent}/{self.rank}", line)
        self.sent += 1

    def receive(self) -> list[str]:
        """The lines of all ranks, in rank order, from the next unread call of ``send``.

        Raises:
            LostProcess: a process on this machine has died instead.
        """
        keys = [f"{self.read}/{rank}" for rank in range(self.size)]
        pause, looked = 0.0005, time.monotonic()  # seconds
        while not self.store.check(keys):
            time.sleep(pause)
            pause = min(2 * pause, PAUSE)
            if time.monotonic() - looked > PATIENCE:
                looked = time.monotonic()
                if (line := _gone()) is not None:
                    raise LostProcess(line)
        lines = [value.decode() for value in self.store.multi_get(keys)]
        if self.read > 0:  # a rank that has sent a line has read all earlier ones
            self.store.delete_key(f"{self.read - 1}/{self.rank}")
        self.read += 1
        return lines

    def share(self, line: str) -> list[str]:
        """Send a line and read those of all ranks; waits for them."""
        self.send(line)
        return self.receive()


def meet() -> None:
    """Exchange the process ids of all ranks; called by all ranks."""
    lines = Exchange().share(f"{_host()} {os.getpid()}")
    _ranks[:] = [(int(host), int(process)) for host, process in (line.split() for line in lines)]


def leave_together(size: int) -> None:
    """Called by all ranks at the end: wait, without using CPU or GPU, until rank 0 has evaluated.

    Schedulers end a job some time after its first process has left, and NCCL's shutdown may wait for a
    process that is gone.

    Args:
        size: number of ranks.
    """
    if size > 1:
        exchange = Exchange()
        exchange.share("done")
        exchange.send("left")
        if exchange.rank == 0:  # it runs the store, which the others still read
            exchange.receive()


def lost(patience: float = PATIENCE) -> str | None:
    """One line that names the process that died, or None if all on this machine are alive.

    Args:
        patience: seconds to wait, since a connection may break before its process is gone.
    """
    begin = time.monotonic()
    while True:
        if (line := _gone()) is not None:
            return line
        if len({host for host, _ in _ranks}) > 1 and time.monotonic() - begin > patience:
            return "the connection to a process of the run on another machine is lost: see its output"
        if time.monotonic() - begin > patience:
            return None
        time.sleep(PAUSE)


def _gone() -> str | None:
    for rank, (host, process) in enumerate(_ranks):
        if host == _host() and not _is_alive(process):
            return _line(rank, process)
    return None


def _line(rank: int, process: int, number: int | None = None) -> str:
    folder = os.environ.get("SSL_RUN_DIR")
    how = "is gone" if number is None else f"was ended by {signal.Signals(number).name}"
    again = f"; the same command with --run_dir {shlex.quote(folder)} resumes the run" if folder else ""
    return (
        f"rank {rank} (process {process} on {socket.gethostname()}) {how}: most often memory ran "
        f"out; see the system's log{again}"
    )


def _host() -> int:
    return zlib.crc32(socket.gethostname().encode())


def _is_alive(process: int) -> bool:
    """Whether the process exists on this machine and is not a zombie."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's process, or a system without /proc
        return True


class Watch(threading.Thread):
    """Ends a run when a process started by this one dies while this one waits for it.

    It replaces Lightning's observer, which silently kills all processes.

    Args:
        launcher: Lightning's launcher; its ``procs`` are ranks 1 and above, if it has started them.
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
        if dead.returncode < 0:  # otherwise it has printed the reason itself
            print(f"error: {_line(rank, dead.pid, -dead.returncode)}", file=sys.stderr, flush=True)
        for process in self.launcher.procs:
            process.kill()
        os._exit(1)
