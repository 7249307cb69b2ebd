"""Few-shot probe: how good are the features when only a handful of labels per class is known?

A linear probe (``evaluation.probes.linear``) fitted on ``shots`` examples of every class, repeated over
several draws of those examples. Where a full linear probe saturates, this one still separates good features
from fair ones.

Protocol, the same for every encoder:

- Draws come from a CPU generator and the labels alone: the same labels and seed give every encoder the same
  examples on every device, so differences between encoders are paired by draw.
- Features are standardized by mean and deviation of ALL training features, labels unused. In pre-training
  those samples were available without labels, so the statistics cost no label; from 5 shots per class they
  would mostly measure the draw (a feature that happens to be nearly constant in the shots would be blown up
  on the test split).
- l2 is fixed: a few shots leave no labels to select it on, and choosing it on a large labeled split would no
  longer be few-shot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError
from evaluation.probes.linear import check_labeled_features, feature_statistics, fit_linear_probe, top1


def few_shot_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    shots: int = 5,
    draws: int = 10,
    seed: int = 0,
    l2: float = 1e-2,
) -> list[float]:
    """Top-1 accuracy on the test features of linear probes fitted on ``shots`` examples per class.

    Args:
        train_features: (N, D); the shots are drawn from them, and all of them give the standardization.
        train_labels: (N,) integers in [0, num_classes), every class at least ``shots`` times.
        test_features: (M, D). ``test_labels``: (M,).
        num_classes: K.
        shots: labeled examples per class, default 5, drawn without replacement.
        draws: independent draws, default 10. More draws leave the first ones as they are.
        seed: of the draws, default 0.
        l2: as in ``fit_linear_probe``, default 1e-2.

    Returns:
        One accuracy in [0, 1] per draw; report mean and standard deviation.

    Raises:
        ValueError: a class with fewer than ``shots`` training examples (names it and its count); shots or
            draws < 1; otherwise as ``fit_linear_probe``.
    """
    check_labeled_features(train_features, train_labels, num_classes, "train features")
    check_labeled_features(test_features, test_labels, num_classes, "test features")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train features are {train_features.shape[1]} wide, test features {test_features.shape[1]}"
        )
    check_at_least(1, shots=shots, draws=draws)
    labels_cpu = train_labels.cpu()
    members = [(labels_cpu == c).nonzero().squeeze(1) for c in range(num_classes)]  # (N_c,) indices per class
    for c, indices in enumerate(members):
        if len(indices) < shots:
            raise ConfigError(
                f"class {c} has {len(indices)} training examples, {shots}-shot needs at least {shots}"
            )

    mean, std = feature_statistics(train_features.detach())
    test = (test_features.detach().float() - mean).div_(std)
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for _ in range(draws):
        chosen = torch.cat(
            [indices[torch.randperm(len(indices), generator=generator)[:shots]] for indices in members]
        )
        chosen = chosen.to(train_features.device)
        shots_features = (train_features[chosen].detach().float() - mean).div_(std)
        probe = fit_linear_probe(shots_features, train_labels[chosen], num_classes, l2=l2, standardize=False)
        accuracies.append(top1(probe.predict(test), test_labels))
    return accuracies
