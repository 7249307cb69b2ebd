"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those with weight decay, and biases and norms (fewer than two dimensions) without.

    The rule goes by dimensions, not by names, as in the official DINO and MAE code.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def warmup_cosine(total: int, warmup: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the peak learning rate at each optimizer step: linear from 1/warmup to 1, then a half cosine to ``final``.

    Args:
        total: optimizer steps of the run.
        warmup: steps of warm-up, at most ``total``.
        final: factor that the last step approaches (Loshchilov & Hutter 2017, one cycle without restarts).

    Returns:
        step (from 0) -> factor; beyond ``total`` it stays at ``final``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
