"""Folders of image files, labeled or not, decoded in workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from datamodules.checks import check, check_at_least, check_one_of, check_positive, check_within
from datamodules.class_folders import labeled_parts
from datamodules.errors import ImageFileError, MissingDataError
from datamodules.images.crops import ViewCrops
from datamodules.images.decode import COMMON, decode_image, image_endings, is_image, read_image
from datamodules.images.module import ArrayDataset, ImageDataModule
from datamodules.listing import fingerprint, left_out, printable
from datamodules.listing_cache import listed
from datamodules.remarks import split_remarks
from datamodules.samplers import SampleDataset
from datamodules.seeding import mix_seed, run_seed
from datamodules.splits import Samples, Split, complete_splits, given_splits

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and timm's constants for ImageNet-1k
IMAGENET_STD = (0.229, 0.224, 0.225)

MEMORY_LIMIT = 512 * 2**20
"""Maximum size in bytes of decoded data that is kept in memory."""


class FolderDataset(SampleDataset):
    """Image files, decoded and cropped to squares when they are fetched.

    Args:
        paths: (N,) bytes.
        labels: (N,) integers, -1 = unknown.
        size: side of the squares, pixels.
        channels: 1 or 3.
        shorter: the shorter side is resized to this many pixels before the crop.
        random_crop: crop at a random position, a pure function of (the run's seed, epoch, index); otherwise
            at the center.
        max_unreadable: number of damaged files to tolerate. Each is replaced by the next readable file, with
            the label -1 so that no probe counts it, and reported once on stderr.
    """

    labels: np.ndarray
    crops: ViewCrops | None = None
    """Crops the samples' views from their full images."""

    def __init__(
        self,
        paths: np.ndarray,
        labels: np.ndarray,
        size: int,
        channels: int,
        shorter: int,
        random_crop: bool,
        max_unreadable: int = 0,
    ) -> None:
        self.paths, self.labels = paths, labels.astype(np.int64)
        self.size, self.channels, self.shorter, self.random_crop = size, channels, shorter, random_crop
        self.seed, self.max_unreadable = run_seed(), max_unreadable
        self.epoch = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # shared with workers that outlive an epoch
        self.unreadable = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # set by any worker

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)
        if self.crops is not None:
            self.crops.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, C, size, size) uint8, "label": (B,) int64}``; with ``crops``, also its keys."""
        labels, epoch = self.labels.take(indices, 0), int(self.epoch)

        def images() -> Iterator[np.ndarray]:
            for row, (index, content) in enumerate(zip(indices, self._contents(indices), strict=True)):
                draw = mix_seed(self.seed, epoch, index) if self.random_crop else None
                image, itself = self._read(index, draw, content)
                labels[row] = labels[row] if itself else -1
                yield image

        if self.crops is not None:
            batch = self.crops(images(), indices)
        else:
            squares = np.empty((len(indices), self.size, self.size, self.channels), np.uint8)
            for row, image in enumerate(images()):
                squares[row] = image
            batch = {"input": torch.from_numpy(squares).permute(0, 3, 1, 2)}
        return {**batch, "label": torch.from_numpy(labels)}

    def _contents(self, indices: Sequence[int]) -> Sequence[bytes | None]:
        """The contents of a batch's files for ``_decode``; None here, since files are opened one by one."""
        return [None] * len(indices)

    def name(self, index: int) -> str:
        """The file of a sample, for messages."""
        return os.fsdecode(self.paths[index])

    def _decode(self, index: int, draw: int | None, content: bytes | None) -> np.ndarray:
        """The image at ``index``, whole or a square; an ``ImageFileError`` names the file."""
        return self._pixels(self.paths[index], draw, content)

    def _pixels(self, path: bytes, draw: int | None, content: bytes | None) -> np.ndarray:
        if self.crops is not None:
            return decode_image(path, self.channels, content)
        return read_image(path, self.size, self.channels, self.shorter, draw, content)

    def _read(
        self, index: int, draw: int | None = None, content: bytes | None = None
    ) -> tuple[np.ndarray, bool]:
        """The image at ``index``, or else the next readable one; and whether it is the requested one."""
        first = None
        for other in (i % len(self) for i in range(index, index + len(self))):
            if self.unreadable[other]:
                continue
            try:
                return self._decode(other, draw, content if other == index else None), other == index
            except ImageFileError as error:
                first = first or error
                count = int(self.unreadable.sum()) + 1
                if count > self.max_unreadable:
                    more = f" (unreadable file number {count}, max_unreadable is {self.max_unreadable})"
                    raise ImageFileError(f"{error}{more if self.max_unreadable else ''}") from None
                print(
                    f"warning: {error}: skipped, {count} of at most {self.max_unreadable}",
                    file=sys.stderr,
                    flush=True,
                )
                self.unreadable[other] = True
        raise ImageFileError(f"none of {len(self)} images can be read{f': {first}' if first else ''}")

    def in_memory(self, only_same_size: bool) -> ArrayDataset | None:
        """The same samples decoded once, as center crops.

        Returns None if ``only_same_size`` and a file has another size.
        """
        images, labels = (
            np.empty((len(self), self.size, self.size, self.channels), np.uint8),
            self.labels.copy(),
        )
        for row, path in enumerate(self.paths):
            if only_same_size and not self._is_square(path):
                return None
            images[row], itself = self._read(row)
            labels[row] = labels[row] if itself else -1
        return ArrayDataset(images, labels)

    def _is_square(self, path: bytes) -> bool:
        try:
            with Image.open(os.fsdecode(path)) as file:
                return file.size == (self.size, self.size)
        except Exception:  # any problem: `read_image` reports it better
            return True


