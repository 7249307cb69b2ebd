"""Extracts frozen features of every encoder in one pass over a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.samplers import labels_of
from datamodules.splits import Split
from evaluation.team import Team
from runtime.files import temporary_beside

Features = dict[str, tuple[Tensor, Tensor]]

FULL_PRECISION_UP_TO = 2**28
"""Maximum number of values (N * D) of an encoder and split that are kept in float32 on the device: 1 GiB,
130,000 samples of ResNet-50. Larger features are kept on the host, in half precision.
"""


IN_MEMORY_UP_TO = 2**34
"""Maximum size in bytes of an encoder's features of a split in memory; larger ones are kept in a file."""


class Means(NamedTuple):
    """The processes, precision and storage that an evaluation uses.

    Attributes:
        team: the processes, each of which embeds its share.
        precision: precision of the networks, as for Lightning's Trainer; only ``bf16-mixed`` and
            ``16-mixed`` have an effect here, because other precisions are those of the weights.
        folder: where features too large for memory are stored, in a nameless file that disappears with the
            process; None = always in memory.
    """

    team: Team = Team()
    precision: str = "32-true"
    folder: Path | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        bf16, fp16 = torch.bfloat16, torch.float16
        mixed = {"bf16-mixed": bf16, "bf16": bf16, "16-mixed": fp16, "16": fp16}
        if self.precision not in mixed:
            return nullcontext()
        return torch.autocast(device.type, mixed[self.precision])


class Rows:
    """An array that is allocated once and filled row by row, so that nothing is held in memory twice.

    Args:
        count: N.
        first: the first batch (n, D), which gives the width; it is not added.
        folder: see ``Means``.
    """

    def __init__(self, count: int, first: Tensor, folder: Path | None = None) -> None:
        shape = (count, first.shape[1])
        self.filled = 0
        self.largest = 0.0  # largest value that does not fit
        if math.prod(shape) <= FULL_PRECISION_UP_TO:
            self.values = torch.empty(shape, device=first.device)
            return
        # features in half precision are stored exactly; of float32, 11 bits are kept
        half = first.dtype if first.dtype == torch.bfloat16 else torch.float16
        if folder is None or math.prod(shape) * half.itemsize <= IN_MEMORY_UP_TO:
            self.values = torch.empty(shape, dtype=half)
            return
        file = temporary_beside(folder / "features")
        self.values = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=half).view(shape)
        file.unlink()  # the mapping stays valid, and nothing is left behind after a kill

    def add(self, batch: Tensor) -> None:
        part = self.values[self.filled : self.filled + len(batch)]
        part.copy_(batch)
        self.filled += len(batch)
        if part.dtype == torch.float16 and bool(part.isinf().any()) and bool(batch.isfinite().all()):
            self.largest = max(self.largest, batch.abs().max().item())

    def check(self) -> None:
        """Raise ConfigError for values beyond the range of half precision."""
        if self.largest:
            raise ConfigError(
                f"features of up to {self.largest:.1e} do not fit into float16, which is used for more "
                f"than {FULL_PRECISION_UP_TO} values of a split"
            )

    def keep(self, wanted: Tensor) -> Tensor:
        """The rows where ``wanted`` (N,) is true, moved to the front of the same memory."""
        if bool(wanted.all()):
            return self.values
        places, end = wanted.nonzero().squeeze(1).to(self.values.device), 0
        for part in places.split(65536):
            self.values[end : end + len(part)] = self.values[part]
            end += len(part)
        return self.values[:end]


