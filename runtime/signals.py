"""Signals that ask a run to save or stop.

No torch here: ``train.py`` starts listening before torch is imported, so that a signal in those seconds
neither kills the process nor is lost.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType

from datamodules.errors import ConfigError

REQUEUED = ".requeued"  # in the run folder, from rank 0's request until the next start
PATIENCE = 60.0  # seconds: also the timeout of scontrol
LISTENED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest(IntEnum):
    """What a signal asks for. Of several requests, from one or more ranks, the greatest counts."""

    NONE = 0
    DUE = 1  # no signal: the saving interval has passed
    END = 2  # SIGTERM, SIGUSR1, SIGUSR2: save and end with status 143
    REQUEUE = 3  # SIGUSR1, SIGUSR2 under SLURM: also requeue the job
    INTERRUPT = 4  # SIGINT (Ctrl-C): save and end with status 130


class Preempted(BaseException):
    """Ends a run that was asked to stop. Not an ``Exception``, so that nothing handles it as an error."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request.name)
        self.request = request


class SignalReceiver:
    """The pending request of this process.

    Attributes:
        raises: signals that end the process immediately, because nothing would be lost: Ctrl-C until training
            begins, all signals after it.
    """

    def __init__(self) -> None:
        self.request = StopRequest.NONE
        self.raises: tuple[int, ...] = ()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals until the end of the block, in Python's main thread."""
        self.request, self.raises = StopRequest.NONE, (signal.SIGINT,)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in LISTENED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> StopRequest:
        """Return and clear the request, for the caller to act on."""
        request, self.request = self.request, StopRequest.NONE
        return request

    def end_if_asked(self) -> None:
        """Raise Preempted if this process was asked to end."""
        if self.request >= StopRequest.END:
            raise Preempted(self.take())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.request == StopRequest.INTERRUPT:  # a second Ctrl-C: the user does not want to wait
                os._exit(130)
            request = StopRequest.INTERRUPT
        else:
            warns = number in (
                signal.SIGUSR1,
                signal.SIGUSR2,
            )  # before the time limit, or before a preemption
            request = StopRequest.REQUEUE if warns and "SLURM_JOB_ID" in os.environ else StopRequest.END
        self.request = max(self.request, request)
        if number in self.raises:
            raise Preempted(self.take())


receiver = SignalReceiver()


def end(stop: Preempted) -> int:
    """Print how to resume the run, requeue it if requested, and return the exit status."""
    status = 130 if stop.request == StopRequest.INTERRUPT else 143
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if "RANK" not in os.environ and local_rank != "0":
        # started by another process of the run, whose status counts, and which would treat another status as
        # a failure
        return 0
    folder = os.environ.get("SSL_RUN_DIR")
    mark = None
    if folder and stop.request == StopRequest.REQUEUE:
        mark = Path(folder) / REQUEUED
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        if mark is not None:
            wait_for_requeue(mark)
        return status
    how = (
        f"the same command with --run_dir {shlex.quote(folder)} resumes it" if folder else "nothing was begun"
    )
    print(f"{'interrupted' if stop.request == StopRequest.INTERRUPT else 'asked to end'}; {how}", flush=True)
    if stop.request == StopRequest.REQUEUE:
        requeue()
        if mark is not None:
            with suppress(OSError):
                mark.touch()
    return status


def wait_for_requeue(mark: Path) -> None:
    """In ranks other than 0: wait until rank 0 has requeued the job, at most ``PATIENCE`` seconds.

    Otherwise ``srun --kill-on-bad-exit`` would end rank 0 before that.
    """
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE and not mark.exists():
        time.sleep(0.1)


def slurm_job() -> str:
    """``12``, or ``12_3`` for task 3 of an array: the id for SLURM's commands, unchanged by requeueing."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue() -> None:
    """Requeue this SLURM job or array task; print one line if that fails."""
    job = slurm_job()
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        problem = (
            re.sub(r"\s+", " ", done.stderr.strip()) or f"status {done.returncode}"
            if done.returncode
            else None
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        print(f"SLURM job {job} is back in the queue", flush=True)
    else:
        print(
            f"error: `{' '.join(command)}` failed ({problem}): the run is saved, submit it again",
            file=sys.stderr,
            flush=True,
        )


def check_launch() -> None:
    """Check, before anything slow, that this process can train.

    Raises:
        ConfigError: a SLURM job with several tasks was started once, without srun, and would wait forever.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    inside = {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    if (
        tasks.isdigit()
        and int(tasks) > 1
        and not inside
        and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    ):
        raise ConfigError(
            f"this SLURM job has {tasks} tasks, but the command runs once: start it with `srun python "
            "train.py ...`, or request one task (#SBATCH --ntasks=1)"
        )


def die_with_parent() -> None:
    """Make a process started by another one of the run end with it, even if that is killed (Linux only)."""
    started_by_a_rank = os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ
    if sys.platform.startswith("linux") and (started_by_a_rank or "TORCHELASTIC_RUN_ID" in os.environ):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
