"""Retrieval: whether the training samples most similar to a test sample are of its class. No fitting."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.probes.base import FeatureScore, Labeled
from evaluation.probes.linear import check_features, check_labeled_features

QUERIES = 256
"""Test samples ranked at once."""


class Retrieval(FeatureScore):
    """Test samples as queries among the training samples, by cosine similarity."""

    name = "retrieval"
    heading = "retrieval"
    metrics: ClassVar[dict[str, str]] = {"recall1": "recall@1", "map": "mAP"}
    order = 5
    by_name = True

    def score(
        self, train: Labeled, val: Labeled, test: Labeled, num_classes: int, seed: int = 0
    ) -> tuple[dict[str, float], dict[str, float]]:
        check_labeled_features(*train, num_classes, "train features")
        recall, precision = retrieval(*test, *train)
        return {"retrieval_recall1": recall, "retrieval_map": precision}, {}


def retrieval(query: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor) -> tuple[float, float]:
    """Recall@1 and mean average precision of ranking the whole bank by cosine similarity to each query.

    The average precision of a query is the mean, over the bank's samples of its class, of the share of its
    class among the samples ranked up to that one. It is 0 if the bank has no sample of the query's class.

    Args:
        query: (Q, D), not in the bank.
        query_labels: (Q,).
        bank: (N, D).
        bank_labels: (N,).

    Returns:
        Share of the queries whose most similar sample is of their class, and mAP, both in [0, 1].
    """
    check_features(query, "query features")
    unit = F.normalize(bank.to(bank_labels.device).float(), dim=1)
    ranks = torch.arange(1, len(bank) + 1, device=unit.device)
    first, total = 0.0, 0.0
    for rows, labels in zip(query.split(QUERIES), query_labels.split(QUERIES), strict=True):
        similarity = F.normalize(rows.to(unit.device).float(), dim=1) @ unit.T  # (Q, N)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        right = (bank_labels[order] == labels[:, None]).double()
        precision = right.cumsum(1) / ranks
        first += right[:, 0].sum().item()
        total += ((precision * right).sum(1) / right.sum(1).clamp(min=1)).sum().item()
    return first / len(query), total / len(query)
