"""Calibration: whether the confidence of a linear probe matches its accuracy."""

from __future__ import annotations

from typing import Any, ClassVar

from torchmetrics.functional.classification import multiclass_calibration_error

from evaluation.probes.base import FeatureScore, Labeled
from evaluation.probes.linear import select_linear_probe

BINS = 15


class Calibration(FeatureScore):
    """Expected calibration error (Guo et al. 2017) of the linear probe whose L2 is chosen on ``val``.

    The mean over test samples of the difference between the probability of the predicted class and the
    accuracy, both averaged in each of ``BINS`` equal bins of that probability.
    https://arxiv.org/abs/1706.04599
    """

    name = "calibration"
    heading = "linear"
    metrics: ClassVar[dict[str, str]] = {"ece": "calibration error"}
    order = 6
    by_name = True

    def protocol(self, num_train: int) -> dict[str, Any]:
        return {"calibration_bins": BINS}

    def score(
        self, train: Labeled, val: Labeled, test: Labeled, num_classes: int, seed: int = 0
    ) -> tuple[dict[str, float], dict[str, float]]:
        probe, l2 = select_linear_probe(*train, *val, num_classes)
        probabilities = probe.logits(test[0]).softmax(1)
        error = multiclass_calibration_error(probabilities, test[1], num_classes, n_bins=BINS)
        return {"calibration_ece": float(error)}, {"calibration_l2": l2}
