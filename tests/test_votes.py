"""When ranks vote on saving or stopping."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import distributed, multiprocessing

from runtime.peers import Exchange
from runtime.signals import StopRequest, receiver
from runtime.stopping import Preemption


def vote(rank: int, folder: Path) -> None:
    """A rank that makes short batches, waits once for its data, and makes long ones; rank 1 is asked to end
    in the 31st.
    """
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preemption, votes, seen = Preemption(Path("last.ckpt")), 0, []
    preemption.ballots = Exchange()
    trainer: Any = SimpleNamespace(
        is_global_zero=rank == 0, global_step=0, fit_loop=SimpleNamespace(_should_accumulate=lambda: False)
    )
    for batch in range(60):
        time.sleep(
            0.001 * (1 + rank) if batch != 20 else 0.5 * rank
        )  # one rank alone is quicker than the other
        if batch == 30 and rank == 1:
            receiver.request = StopRequest.END
        before = preemption.ballots.sent
        preemption.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        votes += preemption.ballots.sent - before
        seen.append((int(preemption.request), preemption.pace))
    preemption._count()
    (folder / f"rank-{rank}").write_text(repr((votes, seen)))
    distributed.barrier()


def test_ranks_vote_at_the_same_batches_and_not_after_every_short_one(tmp_path: Path) -> None:
    multiprocessing.start_processes(vote, (tmp_path,), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    one, two = (ast.literal_eval((tmp_path / f"rank-{rank}").read_text()) for rank in range(2))
    assert one == two
    votes, seen = one
    wishes, paces = zip(*seen, strict=True)
    assert paces[0] == 1 and max(paces) == 10 and 5 < votes < 20
    assert wishes.index(StopRequest.END) in range(
        31, 51
    )  # at the second vote after it, and no more than ten batches lie between two
