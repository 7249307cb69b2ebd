"""Few-shot probe: a linear probe on a few labels per class.

A linear probe (``evaluation.probes.linear``) fitted on ``shots`` examples of every class, repeated over
several draws of those examples. When a full linear probe saturates, this one still distinguishes good
features from fair ones.

Protocol, the same for every encoder:

- Draws depend only on the labels and a CPU generator: the same labels and seed give every encoder the same
  examples on every device, so differences between encoders are paired by draw.
- Features are standardized by mean and deviation of ALL training features, without using labels: in
  pre-training, those samples were available without labels. Statistics of 5 shots per class would mostly
  measure the draw (a feature that happens to be nearly constant in the shots would be blown up on the test
  split).
- l2 is fixed: a few shots leave no labels to select it on, and selection on a large labeled split would not
  be few-shot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError
from evaluation.probes.base import Fitted, Labeled, Probe
from evaluation.probes.linear import (
    LinearClassifier,
    check_labeled_features,
    feature_statistics,
    fit_linear_probe,
)

SHOTS, DRAWS, L2 = 5, 10, 1e-2


class FewShotProbe(Probe):
    """Linear probes on a few training samples per class: mean and deviation over several draws."""

    name = "fewshot"
    heading = f"{SHOTS}-shot"
    order = 3

    def protocol(self, num_train: int) -> dict[str, Any]:
        return {"standardize": True, "fewshot_shots": SHOTS, "fewshot_draws": DRAWS, "fewshot_l2": L2}

    def obstacle(self, train_labels: Tensor, class_names: Sequence[str]) -> str | None:
        counts = train_labels.bincount(minlength=len(class_names)).tolist()
        short = [f"{name!r} has {n}" for name, n in zip(class_names, counts, strict=True) if n < SHOTS]
        if not short:
            return None
        more = f" ({len(short)} classes have too few)" if len(short) > 1 else ""
        return f"class {short[0]} labeled training samples, but {SHOTS} per class are needed{more}"

    def fit(self, train: Labeled, val: Labeled, num_classes: int, seed: int) -> Fitted:
        fitted = fit_few_shot_probes(*train, num_classes, SHOTS, DRAWS, seed, L2)
        return Fitted([classifier.logits for classifier in fitted], {})


def fit_few_shot_probes(
    train_features: Tensor,
    train_labels: Tensor,
    num_classes: int,
    shots: int = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
    l2: float = L2,
) -> list[LinearClassifier]:
    """Linear probes, each fitted on a draw of ``shots`` examples per class.

    Args:
        train_features: (N, D); the shots are drawn from them, and all are used for standardization.
        train_labels: (N,) integers in [0, num_classes), every class at least ``shots`` times.
        num_classes: K.
        shots: labeled examples per class, default 5, drawn without replacement.
        draws: independent draws, default 10. Additional draws do not change the first ones.
        seed: seed of the draws, default 0.
        l2: as in ``fit_linear_probe``, default 1e-2.

    Returns:
        A probe for each draw; it takes raw features.

    Raises:
        ConfigError: a class with fewer than ``shots`` training examples (names it and its count); shots or
            draws < 1; otherwise as ``fit_linear_probe``.
    """
    check_labeled_features(train_features, train_labels, num_classes, "train features")
    check_at_least(1, shots=shots, draws=draws)
    labels_cpu = train_labels.cpu()
    members = [(labels_cpu == c).nonzero().squeeze(1) for c in range(num_classes)]  # (N_c,) indices per class
    for c, indices in enumerate(members):
        if len(indices) < shots:
            raise ConfigError(
                f"class {c} has {len(indices)} training examples, {shots}-shot needs at least {shots}"
            )

    mean, std = feature_statistics(train_features.detach())
    generator = torch.Generator().manual_seed(seed)
    fitted = []
    for _ in range(draws):
        chosen = torch.cat(
            [indices[torch.randperm(len(indices), generator=generator)[:shots]] for indices in members]
        )
        chosen = chosen.to(train_features.device)
        shots_features = (train_features[chosen].detach().float() - mean).div_(std)
        probe = fit_linear_probe(shots_features, train_labels[chosen], num_classes, l2=l2, standardize=False)
        fitted.append(probe._replace(mean=mean.to(probe.weight), std=std.to(probe.weight)))
    return fitted
