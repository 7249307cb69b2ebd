"""Extracts frozen features of every encoder in one pass over a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Subset

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.samplers import labels_of
from datamodules.splits import Split

Features = dict[str, tuple[Tensor, Tensor]]

FULL_PRECISION_UP_TO = 2**28
"""Values (N * D) of an encoder and split that are kept in float32, on the device: 1 GiB, 130,000 samples of
ResNet-50. More are kept on the host, in half precision.
"""


class Rows:
    """Rows that are filled in order, in one array that is made once: nothing is held twice.

    Args:
        count: N.
        first: the first batch (n, D), which is not added; its width is that of all.
    """

    def __init__(self, count: int, first: Tensor) -> None:
        self.values = torch.empty(count, first.shape[1], device=first.device)
        if count * first.shape[1] > FULL_PRECISION_UP_TO:
            # a network's own half precision loses nothing; of float32 11 bits are kept
            half = first.dtype if first.dtype == torch.bfloat16 else torch.float16
            self.values = torch.empty(count, first.shape[1], dtype=half)
        self.filled = 0

    def add(self, batch: Tensor) -> None:
        """Raises ConfigError for values that half precision cannot hold."""
        part = self.values[self.filled : self.filled + len(batch)]
        part.copy_(batch)
        self.filled += len(batch)
        if part.dtype == torch.float16 and bool(part.isinf().any()) and bool(batch.isfinite().all()):
            raise ConfigError(
                f"features of up to {batch.abs().max().item():.1e} do not fit into float16, in which more "
                f"than {FULL_PRECISION_UP_TO} values of a split are kept"
            )

    def keep(self, wanted: Tensor) -> Tensor:
        """The rows for which ``wanted`` (N,) is true, moved to the front of the same memory."""
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
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of every encoder for the samples of a split, in order, and their labels.

    Args:
        encoders: name -> function of the standardized clean ``input``.
        data: set up.
        split: "bank", "val" or "test".
        device: where ``encoders`` compute.
        rows: which samples; None = all.

    Returns:
        name -> (N, D) float32 on ``device`` (half precision on the host above ``FULL_PRECISION_UP_TO``), and
        labels (N,) on ``device``, -1 = unknown.
    """
    filled, labels = _filled_rows(encoders, data, split, device, rows)
    return {name: rows.values for name, rows in filled.items()}, labels


def extract_features(
    encoders: dict[str, Callable[[Tensor], Tensor]], data: SSLDataModule, split: Split, device: torch.device
) -> Features:
    """As ``embed_split``, of the samples that have a label: name -> (features (N, D), labels (N,))."""
    filled, labels = _filled_rows(encoders, data, split, device)
    known = labels >= 0
    return {name: (rows.keep(known), labels[known]) for name, rows in filled.items()}


@torch.no_grad()
def _filled_rows(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    data: SSLDataModule,
    split: Split,
    device: torch.device,
    rows: Sequence[int] | None = None,
) -> tuple[dict[str, Rows], Tensor]:
    dataset = data.dataset(split) if rows is None else Subset(data.dataset(split), rows)
    filled: dict[str, Rows] = {}
    labels = []
    for raw in data.eval_dataloader(dataset):
        x = data.transform({"input": raw["input"].to(device)}, None)["input"]
        for name, encode in encoders.items():
            batch = encode(x).flatten(1)
            if name not in filled:
                filled[name] = Rows(len(dataset), batch)  # type: ignore[arg-type]
            filled[name].add(batch)
        labels.append(raw["label"].to(device))
    return filled, torch.cat(labels)


def known_labels(data: SSLDataModule, split: Split) -> Tensor | None:
    """The labels (N,) of a split's labeled samples without reading the samples; None if the data set keeps no
    list of them.
    """
    labels = labels_of(data.dataset(split))
    return None if labels is None else torch.as_tensor(labels[labels >= 0])


def names_of_classes(data: SSLDataModule) -> Sequence[str]:
    """A name for each of the K classes: the data set's own, or its number."""
    names = data.class_names
    return names or [str(number) for number in range(data.num_classes or 0)]
