"""Whether features form the classes by themselves: k-means, compared with the labels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.clustering import adjusted_rand_score, normalized_mutual_info_score

from evaluation.probes.base import FeatureScore, Labeled
from evaluation.probes.linear import check_features

STARTS = 10


class Clustering(FeatureScore):
    """k-means with one cluster per class on the training features; labels are used only to compare."""

    name = "clustering"
    heading = "k-means"
    metrics: ClassVar[dict[str, str]] = {"nmi": "NMI", "ari": "ARI"}
    order = 4
    by_name = True

    def protocol(self, num_train: int) -> dict[str, Any]:
        return {"clustering_features": "unit length", "clustering_starts": STARTS}

    def score(
        self, train: Labeled, val: Labeled, test: Labeled, num_classes: int, seed: int = 0
    ) -> tuple[dict[str, float], dict[str, float]]:
        found = clusters(train[0], test[0], num_classes, seed)
        labels = test[1].cpu()
        with torch.sparse.check_sparse_tensor_invariants(False):  # torch warns without it
            nmi, ari = normalized_mutual_info_score(found, labels), adjusted_rand_score(found, labels)
        return {"clustering_nmi": float(nmi), "clustering_ari": float(ari)}, {}


def clusters(train: Tensor, test: Tensor, k: int, seed: int = 0) -> Tensor:
    """The cluster of each test sample, by k-means (Lloyd 1982) on the training samples.

    Args:
        train: (N, D) features, normalized to unit length here; N >= k.
        test: (M, D).
        k: number of clusters.
        seed: seed of the ``STARTS`` initializations; the one with the smallest spread is used.

    Returns:
        (M,) int64 on the CPU.
    """
    check_features(train, "train features")
    check_features(test, "test features")
    points, others = (F.normalize(x.float(), dim=1).cpu().numpy() for x in (train, test))
    return torch.from_numpy(KMeans(k, n_init=STARTS, random_state=seed).fit(points).predict(others)).long()
