"""Accuracies of predicted classes against labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

ACCURACIES = {"top1": "top-1", "macro": "macro", "top5": "top-5"}
"""The keys of ``accuracies``, and their names in tables."""

TOP5_ABOVE = 20
"""Top-5 accuracy is reported for more classes than this; with few classes it is near 1 for any features."""

CHUNK = 4096
"""Samples counted at once: counting top-5 takes two integer tensors (samples, classes)."""


def top1(predictions: Tensor, labels: Tensor) -> float:
    """Share of correct predictions, in [0, 1].

    Hand-written, because ``torchmetrics`` rounds the share to float32.

    Args:
        predictions: (N,) predicted classes.
        labels: (N,) true classes.

    Raises:
        ValueError: the shapes differ or there is nothing to count.
    """
    if predictions.shape != labels.shape or predictions.numel() == 0:
        raise ValueError(
            f"top1 needs equally many predictions and labels, at least one, "
            f"got shapes {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    return (predictions == labels).sum().item() / labels.numel()


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1, macro and, for more than ``TOP5_ABOVE`` classes, top-5 accuracy.

    Args:
        scores: (N, K) floating point; the class with the largest score is predicted.
        labels: (N,) integers in [0, K).

    Returns:
        ``top1``: share of correct predictions. ``macro``: mean over classes of the accuracy on their samples,
        so that rare classes count as much as common ones; classes without samples are ignored (torchmetrics'
        macro average counts them as 0 once they are predicted). ``top5``: share of samples whose class is
        among the five with the largest scores.
    """
    right, total = _counts(scores, labels, top_k=1)
    found = right[total > 0] / total[total > 0]
    result = {"top1": int(right.sum()) / len(labels), "macro": found.mean().item()}
    if scores.shape[1] > TOP5_ABOVE:
        result["top5"] = int(_counts(scores, labels, top_k=5)[0].sum()) / len(labels)
    return result


def _counts(scores: Tensor, labels: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Number of correctly predicted samples and of all samples of each class, (K,) float64 each."""
    counts = torch.zeros(scores.shape[1], 5, dtype=torch.int64)  # true and false positives, ... , support
    for rows, classes in zip(scores.split(CHUNK), labels.split(CHUNK), strict=True):
        counts += multiclass_stat_scores(rows, classes, scores.shape[1], top_k=top_k, average="none").cpu()
    return counts[:, 0].double(), counts[:, 4].double()
