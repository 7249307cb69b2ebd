"""Resumable, unpadded samplers for one or several processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from datamodules.seeding import mix_seed

if TYPE_CHECKING:
    from datamodules.base import SSLDataModule


class SampleDataset(Dataset, ABC):
    """A data set whose samples are fetched in whole batches.

    A plain torch ``Dataset`` with ``__getitems__`` is enough if nothing depends on the epoch.

    Attributes:
        labels: (N,) int64, -1 = unknown; None if labels are not listed.
        block: number of adjacent samples that are read at once, and stay together when samples are shuffled.
    """

    labels: np.ndarray | None = None
    block: int = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, ...), "label": (B,) int64}`` in the most compact form, see ``SSLDataModule``."""

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of a training epoch, for data sets that draw random numbers per sample."""


def block_of(dataset: Dataset) -> int:
    return dataset.block if isinstance(dataset, SampleDataset) else 1


def labels_of(dataset: Dataset) -> np.ndarray | None:
    return dataset.labels if isinstance(dataset, SampleDataset) else None


class EpochSampler(DistributedSampler):
    """Shuffled indices as a pure function of (seed, epoch), as many for each rank, resumable within an epoch.

    It is a ``DistributedSampler`` only so that Lightning keeps it unchanged and calls ``set_epoch``. With W
    ranks, rank r takes every W-th index of one shared permutation, so the W batches of a step together equal
    the single-process batch of W times the size.

    For a data set with ``block`` above 1, blocks of adjacent indices are shuffled instead, with a different
    first index in each epoch, and each rank takes every W-th block.

    If nobody sets the epoch, as in a custom loop, each new iteration is the next epoch.

    Args:
        dataset: the data to sample; the ``set_epoch`` of a ``SampleDataset`` is called.
        batch_size: per rank; together with ``start`` it determines how many indices to skip.
        seed: seed of the permutation.
        rank, world_size: of this process.
        datamodule: its ``batches_done()`` is called when an epoch starts: 0 unless a run is resumed within
            the epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        datamodule: SSLDataModule,
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.batch_size, self.datamodule = batch_size, datamodule
        self.used = False  # since the epoch was last set

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.used = False
        if isinstance(self.dataset, SampleDataset):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        if self.used:
            self.set_epoch(self.epoch + 1)
        self.used = True
        n, block = len(self.dataset), block_of(self.dataset)  # type: ignore[arg-type]
        rng = np.random.default_rng(mix_seed(self.seed, self.epoch))
        order = rng.permutation(n // block)[:, None] * block + np.arange(block)
        if block > 1:
            order = (np.append(order, np.arange(n // block * block, n)) + rng.integers(n)) % n
        order = order.ravel()
        # whole blocks are dealt to the ranks in turn, the remainder index by index
        dealt = n // (block * self.num_replicas) * block * self.num_replicas
        blocks = order[:dealt].reshape(-1, self.num_replicas, block)[:, self.rank].ravel()
        mine = np.append(blocks, order[dealt + self.rank :: self.num_replicas])[: self.num_samples]
        return iter(mine[self.datamodule.batches_done() * self.batch_size :].tolist())


def interleaved(dataset: Dataset) -> np.ndarray:
    """All indices of a data set in one fixed order, in which every prefix is spread evenly over the data.

    Files are sorted by class; in this order the first N samples contain each class in about its proportion.
    Blocks that are read at once (see ``EpochSampler``) stay together.

    Example::

        >>> from datamodules.images.arrays import Digits
        >>> interleaved(Digits().dataset("val"))[:5].tolist()
        [0, 222, 85, 307, 170]
    """
    n, block = len(dataset), block_of(dataset)  # type: ignore[arg-type]
    blocks = -(-n // block)
    fractions = np.arange(blocks) * ((5**0.5 - 1) / 2) % 1  # multiples of the golden ratio leave no gaps
    order = np.argsort(np.argsort(fractions, kind="stable"), kind="stable")
    indices = (order[:, None] * block + np.arange(block)).ravel()
    return indices[indices < n]


def equal_batches(samples: int, ranks: int, batch_size: int) -> int:
    """The smallest batch size from ``batch_size`` on that gives all ranks equally many batches.

    For FSDP: each forward pass needs all ranks, also those with one sample less.

    Example::

        >>> equal_batches(51, ranks=2, batch_size=5)  # 26 and 25 samples: 6 and 5 batches
        6
    """
    longest, shortest = -(-samples // ranks), samples // ranks
    while -(-longest // batch_size) != -(-shortest // batch_size):
        batch_size += 1
    return batch_size


class ShardSampler(DistributedSampler):
    """Every index exactly once over all ranks: rank r takes numbers r, r + W, ... and nothing is padded.

    Lightning's default repeats samples until all ranks have the same number, so some are counted twice.

    Args:
        dataset: the data to sample.
        rank, world_size: of this process.
        order: (N,) all indices in the order in which to deal them; None = data set order.
    """

    def __init__(self, dataset: Dataset, rank: int, world_size: int, order: np.ndarray | None = None) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.indices = (np.arange(len(dataset)) if order is None else order)[rank::world_size]  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)
