"""Accuracy by number of labels: the same draws for frozen features, fine-tuning and training from scratch."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import SSLDataModule
from datamodules.splits import Split
from evaluation.accuracy import top1
from evaluation.probes.linear import L2_GRID, fit_linear_probe, select_linear_probe
from sslmodules.base import SSLModule
from sslmodules.optim import warmup_cosine

PER_CLASS, SHARES = (1, 5, 10, 20), (0.01, 0.1, 1.0)
BATCH, EPOCHS, FEWEST, MOST = 16, 8, 200, 8000
FEW_L2 = 1e-2
"""L2 of a linear probe with too few labels to choose it on equally many samples of val."""

PROTOCOL = {
    "draws": "from the labeled training samples, stratified by class, the same for every row; others for a "
    "run with another seed",
    "linear": "standardized features; L2 chosen on as many samples of val as there are labels; with fewer "
    f"than 100, {FEW_L2}",
    "training": f"AdamW, weight decay 0.01, batch {BATCH}, {EPOCHS} epochs, but {FEWEST} to {MOST} steps, "
    "a tenth of them warm-up, then a cosine; gradients clipped to norm 1; no augmentation; final weights",
    "l2_grid": list(L2_GRID),
}


class Budget(NamedTuple):
    """A number of labels: per class, or a share of all."""

    per_class: int | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        return f"{self.per_class} per class" if self.share is None else f"{self.share:.0%}"


BUDGETS = (*(Budget(per_class=n) for n in PER_CLASS), *(Budget(share=s) for s in SHARES))


def draw_seed(run_seed: int, number: int) -> int:
    """Seed of a draw and of training with it: runs with different seeds, which are averaged, have different
    draws.
    """
    return 1000 * run_seed + number


def draw(labels: Tensor, budget: Budget, seed: int) -> Tensor | None:
    """Indices (n,) of the samples whose labels are used, in ascending order; None if a class has too few.

    Args:
        labels: (N,), -1 = unknown.
        budget: number of labels.
        seed: seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels[labels >= 0].unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        wanted = budget.per_class
        if budget.share is not None:
            wanted = max(1, round(budget.share * len(members)))
        assert wanted is not None
        if wanted > len(members):
            return None
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen).sort().values


def linear_score(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int
) -> float:
    """Top-1 on ``test`` of a linear probe; each pair is features (N, D) and labels (N,)."""
    few = len(train[1])
    if few < 100:
        probe = fit_linear_probe(*train, num_classes, l2=FEW_L2)
    else:
        rows = torch.randperm(len(val[1]), generator=torch.Generator().manual_seed(0))[:few]
        probe, _ = select_linear_probe(*train, val[0][rows], val[1][rows], num_classes)
    return top1(probe.predict(test[0]), test[1])


def samples(data: SSLDataModule, split: Split, rows: Sequence[int], device: torch.device) -> Tensor:
    """Standardized clean ``input`` of some samples of a split."""
    raw = data.dataset(split).__getitems__(list(rows))["input"].to(device)  # type: ignore[attr-defined]
    return data.transform({"input": raw}, None)["input"]


def steps_with(labels: int) -> int:
    """Steps of a training with so many labels, from random weights or from trained ones."""
    return min(MOST, max(FEWEST, math.ceil(EPOCHS * labels / BATCH)))


def train_classifier(
    module: SSLModule,
    data: SSLDataModule,
    rows: Tensor,
    labels: Tensor,
    num_classes: int,
    lr: float,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """Train the network behind ``embed`` and a linear classifier on it.

    Args:
        module: training starts from its weights; it is not changed.
        rows: (n,) indices in the split "bank".
        labels: (n,) their labels.

    Returns:
        ``input`` -> class scores (B, K), in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = copy.deepcopy(module).to(device)
        network, head = module.feature_encoder, nn.Linear(module.encoder.num_features, num_classes).to(device)
        parameters = [*network.requires_grad_(True).parameters(), *head.parameters()]
        steps = steps_with(len(rows))
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
        factor = warmup_cosine(steps, steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        network.train()
        order = torch.empty(0, dtype=torch.int64)
        size = min(BATCH, len(rows))
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(rows))
            chosen, order = order[:size], order[size:]
            x = samples(data, "bank", rows[chosen].tolist(), device)
            with torch.enable_grad():
                loss = F.cross_entropy(head(module.embed(x).float()), labels[chosen].to(device))
                optimizer.zero_grad()
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    network.eval()
    return lambda x: head(module.embed(x).float())


# ---- in words ----------------------------------------------------------------------------------------------


def equal_labels(curve: dict[int, float], score: float) -> float | None:
    """Smallest number of labels that gives ``score`` on a curve (labels -> accuracy); None if none does.

    Interpolated linearly in the logarithm of the number. If the first point is above ``score`` already, it is
    that point's number.
    """
    points = sorted(curve.items())
    if not points or score <= points[0][1]:
        return float(points[0][0]) if points else None
    for (n, low), (m, high) in itertools.pairwise(points):
        if low < score <= high:
            share = (score - low) / (high - low)
            return math.exp(math.log(n) + share * (math.log(m) - math.log(n)))
    return None


def verdict(table: dict[str, dict[str, Any]], counts: dict[str, int]) -> str:
    """Whether pre-training helped, in one sentence, at 10 % of the labels.

    Args:
        table: scores of each draw by row and budget.
        counts: number of labels by budget.
    """
    at = Budget(share=0.1).name
    tuned, scratch = mean(table["fine-tuned"][at]), mean(table["scratch"][at])
    if tuned <= scratch:
        return (
            f"no gain seen: with {at} of the labels fine-tuning from this run has {tuned:.3f}, training from "
            f"scratch {scratch:.3f}"
        )
    total = counts[Budget(share=1.0).name]
    needed = equal_labels({counts[b]: mean(values) for b, values in table["scratch"].items()}, tuned)
    equals = f"with {needed / total:.0%}" if needed is not None else "with more than 100 %"
    begins = f"fine-tuning from this run with {at} of the labels ({tuned:.3f})"
    return f"{begins} equals training from scratch {equals}"
