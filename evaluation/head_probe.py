"""Heads trained on frozen features: a linear layer, an MLP, or one query that attends to tokens or positions.

Each clean sample goes through the encoder once. One head per learning rate is trained on the features, all
from the same initial weights and on the same batches; the most accurate on ``val`` is evaluated on ``test``.
The attentive head is the probe of V-JEPA (Bardes et al. 2024, https://arxiv.org/abs/2404.08471) and CAPI
(Darcet et al. 2025, https://arxiv.org/abs/2502.08769), reduced to one attention and a linear layer.

Differs from both: no augmentation, so that the encoder need not run in every step.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.splits import Split
from evaluation.accuracy import accuracies, top1
from evaluation.extraction import SPLITS
from evaluation.features import Means, extract_features
from evaluation.probes.linear import feature_statistics
from sslmodules.base import SSLModule
from sslmodules.fine_tune import FineTune
from sslmodules.networks.classifier import Head, make_head
from sslmodules.optim import warmup_cosine

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BATCH, EPOCHS, FEWEST_STEPS = 256, 20, 500

FEATURES = {
    "linear": "embed, standardized over the bank",
    "mlp": "embed, standardized over the bank",
    "attentive": "tokens or positions of the encoder, after a layer norm",
}


class Frozen(NamedTuple):
    """Features of the labeled samples of a split, and their labels.

    Attributes:
        h: (N, D) features, or (N, T, D) tokens or positions.
        valid: (N, T), False for padding; None for features.
        labels: (N,).
    """

    h: Tensor
    valid: Tensor | None
    labels: Tensor

    def part(self, rows: Tensor | slice) -> tuple[Tensor, ...]:
        """A head's inputs for these rows, in float32 on the device of the labels."""
        h = self.h[rows].to(self.labels.device).float()
        return (h,) if self.valid is None else (h, self.valid[rows].to(self.labels.device))


def head_scores(
    kind: Head, module: SSLModule, data: SSLDataModule, device: torch.device, means: Means, seed: int
) -> dict[str, Any]:
    """Train heads on the frozen encoder, choose one on ``val`` and evaluate it on ``test``.

    Args:
        kind: kind of head.
        module: in eval mode, on ``device``; not modified.
        data: set up, with labels.
        device: where networks compute.
        means: precision of the encoder, and where to keep features that do not fit in memory.
        seed: for the initial weights of the heads and the order of samples.

    Returns:
        ``top1``, ``macro`` and for many classes ``top5`` on ``test``; ``lr``; ``samples``, the number
        of training samples; ``val_top1`` by rate.

    Raises:
        ConfigError: ``attentive`` with an encoder that returns a single vector; a split without labels.
    """
    classes = data.num_classes or 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        found = _extract(kind, module, data, device, means)
        heads = train_heads(make_head(kind, found["bank"].h.shape[-1], classes), found["bank"])
    scores = [top1(_predict(head, found["val"]).argmax(1), found["val"].labels) for head in heads]
    best = max(range(len(RATES)), key=scores.__getitem__)  # of equal ones the smallest rate
    return {
        **accuracies(_predict(heads[best], found["test"]), found["test"].labels),
        "lr": RATES[best],
        "samples": len(found["bank"].labels),
        "val_top1": {str(rate): score for rate, score in zip(RATES, scores, strict=True)},
    }


def steps_for(samples: int) -> int:
    return max(FEWEST_STEPS, math.ceil(EPOCHS * samples / min(BATCH, samples)))


def protocol(kind: Head, samples: int, seed: int) -> dict[str, Any]:
    """Every setting that the scores depend on."""
    return {
        "features": f"{FEATURES[kind]}; of the clean input, eval mode, frozen",
        "optimizer": "AdamW, weight decay 0.01, a twentieth of the steps warm-up, then a cosine to 0",
        "rates": list(RATES),
        "batch": min(BATCH, samples),
        "steps": steps_for(samples),
        "selection_split": "val",
        "reported_split": "test",
        "seed": seed,
    }


def train_heads(head: nn.Module, bank: Frozen) -> list[nn.Module]:
    """Trained copies of ``head``, one for each of ``RATES``, each with the gradient of its own loss only."""
    heads = [copy.deepcopy(head).to(bank.labels.device).train() for _ in RATES]
    groups = [{"params": h.parameters(), "lr": rate} for h, rate in zip(heads, RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    count, steps = len(bank.labels), steps_for(len(bank.labels))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, steps // 20))
    size, order = min(BATCH, count), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count)
        rows, order = order[:size], order[size:]
        inputs, labels = bank.part(rows), bank.labels[rows.to(bank.labels.device)]
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(h(*inputs), labels) for h in heads]).sum().backward()
        optimizer.step()
        schedule.step()
    return [h.eval() for h in heads]


def _extract(
    kind: Head, module: SSLModule, data: SSLDataModule, device: torch.device, means: Means
) -> dict[Split, Frozen]:
    if kind != "attentive":
        found = {s: extract_features({"": module.embed}, data, s, device, means)[""] for s in SPLITS}
        _check_labeled({s: len(labels) for s, (_, labels) in found.items()})
        mean, std = feature_statistics(found["bank"][0])
        return {s: Frozen((h.float() - mean.to(h)) / std.to(h), None, y) for s, (h, y) in found.items()}
    frozen = FineTune(
        module.feature_encoder,
        data.num_classes or 0,
        head=kind,
        pixels=module.pixels,
        padding=data.padding,
        optimizer=torch.optim.AdamW,
    )

    def tokens(x: Tensor) -> Tensor:
        """(B, T * (D + 1)): each token, then 1 if it is valid, so that one pass gives both."""
        h, valid = frozen.tokens(x)
        return torch.cat([h, valid[:, :, None].to(h)], dim=2).flatten(1)

    found = {s: extract_features({"": tokens}, data, s, device, means)[""] for s in SPLITS}
    _check_labeled({s: len(labels) for s, (_, labels) in found.items()})
    width = frozen.feature_encoder.token_width
    parts = {s: (h.unflatten(1, (-1, width + 1)), labels) for s, (h, labels) in found.items()}
    return {s: Frozen(h[:, :, :width], h[:, :, width] > 0, labels) for s, (h, labels) in parts.items()}


@torch.no_grad()
def _predict(head: nn.Module, split: Frozen) -> Tensor:
    """Class scores (N, K)."""
    parts = range(0, len(split.labels), 1024)
    return torch.cat([head(*split.part(slice(begin, begin + 1024))) for begin in parts])


def _check_labeled(counts: dict[Split, int]) -> None:
    for split, count in counts.items():
        if count == 0:
            raise ConfigError(f"--head: no sample of the split {split} has a label")


def check_labels(data: SSLDataModule) -> None:
    """ConfigError unless the data set has labels."""
    if data.num_classes is None:
        raise ConfigError(
            f"--head needs data with labels, but {type(data).__name__} has none: give --data NAME"
        )
