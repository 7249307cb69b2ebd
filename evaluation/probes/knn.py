"""Weighted k-nearest-neighbor probe, which needs no fitting.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4, with
the temperature and k that DINO reports (Caron et al. 2021: T = 0.07, k = 20; Wu et al. use k = 200). Always
report accuracies with their k and T.

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
from evaluation.team import Team

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
            return knn_votes(features, *train, num_classes, k=k, temperature=TEMPERATURE, team=self.team)

        return Fitted([votes], {})


HALF = (torch.float16, torch.bfloat16)

BANK_ROWS = 2**17
"""Bank samples compared at once; similarities of more would take gigabytes."""

HALF_ROWS = BANK_ROWS // 32
"""The same for a bank in half precision, of which each block is also held in float32."""


def _unit_blocks(bank: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A bank (N, D) as unit vectors, in blocks: computed once for float32 features, otherwise on demand."""
    if bank.dtype in HALF:
        for part in bank.split(HALF_ROWS):
            yield F.normalize(part.to(device).float(), dim=1)
    else:
        yield from F.normalize(bank.float(), dim=1).split(BANK_ROWS)


class _Neighbors:
    """Similarities and indices (Q, k) of the nearest bank samples so far, the most similar first.

    Args:
        query: (Q, D), not necessarily of unit length.
        k: at most the bank's size.
        chunk_size: queries compared at once.
        device: where they are compared.
    """

    def __init__(self, query: Tensor, k: int, chunk_size: int, device: torch.device) -> None:
        self.chunks, self.k, self.device = query.split(chunk_size), k, device
        self.best: list[tuple[Tensor, Tensor]] = []
        self.seen = 0  # bank samples

    def add(self, block: Tensor) -> None:
        """Compare with the next samples of the bank, unit vectors (n, D)."""
        found = [self._nearest(chunk, block) for chunk in self.chunks]
        self.best = found if not self.seen else list(map(self._better, self.best, found))
        self.seen += len(block)

    def _nearest(self, chunk: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        query = F.normalize(chunk.to(self.device).float(), dim=1)
        similarity, index = (query @ block.T).topk(min(self.k, len(block)), dim=1)
        return similarity, index + self.seen

    def _better(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        similarity, index = (torch.cat(parts, 1) for parts in zip(a, b, strict=True))
        similarity, order = similarity.topk(min(self.k, similarity.shape[1]), dim=1)
        return similarity, index.gather(1, order)

    def of_all(self) -> tuple[Tensor, Tensor]:
        similarity, index = (torch.cat(parts) for parts in zip(*self.best, strict=True))
        return similarity, index


def neighbors_of_share(
    team: Team,
    device: torch.device,
    rows: int,
    width: int,
    bank_size: int,
    k: int,
    chunk_size: int,
    query: Tensor | None = None,
    bank: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Every rank finds the neighbors of its share of the queries, while rank 0 sends it the bank in blocks.

    Args:
        team: whose processes all call this.
        device: where they compute.
        rows: queries of each rank.
        width: D.
        bank_size: N.
        k: neighbors.
        chunk_size: queries compared at once.
        query: on rank 0 (Q, D), Q <= size * rows.
        bank: on rank 0 (N, D).

    Returns:
        On rank 0 similarities and places (size * rows, k), of which the first Q are those of the queries.
    """
    padded: Tensor | None = None
    if query is not None:
        padded = torch.zeros(team.size * rows, width, device=device)
        padded[: len(query)] = query
    mine = team.share(padded, torch.empty(rows, width, device=device))
    neighbors = _Neighbors(mine, k, chunk_size, device)
    for begin in range(0, bank_size, HALF_ROWS):
        block = torch.empty(min(HALF_ROWS, bank_size - begin), width, device=device)
        if bank is not None:
            block.copy_(bank[begin : begin + len(block)])
        neighbors.add(F.normalize(team.spread(block), dim=1))
    similarity, index = (team.gather(part, rows) for part in neighbors.of_all())
    return None if similarity is None or index is None else (similarity, index)


def nearest(
    query: Tensor,
    bank: Tensor,
    k: int,
    device: torch.device,
    chunk_size: int = 1024,
    team: Team = Team(),  # noqa: B008  alone: it holds nothing that changes
) -> tuple[Tensor, Tensor]:
    """Similarities and places (Q, k) of the nearest bank samples, the most similar first."""
    if team.size > 1 and bank.dtype in HALF:
        options = {
            "rows": -(-len(query) // team.size),
            "width": query.shape[1],
            "bank_size": len(bank),
            "k": k,
            "chunk_size": chunk_size,
        }
        team.begin("nearest", **options)
        found = neighbors_of_share(team, device, **options, query=query, bank=bank)
        assert found is not None  # this is rank 0
        return found[0][: len(query)], found[1][: len(query)]
    neighbors = _Neighbors(query, k, chunk_size, device)
    for block in _unit_blocks(bank, device):
        neighbors.add(block)
    return neighbors.of_all()


@torch.no_grad()
def nearest_samples(query: Tensor, bank: Tensor, k: int) -> Tensor:
    """Indices (Q, k) in ``bank`` (N, D) of the samples most similar to each ``query`` (Q, D) by cosine.

    The most similar sample comes first; k <= N.
    """
    check_features(query, "query features")
    check_features(bank, "bank features")
    return nearest(query, bank, k, query.device)[1]


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
    team: Team = Team(),  # noqa: B008  alone: it holds nothing that changes
) -> Tensor:
    """Votes of the k bank samples most similar to each query, with weight exp(s / T), s = cosine similarity.

    Queries must not be in the bank, as each would be its own nearest neighbor. Features are normalized to
    unit length, not centered. Works in float32 whatever the input's type, also inside autocast. A float32
    bank is copied once; one in half precision is read in blocks. Memory: ``chunk_size`` times at most
    ``BANK_ROWS`` similarities.

    Args:
        query: (Q, D) features to classify, any floating-point type, CPU or GPU.
        bank: (N, D) labeled features, on the same device.
        bank_labels: (N,) integers in [0, num_classes).
        num_classes: K.
        k: neighbors that vote, default 20, at most N (pass ``min(k, N)`` for tiny banks and report that k).
        temperature: T > 0, default 0.07; with small values the nearest neighbor decides, with large ones the
            majority.
        chunk_size: queries compared at once, default 1024; changes memory, not the result.
        team: processes that share the queries of a bank in half precision; this one is rank 0.

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

    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        labels = bank_labels.long()
        similarity, index = nearest(query, bank, k, labels.device, chunk_size, team)  # (Q, k)
        # Relative to the nearest neighbor, which scales all votes of a query equally and cannot overflow for
        # small T.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        empty = weights.new_zeros(len(query), num_classes)
        return empty.scatter_add_(1, labels[index], weights)
