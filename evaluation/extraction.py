"""Features of the encoders that a report compares, computed by all processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.splits import Split
from evaluation.attempts import Attempts
from evaluation.features import Means, extract_features
from evaluation.probes.base import Labeled
from evaluation.probes.knn import neighbors_of_share
from sslmodules.base import SSLModule

Encode = Callable[[Tensor], Tensor]
"""Standardized clean ``input`` (B, ...) to features (B, D)."""

SPLITS: tuple[Split, ...] = ("bank", "val", "test")

MANY_SAMPLES = 2**17
"""Number of labeled training samples above which encoders run one after the other, in the run's precision;
below it, all run in one pass over the files, in float32.
"""


class Extraction:
    """Computes the features of splits with named encoders; every process of the run creates one.

    Args:
        module: with trained weights; moved to ``device``, in eval mode.
        random_init: the same method with random weights; likewise.
        data: ``prepare_data`` and ``setup`` are called here.
        device: where networks compute.
        means: processes, precision and storage.
        attempts: records the encoders that fail.
        inside: further encoders, parts of ``module``; one process only.

    Attributes:
        encoders: all encoders by name, including the baselines.
        baselines: the data's baselines by name.
        many: whether there are more samples than ``MANY_SAMPLES``.
        groups: names of the encoders that run in the same pass.
    """

    def __init__(
        self,
        module: SSLModule,
        random_init: SSLModule,
        data: SSLDataModule,
        device: torch.device,
        means: Means,
        attempts: Attempts,
        inside: dict[str, Encode] | None = None,
    ) -> None:
        data.prepare_data()
        data.setup("test")
        self.data, self.device, self.attempts = data, device, attempts
        self.encoders: dict[str, Encode] = {
            "pretrained": module.to(device).eval().embed,
            "random_init": random_init.to(device).eval().embed,
            **(inside or {}),
        }
        self.baselines: dict[str, Encode] = {}
        with attempts.of("baselines"):
            self.baselines = data.baselines()
        self.encoders |= self.baselines
        self.many = len(data.dataset("bank")) > MANY_SAMPLES  # type: ignore[arg-type]
        self.means = means if self.many else means._replace(precision="32-true")
        self.groups = [[name] for name in self.encoders] if self.many else [list(self.encoders)]

    def features(self, names: Iterable[str]) -> dict[Split, dict[str, Labeled]]:
        """Rank 0: features of every split and encoder, without encoders that failed."""
        self.means.team.begin("extract", names=list(names))
        return self._extract(names)

    def follow(self) -> None:
        """The other ranks: do their share of the work until rank 0 is done."""

        def extract(names: list[str]) -> None:
            with self.attempts.of("probes"):
                self._extract(names)

        def nearest(**options: Any) -> None:
            neighbors_of_share(self.means.team, self.device, **options)

        self.means.team.follow({"extract": extract, "nearest": nearest})

    def _extract(self, names: Iterable[str]) -> dict[Split, dict[str, Labeled]]:
        guarded = {name: self._guarded(name) for name in names}
        found = {
            split: extract_features(guarded, self.data, split, self.device, self.means) for split in SPLITS
        }
        for failed in self.means.team.ask(self.attempts.failed):
            self.attempts.failed |= failed
        return {
            split: {n: pair for n, pair in rows.items() if f"features of {n}" not in self.attempts.failed}
            for split, rows in found.items()
        }

    def _guarded(self, name: str) -> Encode:
        """The encoder; after its first failure it returns a column of zeros."""
        part = f"features of {name}"

        def encode(x: Tensor) -> Tensor:
            if part not in self.attempts.failed:
                with self.attempts.of(part):
                    return self.encoders[name](x)
            return torch.zeros(len(x), 1, device=self.device)

        return encode
