"""Accuracy of a method's own classifier."""

from __future__ import annotations

from typing import Any

import torch

from datamodules.base import SSLDataModule
from evaluation.accuracy import ACCURACIES, accuracies
from evaluation.features import extract_features
from evaluation.measures.base import Measure
from runtime.optional import offers
from sslmodules.base import SSLModule


class ClassifierAccuracy(Measure):
    """The method's own classifier on the labeled test samples."""

    name = "classifier"

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return offers(module, "classify") and data.num_classes is not None

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        scores, labels = extract_features({"": module.classify}, data, "test", device)[""]
        return {**accuracies(scores, labels), "samples": len(labels)}

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        cells = {ACCURACIES[key]: f"{value:.3f}" for key, value in values.items() if key in ACCURACIES}
        return "the method's classifier: accuracy on the test split", cells

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        return {f"classifier_{key}": value for key, value in values.items() if key in ACCURACIES}