class ImageFolder(ImageDataModule):
    """A tree of image files: ImageNet, CIFAR as JPEGs, or photographs without labels.

    With labels there is one folder per class (files may be nested deeper); without labels files may be
    anywhere. Images directly in the folder, or in a single sub-folder, are unlabeled. Hidden files and
    folders are skipped, links are followed. All formats that Pillow opens are read, including files without
    extension; other files are counted in one line.

    Splits (docs/data/splits.md):
        - folders ``train``, ``val`` and ``test`` under any of their usual names, or list files such as
          ``val.txt``: used as given. ``unlabeled`` joins ``train`` without labels.
        - ``train`` and one of ``val``, ``test``: that one is reported as ``test`` (as is usual for ImageNet's
          50,000 validation images), and ``val`` is held out of ``train``.
        - none of them, or ``train`` alone: ``test`` and ``val`` are held out; without labels only ``val``,
          which then also serves as ``test``, since unlabeled data is not evaluated.

        Hold-outs are stratified by class and fixed for a given set of files.

    Layouts::

        a folder per class; val and test are held out:
            DIR/cat/1.jpg  DIR/dog/2.jpg
        a folder per split, with the same classes in each:
            DIR/train/cat/1.jpg  DIR/val/cat/2.jpg  DIR/test/dog/3.jpg
        lists of the files of splits, with lines such as cat/1.jpg; other files are train:
            DIR/cat/1.jpg  DIR/dog/2.jpg  DIR/val.txt  DIR/test.txt
        a word for the split in every file name:
            DIR/cat/train_1.jpg  DIR/cat/val_2.jpg  DIR/dog/test_3.jpg
        no classes; below folders, --data.labeled false:
            DIR/1.jpg  DIR/2.jpg

    Pixels: the views of training and validation samples are cropped from the full images, see ``ViewCrops``.
    ``input`` of validation and test samples is resized to 256/224 of ``image_size`` and center-cropped.
    Without views, the shorter side of training samples is resized to ``decode_size``, and a square is cropped
    at a random position, a pure function of (seed, epoch, index). Files of ``image_size`` x ``image_size``
    are used unchanged. See ``to_uint8`` for 16-bit and transparent files.

    Args:
        root: folder of the images; never written to.
        image_size: side of the square images passed to networks and views, in pixels.
        decode_size: shorter side before the random crop; default 256/224 of ``image_size``.
        channels: 3 (RGB) or 1 (gray).
        labeled: False ignores the folders: every image below ``root`` is one unlabeled sample.
        val_fraction: fraction of the training images to hold out if there is no validation folder.
        test_fraction: fraction of all images to hold out if there are no split folders.
        train_on_val: pre-train on ``val`` too, i.e. on the whole training split, as published results do.
            Probes still train on ``bank``, without ``val``; the method's losses on ``val`` are then those of
            training images.
        in_memory: decode once and keep in memory; random crops are then left to the views. Default: if all
            files of a split are ``image_size`` x ``image_size`` and the folder takes at most 512 MB.
        max_unreadable: number of damaged files to tolerate in each split, see ``FolderDataset``; by default
            the first one ends the run with an error. Logged as ``train/unreadable_files``.
        mean, std: per channel, for pixels in [0, 1]; default ImageNet's.

    Raises:
        MissingDataError: ``root`` does not exist or contains no images.
        ValueError: a bad argument, classes without images or different classes in the splits, or too few
            images to split.
    """

    samples_are_files = True

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        decode_size: int | None = None,
        channels: int = 3,
        labeled: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        train_on_val: bool = False,
        in_memory: bool | None = None,
        max_unreadable: int = 0,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        **kwargs: Any,
    ) -> None:
        root, mean, std = str(root), tuple(mean), tuple(std)
        super().__init__(**kwargs)
        check_at_least(1, image_size=image_size)
        if decode_size is not None:
            check(
                decode_size >= image_size, "decode_size", f"at least image_size ({image_size})", decode_size
            )
        check_at_least(0, max_unreadable=max_unreadable)
        check_one_of((1, 3), channels=channels)
        check_within(0, 1, "()", val_fraction=val_fraction, test_fraction=test_fraction)
        for name, values in (("mean", mean), ("std", std)):
            check(len(values) == channels, name, f"one value for each of {channels} channels", values)
        check_positive(std=std)
        self.root, self.labeled, self.in_memory = root, labeled, in_memory
        self.train_on_val, self.max_unreadable = train_on_val, max_unreadable
        self._opened: list[FolderDataset] = []
        self.image_shape, self.mean, self.std = (channels, image_size, image_size), mean, std
        self._decode_size = decode_size
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        self._files: dict[str, Samples] = {}
        self._fingerprint: dict[str, Any] | None = None
        self._class_names: tuple[str, ...] = ()

    @property
    def decode_size(self) -> int:
        return self._decode_size or self.standard_size

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted; the folder is scanned on first access."""
        if self.synthetic:
            return tuple(f"class {i}" for i in range(10)) if self.labeled else ()
        self._find()
        return self._class_names

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

    def unreadable_files(self) -> list[str]:
        """The files skipped so far, in all splits."""
        return sorted(
            {d.name(i) for d in self._opened for i in np.flatnonzero(d.unreadable.numpy()).tolist()}
        )

    def files(self, split: Split) -> list[str]:
        """Paths of the samples of ``split``, in the order of ``dataset(split)``."""
        paths, _ = self._find()[split]
        return [os.fsdecode(path) for path in paths]

    def fingerprint(self) -> dict[str, Any] | None:
        if self.synthetic:
            return None
        self._find()
        return self._fingerprint

    def remarks(self) -> list[str]:
        if self.synthetic:
            return []
        found = split_remarks(self.root, self._find(), self.class_names, self.samples_are_files)
        return super().remarks() + found

    def _load(self, split: Split) -> dict[str, Any]:
        if split != "train":
            return {split: self._open(split)}
        found = self._find()
        same = found["train"] is found["bank"]
        kept = self.dataset("bank") if same else self._open("train")
        if not isinstance(kept, ArrayDataset):
            kept = self._crops(found["train"], self.decode_size, random_crop=True)
            kept.crops = self.view_crops("train")
        return {"train": kept}

    def _open(self, split: Split) -> ArrayDataset | FolderDataset:
        """Center crops of a split, val's also with views; in memory if requested or if it is small."""
        channels, size, _ = self.image_shape
        dataset = self._crops(self._find()[split], self.standard_size, random_crop=False)
        total = sum(len(self._find()[s][1]) for s in ("train", "val", "test")) * channels * size * size
        if self.in_memory or (self.in_memory is None and total <= MEMORY_LIMIT):
            if len(dataset) >= 10_000:  # takes seconds
                rank_zero_info(
                    f"decoding {len(dataset)} images of {self.root} ({split}) once, to keep them in memory"
                )
            if kept := dataset.in_memory(only_same_size=self.in_memory is None):
                return kept
        dataset.crops = self.view_crops(split)
        return dataset

    def _crops(self, files: Samples, shorter: int, random_crop: bool) -> FolderDataset:
        channels, size, _ = self.image_shape
        dataset = FolderDataset(*files, size, channels, shorter, random_crop, self.max_unreadable)
        self._opened.append(dataset)
        return dataset

    # ---- files and splits ----------------------------------------------------------------------------------

    def _find(self) -> dict[str, Samples]:
        """Paths (N,) bytes and labels (N,) of train, bank, val and test, found once."""
        if not self._files:
            parts, self._class_names = self.given()
            self._files = self._complete(parts)
        return self._files

    def given(self) -> tuple[dict[str, Samples], tuple[str, ...]]:
        """Paths and labels of the splits given by the folder, and the class names."""
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise MissingDataError(
                f"ImageFolder: --data.root {printable(root)} is not a folder. Expected image files in one "
                "folder per class, or train/ and val/ with such folders, or unlabeled files. The configs in "
                "configs/digits/ need no data."
            )
        tree = listed(root, "images", is_image, image_endings())
        if not tree.files:
            held = printable(sorted(os.listdir(root))) or "nothing"
            raise MissingDataError(
                f"ImageFolder: no images in {printable(root)}, which contains: {held}. Expected files that "
                f"Pillow opens ({COMMON}), in one folder per class or unlabeled"
            )
        if line := left_out(tree):
            rank_zero_info(line)
        parts, class_names = labeled_parts(tree, given_splits(tree, self.labeled), self.labeled)
        self._fingerprint = fingerprint(root, tree.files)
        samples = {
            split: (np.array([os.fsencode(tree.path(file)) for file in files], dtype=bytes), labels)
            for split, (files, labels) in parts.items()
        }
        return samples, class_names

    def _complete(self, parts: dict[str, Samples]) -> dict[str, Samples]:
        """train, bank, val and test, derived from the given splits."""
        labeled = bool(self._class_names)
        return complete_splits(parts, f"images in {self.root}", self.fractions, labeled, self.train_on_val)
