"""Crops, resizes and flips views where an image is decoded, at its native resolution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datamodules.images.decode import square
from datamodules.seeding import run_seed
from datamodules.transforms.views import NUMBERS, Views


class ViewCrops:
    """Crops each sample's views from its full image (box, resize, flip); colors are changed on the device.

    A crop is a pure function of (the run's seed, epoch, sample, view), and equals torchvision's
    ``resized_crop(..., antialias=True)`` of the decoded image.

    To use it in your own data set, create it with ``ImageDataModule.view_crops``::

        def __getitems__(self, indices):
            images = (decode(self.files[i]) for i in indices)  # each (H, W, C) uint8, of any size
            return {**self.crops(images, indices), "label": self.labels[indices]}

        def set_epoch(self, epoch):
            self.crops.set_epoch(epoch)

    Args:
        views: the transform whose views are cut.
        image_shape: (C, S, S) of ``input``.
        shorter: the shorter side is resized to this many pixels before a square is cut, for ``input`` and for
            views without a random crop.
        center: for validation: ``input`` is the central square, and the epoch has no effect. Otherwise
            ``input`` is the first view of the same size, with its colors unchanged, or, if there is none, a
            square at a random position.
    """

    def __init__(
        self, views: Views, image_shape: tuple[int, int, int], shorter: int, center: bool = False
    ) -> None:
        self.views, self.sizes = list(views.views), views.sizes()
        self.channels, self.image_size, _ = image_shape
        self.shorter, self.center, self.seed = shorter, center, run_seed()
        self.input_is_crop = not center and self.image_size in self.sizes
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # for workers that outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __call__(self, images: Iterable[np.ndarray], indices: Sequence[int]) -> dict[str, Any]:
        """``{"input": (B, C, S, S), "crops": [(B, V, C, s, s), ...]}`` uint8, V views of each size s.

        Args:
            images: (H, W, C) uint8, one for each index; only one at a time is in memory.
            indices: (B,) indices of the samples in their data set.
        """
        epoch = 0 if self.center else int(self.epoch) + 1
        inputs = self._empty(0 if self.input_is_crop else len(indices), 1, self.image_size)
        crops = [
            self._empty(len(indices), sum(view.size == size for view in self.views), size)
            for size in self.sizes
        ]
        # draw for all images first: between two images, the CPU caches lose what drawing needs
        drawn = [self._draw(epoch, index) for index in indices]
        for row, (image, (position, numbers)) in enumerate(zip(images, drawn, strict=True)):
            if not self.input_is_crop:
                inputs[row, 0] = _tensor(self._square(image, position))
            self._cut(image, position, numbers, [group[row] for group in crops])
        first = crops[self.sizes.index(self.image_size)] if self.input_is_crop else inputs
        return {
            "input": first[:, 0].permute(0, 3, 1, 2),
            "crops": [group.permute(0, 1, 4, 2, 3) for group in crops],
        }

    def _empty(self, samples: int, views: int, size: int) -> Tensor:
        return torch.empty(samples, views, size, size, self.channels, dtype=torch.uint8)

    def _draw(self, epoch: int, index: int) -> tuple[int, list[list[float]]]:
        """The position of the square, and for each view the numbers of its geometry."""
        rng = np.random.default_rng((self.seed, epoch, index))
        return int(rng.integers(1 << 63)), rng.random((len(self.views), NUMBERS)).tolist()

    def _cut(self, image: np.ndarray, position: int, numbers: list[list[float]], crops: list[Tensor]) -> None:
        """Write the crops of one image, for each size (V, s, s, C)."""
        free = dict(zip(self.sizes, map(iter, crops), strict=True))
        for view, own in zip(self.views, numbers, strict=True):
            box, flip = view.geometry(own, *image.shape[:2])
            if box is None:
                part = self._square(image, position)
            else:
                top, left, height, width = box
                part = image[top : top + height, left : left + width]
            crop = resized(part, view.size, view.interpolation)
            next(free[view.size]).copy_(crop.flip(1) if flip else crop)

    def _square(self, image: np.ndarray, position: int) -> np.ndarray:
        """The square (S, S, C) of ``read_image``, in the center or at a random position."""
        picture = Image.fromarray(image[:, :, 0] if self.channels == 1 else image)
        drawn = None if self.center else position
        return square(picture, self.image_size, self.channels, self.shorter, drawn)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image if image.flags.writeable else image.copy())


def resized(image: np.ndarray, size: int, interpolation: str) -> Tensor:
    """(H, W, C) uint8 -> (size, size, C), antialiased, ``bilinear`` or ``bicubic``."""
    batch = _tensor(image)[None].permute(0, 3, 1, 2)  # the strides of channels-last, also of the batch
    return F.interpolate(batch, (size, size), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
