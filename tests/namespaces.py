"""Run by a rank for tests/test_namespaces.py: ``python -m tests.namespaces RANK ADDRESS FILE``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import distributed
from torch.testing._internal.distributed import fake_pg  # noqa: F401  a group that sends nothing

from runtime.signals import StopRequest, receiver
from runtime.stopping import Preemption


def main(rank: int, address: str, file: Path) -> None:
    store = distributed.TCPStore(address, 29511, 2, rank == 0)
    distributed.init_process_group("fake", store=store, rank=rank, world_size=2)
    preemption = Preemption(Path("last.ckpt"))
    trainer: Any = SimpleNamespace(
        is_global_zero=rank == 0,
        world_size=2,
        global_step=0,
        fit_loop=SimpleNamespace(
            _should_accumulate=lambda: False, epoch_loop=SimpleNamespace(_broadcast_sigterm_tensor=None)
        ),
        _signal_connector=SimpleNamespace(register_signal_handlers=None),
    )
    preemption.setup(trainer, None, "fit")  # type: ignore[arg-type]
    if rank == 1:
        receiver.request = StopRequest.END
    preemption._vote(trainer)
    preemption._count()
    file.write_text(preemption.request.name)
    preemption.ballots.ask("bye")  # type: ignore[union-attr]  # the store's process ends last
    if rank == 0:
        store.wait(["gone"])
    else:
        store.set("gone", "")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
