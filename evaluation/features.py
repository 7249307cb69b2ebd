"""Frozen features of every encoder, one pass over a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.splits import Split

Features = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def extract_features(
    encoders: dict[str, Callable[[Tensor], Tensor]], data: SSLDataModule, split: Split, device: torch.device
) -> Features:
    """One pass over a split: features of every encoder and the labels of the samples that have one.

    Args:
        encoders: name -> function of the standardized clean ``input``.
        data: set up.
        split: "bank", "val" or "test".

    Returns:
        name -> (features (N, D) float32, labels (N,)), on ``device``.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels = []
    for raw in data.eval_dataloader(data.dataset(split)):
        x = data.transform({"input": raw["input"].to(device)}, None)["input"]
        for name, encode in encoders.items():
            parts[name].append(encode(x).flatten(1).float())
        labels.append(raw["label"].to(device))
    label = torch.cat(labels)
    known = label >= 0
    return {name: (torch.cat(rows)[known], label[known]) for name, rows in parts.items()}
