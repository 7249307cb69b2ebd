"""``python -m tests.faulty FAULT ... -- OPTIONS OF train.py``: a run to which something happens at an exact
moment.

signal NAME MOMENT   the process sends itself a signal at build, first-batch, train or validation
kill-save MOMENT     SIGKILL inside the second save: half-written, before-rename (the old file gets its second
                     name),
                     between-renames, after-rename (the new file has the good name)
disk-full            no file may grow beyond 100 kB from the second epoch on
nan                  the loss of step 6 is NaN
none                 nothing
worker-killed        a data-loading worker gets SIGKILL
rank-raises RANK     one rank raises in step 3
rank-killed RANK     one rank gets SIGKILL in step 3; RANK:start: before the processes have met
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import train
from datamodules.images.arrays import Digits
from datamodules.images.module import ArrayDataset
from runtime.checkpoints import LAST, PREVIOUS
from sslmodules import SimCLR


def before_losses(happens: Any) -> None:
    """Call ``happens(module)`` before the losses of every batch."""
    original = SimCLR.losses

    def losses(self: Any, batch: Any) -> Any:
        happens(self)
        return original(self, batch)

    SimCLR.losses = losses  # type: ignore[method-assign]


def signal_at(name: str, moment: str) -> None:
    number, sent = getattr(signal, name), []

    def send() -> None:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), number)

    if moment == "build":
        original = Digits.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            send()
            original(self, *args, **kwargs)

        Digits.__init__ = init  # type: ignore[method-assign]
        Digits.__init__.__wrapped__ = original  # type: ignore[attr-defined]
    step = {"first-batch": 0, "train": 5}.get(moment, 1)

    def happens(module: Any) -> None:
        if moment == "validation":
            if not module.training and not module.trainer.sanity_checking:
                send()
        elif moment != "build" and module.training and module.global_step == step:
            send()

    before_losses(happens)


def kill_save(moment: str) -> None:
    saves: list[int] = []
    original_save, original_replace = torch.save, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        saves.append(1)
        if len(saves) == 2 and moment == "half-written":
            file.write(b"PK half of a checkpoint")
            file.flush()
            die()
        original_save(content, file, *args, **kwargs)

    def replace(source: Any, target: Any) -> None:
        if len(saves) == 2 and moment == "before-rename":
            die()
        original_replace(source, target)
        if len(saves) == 2 and (moment, Path(target).name) in (
            ("between-renames", PREVIOUS),
            ("after-rename", LAST),
        ):
            die()

    torch.save, os.replace = save, replace


def disk_full() -> None:
    def happens(module: Any) -> None:
        if module.training and module.global_step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before_losses(happens)


def nan() -> None:
    original = SimCLR.losses

    def losses(self: Any, batch: Any) -> Any:
        terms = original(self, batch)
        bad = self.training and self.global_step == 5
        return {**terms, "loss": terms["loss"] * (float("nan") if bad else 1.0)}

    SimCLR.losses = losses  # type: ignore[method-assign]


def worker(happens: Any) -> None:
    original = ArrayDataset.__getitems__

    def getitems(self: Any, indices: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            happens()
        return original(self, indices)

    ArrayDataset.__getitems__ = getitems  # type: ignore[method-assign]


def rank_raises(rank: str) -> None:
    def happens(module: Any) -> None:
        if module.training and module.global_step == 2 and module.global_rank == int(rank):
            raise RuntimeError(f"the fault of rank {rank}")

    before_losses(happens)


def rank_killed(rank: str) -> None:
    """At once, or while the processes still look for each other."""
    number, _, moment = rank.partition(":")

    def happens(module: Any) -> None:
        if module.training and module.global_step == 2 and module.global_rank == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "start" and os.environ.get("LOCAL_RANK", "0") == number:
        os.kill(os.getpid(), signal.SIGKILL)
    before_losses(happens)


def main(arguments: list[str]) -> int:
    split = arguments.index("--")
    (name, *rest), options = arguments[:split], arguments[split + 1 :]
    if name == "signal":
        signal_at(*rest)
    elif name == "kill-save":
        kill_save(*rest)
    elif name == "disk-full":
        disk_full()
    elif name == "nan":
        nan()
    elif name == "worker-killed":
        worker(lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif name == "rank-raises":
        rank_raises(*rest)
    elif name == "rank-killed":
        rank_killed(*rest)
    return train.main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
