"""Weighted k-nearest-neighbor probe, which needs no fitting.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4, with
the temperature and k that DINO reports (Caron et al. 2021: T = 0.07, k = 20; Wu et al. use k = 200). A figure
means little without its k and T.

Shapes: Q queries, N bank samples, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.checks import check, check_at_least, check_within
from evaluation.probes.base import Fitted, Labeled, Probe
from evaluation.probes.linear import check_features, check_labeled_features

K, TEMPERATURE = 20, 0.07


class KNNProbe(Probe):
    """Weighted nearest neighbors among all training features."""

    name = "knn"
    heading = "kNN"
    order = 2

    def protocol(self, num_train: int) -> dict[str, Any]:
        return {"knn_k": min(K, num_train), "knn_temperature": TEMPERATURE}

    def fit(self, train: Labeled, val: Labeled, num_classes: int, seed: int) -> Fitted:
        def votes(features: Tensor) -> Tensor:
            k = min(K, len(train[0]))
            return knn_votes(features, *train, num_classes, k=k, temperature=TEMPERATURE)

        return Fitted([votes], {})


BANK_ROWS = 2**17
"""Bank samples that are compared with at once: similarities of more would be gigabytes. Of a bank in half
precision a part, because each block is held in float32 as well.
"""


class _Unit:
    """A bank (N, D) as unit vectors, in blocks: made once of float32 features, else when they are needed."""

    def __init__(self, bank: Tensor, device: torch.device) -> None:
        self.done = bank.dtype in (torch.float32, torch.float64)
        self.bank, self.device = F.normalize(bank.float(), dim=1) if self.done else bank, device

    def blocks(self) -> Iterator[Tensor]:
        for part in self.bank.split(BANK_ROWS if self.done else max(1, BANK_ROWS // 32)):
            yield part if self.done else F.normalize(part.to(self.device).float(), dim=1)


def _nearest(query: Tensor, bank: _Unit, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and places (Q, k) of the nearest bank samples, the most similar first."""
    best: tuple[Tensor, Tensor] | None = None
    start = 0
    for block in bank.blocks():
        similarity, index = (query @ block.T).topk(min(k, len(block)), dim=1)
        index += start
        start += len(block)
        if best is not None:
            similarity, index = torch.cat([best[0], similarity], 1), torch.cat([best[1], index], 1)
            similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
            index = index.gather(1, order)
        best = similarity, index
    assert best is not None  # the bank is not empty
    return best


@torch.no_grad()
def nearest_samples(query: Tensor, bank: Tensor, k: int) -> Tensor:
    """Places (Q, k) in ``bank`` (N, D) of the samples most similar to each ``query`` (Q, D) by cosine, the
    most similar first; k <= N.
    """
    check_features(query, "query features")
    check_features(bank, "bank features")
    return _nearest(F.normalize(query.float(), dim=1), _Unit(bank, query.device), k)[1]


def knn_predict(
    query: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk_size: int = 1024,
) -> Tensor:
    """The class with the most votes for each query, (Q,) int64; arguments as for ``knn_votes``."""
    return knn_votes(query, bank, bank_labels, num_classes, k, temperature, chunk_size).argmax(dim=1)


def knn_votes(
    query: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk_size: int = 1024,
) -> Tensor:
    """Votes of the k bank samples most similar to each query, with weight exp(s / T), s = cosine similarity.

    The query must not be in the bank: it would be its own nearest neighbor. Features are brought to unit
    length, not centered. Works in float32 whatever the input's type and inside autocast. Of a float32 bank it
    makes one copy; one in half precision is read in blocks. Holds ``chunk_size`` times at most ``BANK_ROWS``
    similarities.

    Args:
        query: (Q, D) features to classify, any floating-point type, CPU or GPU.
        bank: (N, D) labeled features, on the same device.
        bank_labels: (N,) integers in [0, num_classes).
        num_classes: K.
        k: neighbors that vote, default 20, at most N (pass ``min(k, N)`` for tiny banks and report that k).
        temperature: T > 0, default 0.07; small values let the nearest neighbor decide, large ones count
            heads.
        chunk_size: queries compared at once, default 1024; changes memory, not the result.

    Returns:
        (Q, num_classes) float32 votes, relative to the weight of the most similar sample.

    Raises:
        ValueError: empty or non-finite features, widths that differ, a label outside [0, num_classes), k
            outside [1, N], temperature <= 0, chunk_size < 1.
    """
    check_features(query, "query features")
    check_labeled_features(bank, bank_labels, num_classes, "bank features")
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"query features are {query.shape[1]} wide, bank features {bank.shape[1]}")
    check(1 <= k <= len(bank), "k", f"between 1 and the bank's N = {len(bank)} samples", k)
    check_within(0, math.inf, "()", temperature=temperature)
    check_at_least(1, chunk_size=chunk_size)

    votes = []
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        labels = bank_labels.long()
        unit = _Unit(bank, labels.device)
        for part in query.split(chunk_size):
            chunk = F.normalize(part.to(labels.device).float(), dim=1)
            similarity, index = _nearest(chunk, unit, k)  # (chunk, k), most similar first
            # Measured from the nearest neighbor, which scales a query's votes alike and cannot overflow for
            # small T.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            empty = weights.new_zeros(len(chunk), num_classes)
            votes.append(empty.scatter_add_(1, labels[index], weights))
    return torch.cat(votes)
