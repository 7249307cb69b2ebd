"""The base classes of probes, which measure how well frozen features separate the classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from evaluation.accuracy import ACCURACIES, accuracies
from evaluation.team import Team

Labeled = tuple[Tensor, Tensor]
"""Features (N, D) float32, or in half precision on the host, and labels (N,) int64 in [0, K)."""


class Fitted(NamedTuple):
    """A fitted probe.

    Attributes:
        predictors: each maps features (M, D) to class scores (M, K). Several are repetitions on different
            draws, for which the mean and the standard deviation of the accuracy are reported.
        chosen: settings chosen on the validation split, by their key in ``results.json``.
    """

    predictors: Sequence[Callable[[Tensor], Tensor]]
    chosen: dict[str, float]


class FeatureScore(ABC):
    """Scores of frozen features with labels; those with accuracies are subclasses of ``Probe``.

    A new one is a file in ``evaluation/probes`` with a subclass.

    Attributes:
        name: name in ``--probes`` and in the keys of ``results.json``. Like ``order`` and ``by_name`` a plain
            value, which the help reads without importing the file.
        heading: heading of its columns in the table on the terminal.
        metrics: end of each key in ``results.json``, and its name in the table.
        order: position of its columns in that table, smallest first.
        by_name: it runs only if ``--probes`` names it.
        team: the processes of the run; the others ``follow`` this one and can be given tasks.
    """

    name: ClassVar[str]
    heading: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
    order: ClassVar[int] = 100
    by_name: ClassVar[bool] = False
    team: Team = Team()

    def protocol(self, num_train: int) -> dict[str, Any]:
        """The fixed settings for ``num_train`` labeled training samples, by their key in ``results.json``."""
        return {}

    def obstacle(self, train_labels: Tensor, class_names: Sequence[str]) -> str | None:
        """Why the probe cannot be fitted with these training labels (N,) of K classes, or None."""
        return None

    @abstractmethod
    def score(
        self, train: Labeled, val: Labeled, test: Labeled, num_classes: int, seed: int = 0
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Scores on ``test`` by their key in ``results.json``, and what was chosen on ``val``."""


class Probe(FeatureScore, ABC):
    """A classifier fitted to frozen features, and its accuracies."""

    metrics = ACCURACIES

    @abstractmethod
    def fit(self, train: Labeled, val: Labeled, num_classes: int, seed: int) -> Fitted:
        """Fit to ``train``. All choices are made on ``val``; draws come from ``seed``."""

    def score(
        self, train: Labeled, val: Labeled, test: Labeled, num_classes: int, seed: int = 0
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Accuracies on ``test`` by their key in ``results.json``, and what was chosen on ``val``."""
        fitted = self.fit(train, val, num_classes, seed)
        rows = [accuracies(predict(test[0]), test[1]) for predict in fitted.predictors]
        results = {}
        for metric in rows[0]:
            values = [row[metric] for row in rows]
            results[f"{self.name}_{metric}"] = mean(values)
            if len(values) > 1:
                results[f"{self.name}_{metric}_std"] = stdev(values)
        return results, fitted.chosen
