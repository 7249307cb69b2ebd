"""Which sample belongs to which split. Hold-outs are drawn with a constant seed, never with the run's, so
that numbers of different runs are measured on the same samples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Split = Literal["train", "bank", "val", "test"]

SPLIT_SEED = 0
"""Seed of every hold-out in this file."""


def stratified_holdout(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``size`` samples with every class in its share (largest remainder); the choice is fixed by
    ``SPLIT_SEED``.

    Args:
        labels: (N,) integers; all equal (unlabeled data) makes it a plain random choice.
        size: samples to hold out, at most N.

    Returns:
        Sorted indices (N - size,) that are kept and (size,) that are held out.
    """
    rng = np.random.RandomState(
        SPLIT_SEED
    )  # the legacy generator: NumPy guarantees that its stream never changes
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * size / len(labels)
    quota = np.floor(share).astype(np.int64)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    held = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, quota, strict=True):
        held[rng.permutation(np.flatnonzero(labels == label))[:n]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
