"""The processes of a run evaluate together: rank 0 leads, the others do their share of what it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from datamodules.errors import ConfigError, DataFileError
from runtime.peers import Exchange


class Team:
    """One process, or all processes of a run, each of which makes its own ``Team`` at the same place.

    Questions and answers go through the store in which the processes have met: whoever waits there needs
    neither processor nor GPU, and may wait for any time. Tensors go through the process group.

    Args:
        together: are there other processes?

    Attributes:
        rank, size: of this process, and the number of processes.
    """

    def __init__(self, together: bool = False) -> None:
        self.exchange = Exchange() if together else None
        self.rank, self.size = (self.exchange.rank, self.exchange.size) if self.exchange else (0, 1)

    def ask(self, word: Any) -> list[Any]:
        """The plain values of all ranks, in their order; waits for all of them."""
        if self.exchange is None:
            return [word]
        return [json.loads(line) for line in self.exchange.share(json.dumps(word))]

    def begin(self, task: str, **options: Any) -> None:
        """Rank 0: the others do this task of ``follow`` too, with these plain values."""
        self.ask([task, options])

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Rank 0: at the end of the block the others stop following."""
        yield
        self.ask(["end", {}])

    def follow(self, tasks: Mapping[str, Callable[..., Any]]) -> None:
        """The other ranks: do the tasks that rank 0 begins, until it is done."""
        while True:
            task, options = self.ask(None)[0]
            if task == "end":
                return
            tasks[task](**options)

    def gather(self, local: Tensor, rows: int) -> Tensor | None:
        """The rows of all ranks, one rank after the other, on rank 0; None on the others.

        Args:
            local: (n, ...) with n <= ``rows``; zeros are added.
            rows: of each rank in the result, (size * rows, ...).
        """
        if self.size == 1:
            return local
        padded = local.new_zeros(rows, *local.shape[1:])
        padded[: len(local)] = local
        flat = padded.view(torch.uint8)  # gloo does not know every type of number
        everyone = flat.new_empty(self.size, *flat.shape) if self.rank == 0 else None
        distributed.gather(flat, None if everyone is None else list(everyone.unbind()))
        return None if everyone is None else everyone.view(local.dtype).flatten(0, 1)

    def share(self, rows: Tensor | None, like: Tensor) -> Tensor:
        """Part r of the rows (size * n, ...) that rank 0 gives, on rank r: (n, ...) as ``like``."""
        distributed.scatter(like, None if rows is None else list(rows.split(len(like))))
        return like

    def spread(self, values: Tensor) -> Tensor:
        """The values of rank 0, on all ranks, in the place of theirs."""
        distributed.broadcast(values, 0)
        return values

    def raise_first(self, problem: Exception | None) -> None:
        """All ranks: raise the own error, or else that of the first rank that has one, with its message."""
        own = None
        if problem is not None:
            given = isinstance(problem, (ConfigError, DataFileError))
            own = [given, str(problem) if given else f"{type(problem).__name__}: {problem}"]
        all_ranks = self.ask(own)
        if problem is not None:
            raise problem
        for rank, of_rank in enumerate(all_ranks):
            if of_rank is not None:
                raise DataFileError(of_rank[1]) if of_rank[0] else RuntimeError(f"rank {rank}: {of_rank[1]}")
