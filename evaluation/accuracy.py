"""Accuracies of predicted classes against labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

ACCURACIES = {"top1": "top-1", "macro": "macro", "top5": "top-5"}
"""What ``accuracies`` gives, and how tables call it."""

TOP5_ABOVE = 20
"""Top-5 accuracy is reported for more classes than these: with few classes it is near 1 for any features."""

CHUNK = 4096
"""Samples counted at once: top-5 counting holds two (samples, classes) integer tensors."""


def top1(predictions: Tensor, labels: Tensor) -> float:
    """Share of correct predictions, in [0, 1].

    Counted here, because ``torchmetrics`` rounds the same share to float32.

    Args:
        predictions: (N,) predicted classes.
        labels: (N,) true classes.

    Raises:
        ValueError: the shapes differ or there is nothing to count.
    """
    if predictions.shape != labels.shape or predictions.numel() == 0:
        raise ValueError(
            f"top1 needs as many predictions as labels and at least one, "
            f"got shapes {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    return (predictions == labels).sum().item() / labels.numel()


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1, macro and, for more than ``TOP5_ABOVE`` classes, top-5 accuracy.

    Args:
        scores: (N, K) floating point, the largest score is the predicted class.
        labels: (N,) integers in [0, K).

    Returns:
        ``top1``: share of correct predictions. ``macro``: the mean over classes of the share of their samples
        that is predicted correctly, so that rare classes count as much as common ones; classes without a
        sample in ``labels`` do not count (in torchmetrics' macro average they would count as 0 once they are
        predicted). ``top5``: share of samples whose class is among the five with the largest scores.
    """
    right, total = _counts(scores, labels, top_k=1)
    found = right[total > 0] / total[total > 0]
    result = {"top1": int(right.sum()) / len(labels), "macro": found.mean().item()}
    if scores.shape[1] > TOP5_ABOVE:
        result["top5"] = int(_counts(scores, labels, top_k=5)[0].sum()) / len(labels)
    return result


def _counts(scores: Tensor, labels: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Correctly predicted samples and all samples of each class, (K,) float64 each."""
    counts = torch.zeros(scores.shape[1], 5, dtype=torch.int64)  # true and false positives, ... , support
    for rows, classes in zip(scores.split(CHUNK), labels.split(CHUNK), strict=True):
        counts += multiclass_stat_scores(rows, classes, scores.shape[1], top_k=top_k, average="none").cpu()
    return counts[:, 0].double(), counts[:, 4].double()
