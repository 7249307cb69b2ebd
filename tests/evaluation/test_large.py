"""Evaluation of data of ImageNet's size: half precision, blocks, and how much memory they take."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import Digits
from datamodules.errors import ConfigError
from datamodules.images.module import ArrayDataset
from datamodules.images.module import ImageDataModule as Images
from evaluation import features as extraction
from evaluation.features import extract_features
from evaluation.probes import knn
from evaluation.probes.few_shot import fit_few_shot_probes
from evaluation.probes.linear import fit_linear_probe, select_linear_probe
from runtime.messages import ROOT

CPU = torch.device("cpu")


def classes(n: int = 300, d: int = 12, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in half precision around a center for each class, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % k
    centers = torch.randn(k, d, generator=generator)
    return (3 * centers[labels] + torch.randn(n, d, generator=generator)).half(), labels


def test_probes_of_half_precision_are_those_of_the_same_values_in_float32() -> None:
    x, y = classes()
    for fit in (
        lambda h: fit_linear_probe(h, y, 5),
        lambda h: select_linear_probe(h[:200], y[:200], h[200:], y[200:], 5)[0],
        lambda h: fit_few_shot_probes(h, y, 5, draws=1)[0],
    ):
        torch.testing.assert_close(fit(x).logits(x), fit(x.float()).logits(x.float()), rtol=1e-3, atol=1e-3)
    votes = [knn.knn_votes(h[:50], h[50:], y[50:], 5) for h in (x, x.float())]
    torch.testing.assert_close(*votes)


@pytest.mark.parametrize("rows", [7, 20, 250])
def test_neighbors_in_blocks_of_the_bank_are_those_of_the_whole(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (t.float() if t.is_floating_point() else t for t in classes())
    whole = knn.knn_votes(x[:50], x[50:], y[50:], 5)
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    torch.testing.assert_close(knn.knn_votes(x[:50], x[50:], y[50:], 5), whole)


class SomeLabels(Digits):
    """Every third sample of the bank has no label."""

    def _load(self, split: Any) -> Any:
        loaded = super()._load(split)
        for name, data in loaded.items():
            labels = np.where(np.arange(len(data)) % 3 == 0, -1, data.labels)
            loaded[name] = ArrayDataset(data.images, labels)
        return loaded


def test_many_features_are_kept_on_the_host_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    data: Images = SomeLabels(batch_size=100)
    exact, labels = extract_features({"raw": lambda x: x.flatten(1)}, data, "bank", CPU)["raw"]
    assert exact.dtype == torch.float32 and len(exact) == len(labels) == 718
    monkeypatch.setattr(extraction, "FULL_PRECISION_UP_TO", 1000)
    half, same = extract_features({"raw": lambda x: x.flatten(1)}, data, "bank", CPU)["raw"]
    assert half.dtype == torch.float16 and torch.equal(half, exact.half()) and torch.equal(labels, same)
    own, _ = extract_features({"raw": lambda x: x.flatten(1).bfloat16()}, data, "bank", CPU)["raw"]
    assert own.dtype == torch.bfloat16  # of a network in bf16: nothing is lost
    with pytest.raises(ConfigError) as refused:
        extract_features({"raw": lambda x: 1e6 * x.flatten(1)}, data, "bank", CPU)
    assert "do not fit into float16, which is used for more than 1000 values of a split" in str(refused.value)


@pytest.mark.slow
def test_peak_memory_on_200_000_samples_of_1_000_classes() -> None:
    """The features themselves are 1; printed by ``python benchmarks/large_evaluation.py``."""
    command = [sys.executable, "benchmarks/large_evaluation.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "200000 x 512 features of 1000 classes: 205 MB"
    peaks = [float(line.split(": ")[1].split(" ")[0]) for line in lines]
    assert 0.9 < peaks[0] <= 1.2 and peaks[0] <= peaks[1] <= peaks[2] < 1.5
