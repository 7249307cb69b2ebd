"""CIFAR-10's images in memory, as a DataModule too, and the accuracies of an encoder on them."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.parts.rounds import refuse
from datamodules import CIFAR10, ImageFolder
from datamodules.images.module import ArrayDataset
from datamodules.splits import Split, stratified_holdout
from evaluation.accuracy import top1
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import L2_GRID, select_linear_probe

CLASSES = 10
LOSSLESS = (".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")  # formats, as CIFAR-10 is usually kept
#: k and temperature: cosine similarity with equal votes, as the record has it, and lightly's
NEIGHBORS = {"knn10": (10, 1e6), "knn200": (200, 0.1)}
#: Of the 50,000 training images, as published in many places to eight digits.
MEAN, STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)


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


def find_data(given: Path, runs: Path) -> tuple[str, list[str]]:
    """Name of the data as it is reported, and the options of ``train.py`` for it."""
    if given.is_file() and tarfile.is_tarfile(given):
        target = runs / given.name.split(".")[0]
        if not target.is_dir():
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                with tarfile.open(given) as archive:
                    archive.extractall(partial, filter="data")
            except (tarfile.TarError, EOFError, zlib.error) as error:
                shutil.rmtree(partial, ignore_errors=True)
                refuse(f"--data {given}: the archive is damaged or not whole ({error})")
            whole = any((partial / name).is_dir() for name in ("train", "cifar-10-batches-py"))
            inner = partial if whole else next(partial.iterdir())
            inner.rename(target)  # only a whole copy has the name
        given = target
    if (given / "cifar-10-batches-py").is_dir():
        return "CIFAR-10", ["--data.root", str(given)]
    if not ((given / "train").is_dir() and (given / "test").is_dir()):
        refuse(
            f"--data {given}: expected a folder with cifar-10-batches-py, or with train/<class>/*.jpg and "
            "test/<class>/*.jpg (or *.png), or a tar archive of either"
        )
    options = ["--data", "ImageFolder", "--data.root", str(given), "--data.image_size", "32"]
    options += [f"--data.{k}={json.dumps(list(getattr(CIFAR10, k)))}" for k in ("mean", "std")]
    return ("CIFAR-10" if is_cifar10(given) else "CIFAR-10-JPEG"), options


def is_cifar10(root: Path) -> bool:
    """Whether a folder of files without loss, such as PNG, holds the original pixels, by the statistics of
    its training images.

    Raises:
        SystemExit: they are other images.
    """
    files = [file for file in sorted((root / "train").glob("*/*")) if file.suffix.lower() in LOSSLESS]
    if not files:
        return False
    with ThreadPoolExecutor() as pool:
        images = pool.map(lambda file: np.asarray(Image.open(file).convert("RGB")), files)
        pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    values = np.arange(256) / 255
    mean = counts @ values / len(pixels)
    std = np.sqrt(counts @ values**2 / len(pixels) - mean**2)
    for found, published in ((mean, MEAN), (std, STD)):
        if not np.allclose(found, published, rtol=0, atol=1e-7):
            kinds = ", ".join(sorted({file.suffix.lower() for file in files}))
            refuse(f"--data {root}: {kinds} files, but not CIFAR-10: {found} instead of {published}")
    return True


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

    knn10 and knn200: see ``NEIGHBORS``; the bank is all of ``train``. linear: as ``eval.py probe``, its L2
    penalty chosen on a tenth of ``train``.
    """
    encoder.eval()
    bank, queries = (extract(encoder, data, part, device) for part in (train, test))
    labels, targets = (torch.from_numpy(part.labels).to(device) for part in (train, test))
    found = {}
    for name, (k, temperature) in NEIGHBORS.items():
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
