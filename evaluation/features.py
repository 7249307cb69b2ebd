"""Extracts frozen features of every encoder in one pass over a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Subset

from datamodules.base import SSLDataModule
from datamodules.samplers import labels_of
from datamodules.splits import Split

Features = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
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
        name -> (N, D) float32, and labels (N,), -1 = unknown; all on ``device``.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels = []
    dataset = data.dataset(split) if rows is None else Subset(data.dataset(split), rows)
    for raw in data.eval_dataloader(dataset):
        x = data.transform({"input": raw["input"].to(device)}, None)["input"]
        for name, encode in encoders.items():
            parts[name].append(encode(x).flatten(1).float())
        labels.append(raw["label"].to(device))
    return {name: torch.cat(rows) for name, rows in parts.items()}, torch.cat(labels)


def extract_features(
    encoders: dict[str, Callable[[Tensor], Tensor]], data: SSLDataModule, split: Split, device: torch.device
) -> Features:
    """As ``embed_split``, of the samples that have a label: name -> (features (N, D), labels (N,))."""
    features, labels = embed_split(encoders, data, split, device)
    known = labels >= 0
    return {name: (rows[known], labels[known]) for name, rows in features.items()}


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
