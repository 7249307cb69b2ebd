"""CIFAR-10's images in memory, as a DataModule too, and the accuracies of an encoder on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cifar10 import find_data
from datamodules import CIFAR10, ImageFolder
from datamodules.images.module import ArrayDataset
from datamodules.splits import Split, stratified_holdout
from evaluation.accuracy import top1
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import L2_GRID, select_linear_probe

CLASSES = 10
EQUAL_VOTES = 1e6  # a temperature at which all neighbors count alike


class Images(NamedTuple):
    """Images (N, 32, 32, 3) uint8 with their classes (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def few(self, count: int) -> Images:
        """A fixed stratified part; all of them if there are no more."""
        if count >= len(self.labels):
            return self
        _, chosen = stratified_holdout(self.labels, count)
        return Images(self.images[chosen], self.labels[chosen])


def load(data: Path, runs: Path) -> tuple[str, Images, Images]:
    """Name of the data, all official training images, and the test images.

    Args:
        data: folder or archive, as for benchmarks/cifar10.py.
        runs: where an archive is unpacked.
    """
    name, options = find_data(data, runs)
    root = options[options.index("--data.root") + 1]
    if "ImageFolder" not in options:
        module: Any = CIFAR10(root=root, train_on_val=True)
        train, test = (module.dataset(split) for split in ("train", "test"))
        return name, Images(train.images, train.labels), Images(test.images, test.labels)
    module = ImageFolder(root=root, image_size=32, in_memory=True)
    bank, val, test = (module.dataset(split) for split in ("bank", "val", "test"))
    joined = Images(np.concatenate([bank.images, val.images]), np.concatenate([bank.labels, val.labels]))
    return name, joined, Images(test.images, test.labels)


class InMemory(CIFAR10):
    """CIFAR10 that trains on the given images."""

    def __init__(self, given: Images, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = given

    def _load(self, split: Split) -> dict[str, Any]:
        return {split: ArrayDataset(*self.given)}

    def prepare_data(self) -> None:
        pass


@torch.no_grad()
def extract(
    encoder: Callable[[Tensor], Tensor], data: InMemory, given: Images, device: torch.device
) -> Tensor:
    """Features (N, D), float32, of unaugmented images standardized as the data's are."""
    rows = []
    for part in torch.from_numpy(given.images).permute(0, 3, 1, 2).split(1000):
        rows.append(encoder(data.standardize(data.decode(part.to(device)))).float())
    return torch.cat(rows)


def accuracies(
    encoder: nn.Module, data: InMemory, train: Images, test: Images, device: torch.device
) -> dict[str, float]:
    """Test accuracy of frozen features, in percent.

    knn10: cosine similarity, k 10, equal votes, as the record has it; knn200: k 200, T 0.1, as lightly.
    The bank is all of ``train``. linear: as ``eval.py probe``, its L2 penalty chosen on a tenth of ``train``.
    """
    encoder.eval()
    bank, queries = (extract(encoder, data, part, device) for part in (train, test))
    labels, targets = (torch.from_numpy(part.labels).to(device) for part in (train, test))
    found = {}
    for name, k, temperature in (("knn10", 10, EQUAL_VOTES), ("knn200", 200, 0.1)):
        k = min(k, len(bank))
        found[name] = top1(knn_predict(queries, bank, labels, CLASSES, k, temperature), targets)
    fit, val = (
        torch.from_numpy(rows).to(device)
        for rows in stratified_holdout(train.labels, len(train.labels) // 10)
    )
    classifier, _ = select_linear_probe(
        bank[fit], labels[fit], bank[val], labels[val], CLASSES, l2_grid=L2_GRID
    )
    found["linear"] = top1(classifier.logits(queries).argmax(1), targets)
    return {name: round(100 * value, 2) for name, value in found.items()}
