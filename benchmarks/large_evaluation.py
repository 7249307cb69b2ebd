"""Peak memory of an evaluation of ImageNet's size: extraction, linear probe and kNN.

    python benchmarks/large_evaluation.py
    python benchmarks/large_evaluation.py --samples 1281167 --width 2048

Features are random numbers made batch by batch, in ``--classes`` classes, kept in half precision on the host.
Each line is the peak of this process's memory above that of before, the features among it, divided by their
size. Time is no matter here: the linear probe takes two steps, kNN has 256 queries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.memory import peak
from datamodules.base import SSLDataModule
from datamodules.samplers import SampleDataset
from datamodules.splits import Split
from evaluation import features as extraction
from evaluation.features import extract_features
from evaluation.probes.knn import knn_votes
from evaluation.probes.linear import fit_linear_probe

BATCH, QUERIES = 256, 256


class Numbers(SampleDataset):
    """N samples of D random numbers, made when they are fetched."""

    def __init__(self, samples: int, width: int, classes: int) -> None:
        self.labels, self.width = np.arange(samples) % classes, width

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(indices[0])
        x = torch.randn(len(indices), self.width, generator=generator)
        return {"input": x, "label": torch.from_numpy(self.labels[list(indices)])}


class Numbered(SSLDataModule):
    def __init__(self, numbers: Numbers) -> None:
        super().__init__(batch_size=BATCH)
        self.numbers = numbers

    def dataset(self, split: Split) -> Numbers:
        return self.numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    device = torch.device("cpu")
    extraction.FULL_PRECISION_UP_TO = 0
    few = Numbers(4 * BATCH, given.width, 10)
    x, y = extract_features({"": torch.nn.Identity()}, Numbered(few), "bank", device)[""]
    fit_linear_probe(x, y, 10, max_iterations=1)  # what the libraries take
    knn_votes(x[:QUERIES], x, y, 10)
    before = peak()

    def report(stage: str) -> None:
        print(f"peak memory of {stage}: {(peak() - before) / x.nbytes:.2f} times the features", flush=True)

    data = Numbered(Numbers(given.samples, given.width, given.classes))
    x, y = extract_features({"": torch.nn.Identity()}, data, "bank", device)[""]
    print(f"{given.samples} x {given.width} features of {given.classes} classes: {x.nbytes / 1e6:.0f} MB")
    report("extraction")
    fit_linear_probe(x, y, given.classes, max_iterations=2)
    report("extraction and linear probe")
    knn_votes(x[:QUERIES], x, y, given.classes)
    report("extraction, linear probe and kNN")


if __name__ == "__main__":
    main()
