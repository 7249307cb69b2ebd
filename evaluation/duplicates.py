"""Counts test samples that are also training samples."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import SSLDataModule, raw_input
from datamodules.splits import Split

NEAR = 0.999
"""Minimum cosine of two standardized inputs that count as near duplicates."""

MOST_TRAIN, MOST_TEST = 20_000, 5_000
"""Maximum number of samples checked in each split; the cost grows with their product."""


def count_duplicates(
    seen: SSLDataModule, data: SSLDataModule, train: Split = "train", test: Split = "test"
) -> dict[str, int]:
    """Number of test samples found among the training samples: ``exact``, and ``near`` including exact ones.

    Also the number of samples checked in each split. For tokens, ``near`` equals ``exact``.

    Args:
        seen: data with the split ``train``.
        data: data with the split ``test``.
    """
    keys, first = _read(seen, train, MOST_TRAIN)
    mine, second = _read(data, test, MOST_TEST)
    known = set(keys)
    exact = [key in known for key in mine]
    near = torch.tensor(exact)
    if first is not None and second is not None and first.shape[1] == second.shape[1]:
        for start in range(0, len(second), 256):
            rows = slice(start, start + 256)
            near[rows] |= (second[rows] @ first.T).amax(1) > NEAR
    return {"exact": sum(exact), "near": int(near.sum()), "train": len(keys), "test": len(mine)}


def _read(data: SSLDataModule, split: Split, most: int) -> tuple[list[bytes], Tensor | None]:
    """Hashes of the samples, and their directions (N, D); None for tokens."""
    keys, rows = [], []
    dataset = data.dataset(split)
    n = min(most, len(dataset))  # type: ignore[arg-type]
    for start in range(0, n, 512):
        raw = dataset.__getitems__(list(range(start, min(start + 512, n))))["input"]  # type: ignore[attr-defined]
        keys += [hashlib.sha256(one.numpy().tobytes()).digest() for one in raw.contiguous()]
        x = data.transform({"input": raw}, None)["input"]
        if x.is_floating_point():
            rows.append(F.normalize(raw_input(x), dim=1))
    return keys, torch.cat(rows) if rows else None