def embed_split(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    data: SSLDataModule,
    split: Split,
    device: torch.device,
    rows: Sequence[int] | None = None,
    means: Means = Means(),  # noqa: B008  it holds nothing that changes
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of every encoder for the samples of a split, in order, and their labels.

    Args:
        encoders: name -> function of the standardized clean ``input``.
        data: set up.
        split: "bank", "val" or "test".
        device: where ``encoders`` compute.
        rows: which samples; None = all.
        means: with several processes, all of them call this, and rank 0 gets the features.

    Returns:
        name -> (N, D) float32 on ``device`` (half precision on the host above ``FULL_PRECISION_UP_TO``), and
        labels (N,) on ``device``, -1 = unknown. On other ranks: an empty dict and no labels.
    """
    filled, labels = _filled_rows(encoders, data, split, device, rows, means)
    return {name: rows.values for name, rows in filled.items()}, labels


def extract_features(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    data: SSLDataModule,
    split: Split,
    device: torch.device,
    means: Means = Means(),  # noqa: B008  it holds nothing that changes
) -> Features:
    """As ``embed_split``, for labeled samples only: name -> (features (N, D), labels (N,))."""
    filled, labels = _filled_rows(encoders, data, split, device, None, means)
    known = labels >= 0
    return {name: (rows.keep(known), labels[known]) for name, rows in filled.items()}


@torch.no_grad()
def _filled_rows(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    data: SSLDataModule,
    split: Split,
    device: torch.device,
    rows: Sequence[int] | None,
    means: Means,
) -> tuple[dict[str, Rows], Tensor]:
    """Batches are dealt to the ranks in turn and do not depend on the number of ranks."""
    dataset: Any = data.dataset(split) if rows is None else Subset(data.dataset(split), rows)
    team, count, size = means.team, len(dataset), data.batch_size
    if team.size > 1:
        mine = range(team.rank * size, count, team.size * size)
        dataset = Subset(dataset, [i for begin in mine for i in range(begin, min(begin + size, count))])
    loader = iter(data.eval_dataloader(dataset))
    problem: Exception | None = None
    shapes: dict[str, Tensor] = {}
    filled: dict[str, Rows] = {}
    labels = torch.empty(count if team.rank == 0 else 0, dtype=torch.int64, device=device)
    for begin in range(0, count, team.size * size):
        found: dict[str, Tensor] = {}
        known = labels[:0]
        try:
            if problem is None and (raw := next(loader, None)) is not None:
                x = data.transform({"input": raw["input"].to(device)}, None)["input"]
                with means.autocast(device):
                    found = {name: encode(x).flatten(1) for name, encode in encoders.items()}
                known = raw["label"].to(device)
        except Exception as error:  # raised once all ranks are here, not while others wait for rows
            problem = error
        if begin == 0:
            shapes = _shapes(found, team, device)
            filled = {
                name: Rows(count, like, means.folder) for name, like in shapes.items() if team.rank == 0
            }
        for name, like in shapes.items():
            rows_of_all = team.gather(_as_wide(found.get(name, like), like), size)
            if rows_of_all is not None:
                filled[name].add(rows_of_all[: count - begin])
        labels_of_all = team.gather(known, size)
        if labels_of_all is not None:
            labels[begin : begin + len(labels_of_all)] = labels_of_all[: count - begin]
    team.raise_first(problem)
    for each in filled.values():
        each.check()
    return filled, labels


def _shapes(found: dict[str, Tensor], team: Team, device: torch.device) -> dict[str, Tensor]:
    """For each encoder an empty tensor (0, D) of its width and type, for ranks without a batch.

    The largest width counts, since an encoder that failed on a rank has one column there.
    """
    local = {name: (rows.shape[1], str(rows.dtype).removeprefix("torch.")) for name, rows in found.items()}
    shapes: dict[str, Tensor] = {}
    for of_rank in team.ask(local):
        for name, (width, kind) in of_rank.items():
            if name not in shapes or width > shapes[name].shape[1]:
                shapes[name] = torch.empty(0, width, dtype=getattr(torch, kind), device=device)
    return shapes


def _as_wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.to(like.dtype).expand(-1, like.shape[1])


def known_labels(data: SSLDataModule, split: Split) -> Tensor | None:
    """Labels (N,) of a split's labeled samples, without reading samples; None if the data does not list
    them.
    """
    labels = labels_of(data.dataset(split))
    return None if labels is None else torch.as_tensor(labels[labels >= 0])


def names_of_classes(data: SSLDataModule) -> Sequence[str]:
    """A name for each of the K classes: the data set's, or its number."""
    names = data.class_names
    return names or [str(number) for number in range(data.num_classes or 0)]
