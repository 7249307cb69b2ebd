"""Which classes a linear probe confuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules.base import SSLDataModule
from evaluation.features import extract_features, names_of_classes
from evaluation.measures.base import Measure
from evaluation.probes.linear import select_linear_probe
from sslmodules.base import SSLModule

SHOWN = 5


class Confusion(Measure):
    """Confusion matrix on ``test`` of the linear probe whose L2 is chosen on ``val``."""

    name = "confusion"
    by_name = True

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return data.num_classes is not None

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        """``matrix``: a row for each true class, a column for each predicted one."""
        bank, val, test = (
            extract_features({"": module.embed}, data, split, device)[""] for split in ("bank", "val", "test")
        )
        classes = data.num_classes or 0
        probe, _ = select_linear_probe(*bank, *val, classes)
        return {
            "classes": list(names_of_classes(data)),
            "matrix": confusion_matrix(probe.predict(test[0]), test[1], classes).tolist(),
        }

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        names = values["classes"]
        pairs = [
            (count, names[true], names[found])
            for true, row in enumerate(values["matrix"])
            for found, count in enumerate(row)
            if count and found != true
        ]
        cells = {f"{true} as {found}": str(n) for n, true, found in sorted(pairs, reverse=True)[:SHOWN]}
        title = "most frequent errors of the linear probe on the test split"
        return title, cells or {"errors": "none"}


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K), int64 on the CPU: a row for each true class, a column for each predicted one.

    Args:
        predictions: (N,) classes.
        labels: (N,) classes.
        num_classes: K.
    """
    return multiclass_confusion_matrix(predictions, labels, num_classes).cpu()
