"""Lets the processes of a run evaluate together: rank 0 leads, the others do their share of its tasks."""

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
    """One process, or all processes of a run, each of which creates its own ``Team`` at the same point.

    Plain values go through the rendezvous store: waiting there uses neither CPU nor GPU, and has no timeout.
    Tensors go through the process group.

    Args:
        together: whether there are other processes.

    Attributes:
        rank, size: of this process, and the number of processes.
    """

    def __init__(self, together: bool = False) -> None:
        self.exchange = Exchange() if together else None
        self.rank, self.size = (self.exchange.rank, self.exchange.size) if self.exchange else (0, 1)

    def ask(self, word: Any) -> list[Any]:
        """The plain values of all ranks, in rank order; waits for all of them."""
        if self.exchange is None:
            return [word]
        return [json.loads(line) for line in self.exchange.share(json.dumps(word))]

    def begin(self, task: str, **options: Any) -> None:
        """Rank 0: start this task of ``follow`` on the other ranks, with these plain values."""
        self.ask([task, options])

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Rank 0: the other ranks stop following at the end of the block."""
        yield
        self.ask(["end", {}])

    def follow(self, tasks: Mapping[str, Callable[..., Any]]) -> None:
        """The other ranks: do the tasks that rank 0 starts, until it is done."""
        while True:
            task, options = self.ask(None)[0]
            if task == "end":
                return
            tasks[task](**options)

    def gather(self, local: Tensor, rows: int) -> Tensor | None:
        """The rows of all ranks in rank order, (size * rows, ...), on rank 0; None on the others.

        Args:
            local: (n, ...) with n <= ``rows``; padded with zeros.
            rows: number of rows per rank in the result.
        """
        if self.size == 1:
            return local
        padded = local.new_zeros(rows, *local.shape[1:])
        padded[: len(local)] = local
        flat = padded.view(torch.uint8)  # gloo does not support every dtype
        everyone = flat.new_empty(self.size, *flat.shape) if self.rank == 0 else None
        distributed.gather(flat, None if everyone is None else list(everyone.unbind()))
        return None if everyone is None else everyone.view(local.dtype).flatten(0, 1)

    def share(self, rows: Tensor | None, like: Tensor) -> Tensor:
        """Part r of rank 0's rows (size * n, ...) on rank r: (n, ...), with the shape and dtype of
        ``like``.
        """
        distributed.scatter(like, None if rows is None else list(rows.split(len(like))))
        return like

    def spread(self, values: Tensor) -> Tensor:
        """The values of rank 0, on all ranks."""
        distributed.broadcast(values, 0)
        return values

    def raise_first(self, problem: Exception | None) -> None:
        """All ranks: raise this rank's error, or else that of the first rank with one, with its message."""
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
