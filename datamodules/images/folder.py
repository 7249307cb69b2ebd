"""Trees of image files, with a folder per class or without labels, decoded in workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.checks import check, check_at_least, check_one_of, check_positive, check_within
from datamodules.errors import ConfigError, ImageFileError, MissingDataError
from datamodules.images.decode import IMAGE_SUFFIXES, _entries, _images_below, _names, _text, read_image
from datamodules.images.module import ArrayDataset, ImageDataModule
from datamodules.seeding import mix_seed, run_seed
from datamodules.splits import Split, stratified_holdout

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and timm's constants for ImageNet-1k
IMAGENET_STD = (0.229, 0.224, 0.225)

MEMORY_LIMIT = 512 * 2**20
"""Bytes up to which a folder of equally small images is decoded once and kept."""


class FolderDataset(Dataset):
    """Image files, decoded and cropped to squares when they are fetched.

    Args:
        paths: (N,) bytes.
        labels: (N,) integers, -1 = unknown.
        size: side of the squares, pixels.
        channels: 1 or 3.
        shorter: the shorter side is resized to so many pixels before the crop.
        random_crop: place the crop at random, as a pure function of (the run's seed, epoch, index); else at
            the center.
        max_unreadable: files that may be passed over. The next one that can be read takes the place of such a
            file, with the label -1, so that no probe counts it; each is named once on the terminal.
    """

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
        ).share_memory_()  # seen by workers that outlive an epoch
        self.unreadable = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # marked by any worker

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, C, size, size) uint8, "label": (B,) int64}``."""
        images = np.empty((len(indices), self.size, self.size, self.channels), np.uint8)
        labels, epoch = self.labels.take(indices, 0), int(self.epoch)
        for row, (index, content) in enumerate(zip(indices, self._contents(indices), strict=True)):
            draw = mix_seed(self.seed, epoch, index) if self.random_crop else None
            images[row], itself = self._read(index, draw, content)
            labels[row] = labels[row] if itself else -1
        return {"input": torch.from_numpy(images).permute(0, 3, 1, 2), "label": torch.from_numpy(labels)}

    def _contents(self, indices: Sequence[int]) -> Sequence[bytes | None]:
        """What is read for the whole batch at once, for ``_decode``; files are opened one by one."""
        return [None] * len(indices)

    def name(self, index: int) -> str:
        """The file of a sample."""
        return os.fsdecode(self.paths[index])

    def _decode(self, index: int, draw: int | None, content: bytes | None) -> np.ndarray:
        """The picture at ``index``; an ``ImageFileError`` names it."""
        return read_image(self.paths[index], self.size, self.channels, self.shorter, draw)

    def _read(
        self, index: int, draw: int | None = None, content: bytes | None = None
    ) -> tuple[np.ndarray, bool]:
        """The picture at ``index`` or, if it cannot be read, the next one that can; and whether it is the one
        asked for.
        """
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
                    more = (
                        f" (file number {count} that cannot be read, max_unreadable is {self.max_unreadable})"
                    )
                    raise ImageFileError(f"{error}{more if self.max_unreadable else ''}") from None
                print(
                    f"warning: {error}: passed over, {count} of at most {self.max_unreadable}",
                    file=sys.stderr,
                    flush=True,
                )
                self.unreadable[other] = True
        raise ImageFileError(f"none of {len(self)} images can be read{f': {first}' if first else ''}")

    def in_memory(self, only_same_size: bool) -> ArrayDataset | None:
        """The same samples decoded once, as center crops; None at a file of another size if
        ``only_same_size``.
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
        except Exception:  # whatever is wrong with it, `read_image` says it better
            return True


class ImageFolder(ImageDataModule):
    """Any tree of image files: ImageNet, a CIFAR copy as JPEGs, or photographs without labels.

    With labels there is one folder per class (files may lie deeper), without labels files may lie anywhere.
    Pictures directly in the folder, or in one single sub-folder, are unlabeled. Hidden files and folders are
    skipped, links are followed, endings in capitals are read (jpg, jpeg, png, webp, bmp, tif, tiff, ppm,
    pgm).

    Splits:
        - ``root/train`` and ``root/val`` and ``root/test``: these.
        - ``root/train`` and one of ``root/val``, ``root/test``: that one is reported as ``test`` (as is the
          practice with ImageNet's 50,000 validation images), and ``val`` is held out of ``train``.
        - none of them, or ``root/train`` alone: ``test`` and ``val`` are held out; without labels only
          ``val`` is, and ``test`` is the same, because nothing is measured on it.

        Hold-outs are stratified by class and fixed for a given set of files.

    Pixels: training samples have their shorter side resized to ``decode_size`` and are cropped at a random
    place, the same for the same (seed, epoch, index); all others get a center crop after a resize to 256/224
    of ``image_size``. Files that are ``image_size`` x ``image_size`` already are taken as they are. See
    ``to_uint8`` for 16-bit and transparent files.

    Args:
        root: folder of the images; only read.
        image_size: side of the squares that networks and views get, pixels.
        decode_size: shorter side before the random crop; default 256/224 of ``image_size``.
        channels: 3 (RGB) or 1 (gray).
        labeled: False ignores the folders: every image below ``root`` is one unlabeled sample.
        val_fraction: of the training images, held out where there is no validation folder.
        test_fraction: of all images, held out where there are no split folders.
        in_memory: decode once and keep; random crops are then left to the views. Default: when all files of a
            split are ``image_size`` x ``image_size`` and the folder takes at most 512 MB.
        max_unreadable: damaged files that may be passed over in each split, see ``FolderDataset``; by default
            the first one ends the run with its name. ``train/unreadable_files`` counts them in the logs.
        mean, std: per channel, of pixels in [0, 1]; default ImageNet's.

    Raises:
        MissingDataError: ``root`` does not exist or holds no images.
        ValueError: a bad argument, classes without images or that differ between the splits, too few images
            to split.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        decode_size: int | None = None,
        channels: int = 3,
        labeled: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
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
        self.root, self.labeled, self.in_memory, self.max_unreadable = (
            root,
            labeled,
            in_memory,
            max_unreadable,
        )
        self._opened: list[FolderDataset] = []
        self.image_shape, self.mean, self.std = (channels, image_size, image_size), mean, std
        self.standard_size = round(image_size * 256 / 224)
        self.decode_size = decode_size or self.standard_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._files: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._class_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders, sorted; the folder is read when this is first asked for."""
        if self.synthetic:
            return tuple(f"class {i}" for i in range(10)) if self.labeled else ()
        self._find()
        return self._class_names

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

    def unreadable_files(self) -> list[str]:
        """The files that were passed over so far, in all splits."""
        return sorted(
            {d.name(i) for d in self._opened for i in np.flatnonzero(d.unreadable.numpy()).tolist()}
        )

    def files(self, split: Split) -> list[str]:
        """Paths of the samples of ``split``, in the order of ``dataset(split)``."""
        paths, _ = self._find()["train" if split == "bank" else split]
        return [os.fsdecode(path) for path in paths]

    def _load(self, split: Split) -> dict[str, Any]:
        files = self._find()
        if split in ("train", "bank"):
            bank, random = (
                self._open("train"),
                self._crops(files["train"], self.decode_size, random_crop=True),
            )
            return {"bank": bank, "train": bank if isinstance(bank, ArrayDataset) else random}
        return {split: self._open(split)}

    def _open(self, split: str) -> ArrayDataset | FolderDataset:
        """Center crops of a split, in memory if that was asked for or is small."""
        channels, size, _ = self.image_shape
        dataset = self._crops(self._find()[split], self.standard_size, random_crop=False)
        total = sum(len(labels) for _, labels in self._find().values()) * channels * size * size
        if self.in_memory is False or (self.in_memory is None and total > MEMORY_LIMIT):
            return dataset
        if len(dataset) >= 10_000:  # takes seconds
            rank_zero_info(
                f"decoding {len(dataset)} images of {self.root} ({split}) once, to keep them in memory"
            )
        return dataset.in_memory(only_same_size=self.in_memory is None) or dataset

    def _crops(self, files: tuple[np.ndarray, np.ndarray], shorter: int, random_crop: bool) -> FolderDataset:
        channels, size, _ = self.image_shape
        dataset = FolderDataset(*files, size, channels, shorter, random_crop, self.max_unreadable)
        self._opened.append(dataset)
        return dataset

    # ---- which file is what --------------------------------------------------------------------------------

    def _find(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Paths (N,) bytes and labels (N,) of train, val and test, found once."""
        if not self._files:
            self._files = self._split(self._listed())
        return self._files

    def _listed(self) -> dict[str, dict[bytes, list[bytes]]]:
        """Files by split and class, of the splits that have a folder; all are "train" where none has."""
        root = os.fsencode(os.path.expanduser(self.root))
        if not os.path.isdir(root):
            raise MissingDataError(
                f"ImageFolder: --data.root {_text(root)} is not a folder. Expected image files in one "
                "folder per "
                "class, or train/ and val/ with such folders, or unlabeled files. The configs in "
                "configs/digits/ "
                "need no data."
            )
        folders = {os.path.basename(f): f for f in _entries(root)[0]}
        given = {s: folders[s.encode()] for s in ("train", "val", "test") if s.encode() in folders}
        if "train" not in given or (len(given) == 1 and len(folders) > 1):
            given = {"train": root}
        return {split: self._classes(folder) for split, folder in given.items()}

    def _classes(self, folder: bytes) -> dict[bytes, list[bytes]]:
        """Files by class; unlabeled ones under the empty name."""
        folders, images = _entries(folder)
        below = {os.path.basename(f): _images_below(f) for f in folders}
        if not images and not any(below.values()):
            held = _text(sorted(os.listdir(folder))) or "nothing"
            raise MissingDataError(
                f"ImageFolder: no images in {_text(folder)}, which holds: {held}. Expected files that end in "
                f"{_text(IMAGE_SUFFIXES, most=99)}, in one folder per class or unlabeled"
            )
        if not self.labeled or not any(below.values()):
            return {b"": images + [path for paths in below.values() for path in paths]}
        if images:
            raise ConfigError(
                f"ImageFolder: images ({_text(_names(images))}) lie beside folders with images "
                f"({_text([name for name, paths in below.items() if paths])}) in {_text(folder)}: move "
                "them into a "
                "class folder, or give --data.labeled false to use all of them without labels"
            )
        empty = [name for name, paths in below.items() if not paths]
        if empty:
            raise ConfigError(
                f"ImageFolder: class folders without images in {_text(folder)}: {_text(empty)}; with images: "
                f"{_text([name for name, paths in below.items() if paths])}. Remove the empty ones or fill "
                "them"
            )
        return below

    def _split(self, found: dict[str, dict[bytes, list[bytes]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        classes = sorted(found["train"])
        for split, files in found.items():
            if sorted(files) != classes:
                extra, absent = sorted(set(files) - set(classes)), sorted(set(classes) - set(files))
                raise ConfigError(
                    f"ImageFolder: the classes of {split} and train differ in {self.root}: only in {split}: "
                    f"{_describe(extra)}; only in train: {_describe(absent)}"
                )
        labeled = len(classes) > 1  # one class tells nothing
        self._class_names = tuple(map(_text, classes)) if labeled else ()
        parts = {}
        for split, files in found.items():
            paths = np.array([path for name in classes for path in files[name]], dtype=bytes)
            labels = np.repeat(
                np.arange(len(classes)) if labeled else -1, [len(files[name]) for name in classes]
            )
            parts[split] = (paths, labels)
        return self._held_out(parts, labeled)

    def _held_out(
        self, parts: dict[str, tuple[np.ndarray, np.ndarray]], labeled: bool
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The splits that are given, and those that are not, held out of train."""
        n = len(parts["train"][0])
        if (
            len(parts) == 2 and "val" in parts
        ):  # what is given is reported, so choices need images of their own
            parts["test"] = parts.pop("val")
        if len(parts) == 1 and labeled:
            parts["train"], parts["test"] = self._hold_out(
                parts["train"], "test_fraction", self.test_fraction, n
            )
            n = len(parts["train"][0])
        if "val" not in parts:
            parts["train"], parts["val"] = self._hold_out(
                parts["train"], "val_fraction", self.val_fraction, n
            )
        parts.setdefault("test", parts["val"])
        return parts

    def _hold_out(self, files: tuple[np.ndarray, np.ndarray], name: str, fraction: float, n: int) -> Any:
        size = round(fraction * n)
        if not 0 < size < n:
            raise ConfigError(
                f"{type(self).__name__}: {name} {fraction} of {n} images in {self.root} is {size}: cannot "
                "split"
            )
        return tuple((files[0][i], files[1][i]) for i in stratified_holdout(files[1], size))


def _describe(classes: Sequence[bytes]) -> str:
    return _text([name or b"(images without class folder)" for name in classes]) or "none"
