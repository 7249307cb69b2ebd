"""The base of image data: uint8 samples, standardized on the device.

Whatever the source, samples are loaded as uint8 and splits are fixed: hold-outs are drawn with the constant
``SPLIT_SEED``, never with the run's seed, so that different runs are evaluated on the same images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SSLDataModule
from datamodules.checks import check, check_one_of, check_positive
from datamodules.errors import ConfigError
from datamodules.images.crops import ViewCrops
from datamodules.samplers import SampleDataset
from datamodules.splits import SPLIT_SEED, Split
from datamodules.transforms.views import Views


class ArrayDataset(SampleDataset):
    """Images in one array, fetched in whole batches (with ``take``, much faster than indexing tensors).
    Args:
        images: (N, H, W, C) uint8, in memory or memory-mapped.
        labels: (N,) integers, -1 = unknown.

    Raises:
        ValueError: the array is not uint8 (N, H, W, C), or there is not one label per image.
    """

    labels: np.ndarray

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}")
        if labels.shape != (len(images),):
            raise ValueError(
                f"{len(images)} images need labels of shape ({len(images)},), got {tuple(labels.shape)}"
            )
        # with another memory order, `take` would silently copy the whole array for every batch
        self.images = np.ascontiguousarray(images)
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, C, H, W) uint8, "label": (B,) int64}``."""
        images = torch.from_numpy(self.images.take(indices, 0)).permute(0, 3, 1, 2)
        return {"input": images, "label": torch.from_numpy(self.labels.take(indices, 0))}


class ImageDataModule(SSLDataModule, ABC):
    """Base class of image data sets: uint8 to float on the device, standardization, synthetic images.

    A subclass sets the attributes and implements ``_load(split)``.

    Args:
        mean, std: constants for ``standardize`` instead of the data set's, one value per channel. 0 and 1
            keep pixels in [0, 1], for methods that model pixel values; 0.5 and 0.5 map them to [-1, 1].

    Attributes:
        image_shape: (C, H, W) of ``input``.
        mean, std: one value per channel, of the training split, for pixels in [0, 1].
        class_names: one name per class; empty for unlabeled data.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def __init__(
        self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            expected = f"one value for each of {self.image_shape[0]} channels"
            check(len(values) == self.image_shape[0], name, expected, values)
            setattr(self, name, tuple(values))
        check_positive(std=std)
        self._datasets: dict[str, Dataset] = {}
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def dataset(self, split: Split) -> Dataset:
        """The samples of ``split``, read once and cached.

        Raises:
            MissingDataError: the files are missing; the message explains where they belong and how to get
                them.
            ValueError: unknown split, images of another shape, or labels outside the range of the classes.
        """
        check_one_of(get_args(Split), split=split)
        if split not in self._datasets:
            loaded = self._synthetic() if self.synthetic else self._load(split)
            for name, dataset in loaded.items():
                self._check_labels(name, dataset)
            self._datasets.update(loaded)
        return self._datasets[split]

    def view_crops(self, split: Split) -> ViewCrops | None:
        """Crops the views of ``split`` from full images, for data sets that are not in memory.

        None if there is nothing to crop: batches of bank and test have no views, and transforms other than
        ``Views`` work on ``input``.
        """
        if split not in ("train", "val") or not isinstance(self.views, Views):
            return None
        shorter = self.decode_size if split == "train" else self.standard_size
        return ViewCrops(self.views, self.image_shape, shorter, center=split == "val")

    @property
    def standard_size(self) -> int:
        """Shorter side before the central square is cropped: 256 for 224 pixels."""
        return round(self.image_shape[1] * 256 / 224)

    @property
    def decode_size(self) -> int:
        """Shorter side before a square is cropped at a random position."""
        return self.standard_size

    @abstractmethod
    def _load(self, split: Split) -> dict[str, Any]:
        """Data sets by split: ``split``, and any others read from the same files."""

    def _check_labels(self, split: str, dataset: Any) -> None:
        n = self.num_classes or 0
        wrong = np.flatnonzero((dataset.labels < -1) | (dataset.labels >= n))
        if len(wrong):
            raise ConfigError(
                f"{type(self).__name__}: sample {wrong[0]} of split {split} has the label "
                f"{dataset.labels[wrong[0]]}, "
                f"expected 0 to {n - 1}, or -1 for unknown"
            )

    def _synthetic(self) -> dict[str, Any]:
        """512 training images, 256 for val and test: half coarse class pattern, half noise."""
        channels, height, width = self.image_shape
        rng = np.random.default_rng(SPLIT_SEED)
        coarse = rng.integers(0, 256, (max(1, self.num_classes or 0), 4, 4, channels), dtype=np.uint8) // 2
        patterns = coarse[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]

        def make(n: int) -> ArrayDataset:
            which = np.arange(n) % len(patterns)
            images = patterns[which] + rng.integers(0, 128, (n, height, width, channels), dtype=np.uint8)
            return ArrayDataset(images, which if self.num_classes else np.full(n, -1))

        train = make(512)
        return {"train": train, "bank": train, "val": make(256), "test": make(256)}

    # ---- on the device -------------------------------------------------------------------------------------

    def input_format(self) -> dict[str, Any]:
        channels, height, width = self.image_shape
        size = {"image_size": height} if height == width else {}
        return {**size, "channels": channels, "mean": list(self.mean), "std": list(self.std)}

    def decode(self, raw: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 in [0, 1], contiguous."""
        return raw.to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def standardize(self, decoded: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] to zero mean and unit variance per channel over the training split."""
        mean, std = self._mean_std(decoded.device)
        return torch.addcmul(-mean / std, decoded, 1 / std)  # one pass over the pixels

    def unstandardize(self, x: Tensor) -> Tensor:
        """Inverse of ``standardize``, clamped to [0, 1] for display."""
        mean, std = self._mean_std(x.device)
        return (x * std + mean).clamp(0, 1)

    def _mean_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:  # cached: copying to a GPU in every step would make the CPU wait
            mean, std = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1).to(device)
            self._constants[device] = (mean, std)
        return self._constants[device]
