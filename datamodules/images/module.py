"""Images: small data sets kept in memory as one uint8 array, and folders of image files decoded in workers.

Whatever the source, a sample travels as uint8 and every split is fixed: hold-outs are drawn with the constant
``SPLIT_SEED``, never with the run's seed, so that numbers of different runs are measured on the same images.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torchvision.datasets
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import Split, SSLDataModule, mix_seed, run_seed

SPLIT_SEED = 0
"""Seed of every hold-out in this file."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and timm's constants for ImageNet-1k
IMAGENET_STD = (0.229, 0.224, 0.225)

MEMORY_LIMIT = 512 * 2**20
"""Bytes up to which a folder of equally small images is decoded once and kept."""

IMAGE_SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".ppm", b".pgm")


class MissingDataError(FileNotFoundError):
    """A data set that is not where it was looked for, with what to do about it in one line."""


class ImageFileError(OSError):
    """An image file that cannot be used; the message names it."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's exception again with its whole traceback as the message; the last line is ours.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def stratified_holdout(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``size`` samples with every class in its share (largest remainder); the choice is fixed by ``SPLIT_SEED``.

    Args:
        labels: (N,) integers; all equal (unlabelled data) makes it a plain random choice.
        size: samples to hold out, at most N.

    Returns:
        Sorted indices (N - size,) that are kept and (size,) that are held out.
    """
    rng = np.random.RandomState(SPLIT_SEED)  # the legacy generator: NumPy guarantees that its stream never changes
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * size / len(labels)
    quota = np.floor(share).astype(np.int64)
    quota[np.argsort(quota - share, kind="stable")[: size - quota.sum()]] += 1
    held = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, quota, strict=True):
        held[rng.permutation(np.flatnonzero(labels == label))[:n]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


class ArrayDataset(Dataset):
    """Images in one array, fetched by whole batches (``ndarray.take`` is several times faster than tensor indexing).

    Args:
        images: (N, H, W, C) uint8, in memory or memory-mapped.
        labels: (N,) integers, -1 = unknown.

    Raises:
        ValueError: the array is not uint8 (N, H, W, C), or there is not one label per image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}")
        if labels.shape != (len(images),):
            raise ValueError(f"{len(images)} images need labels of shape ({len(images)},), got {tuple(labels.shape)}")
        # `take` would silently copy an array of another memory order as a whole for every batch
        self.images = np.ascontiguousarray(images)
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, C, H, W) uint8, "label": (B,) int64}``."""
        images = torch.from_numpy(self.images.take(indices, 0)).permute(0, 3, 1, 2)
        return {"input": images, "label": torch.from_numpy(self.labels.take(indices, 0))}


class ImageDataModule(SSLDataModule):
    """What every image data set shares: uint8 to float on the device, standardisation, synthetic images.

    A subclass sets the attributes and gives ``_load(split)``.

    Args:
        mean, std: other constants than the data set's for ``standardise``, one value per channel. 0 and 1 leave pixels in
            [0, 1], for methods that model their values; 0.5 and 0.5 put them into [-1, 1].

    Attributes:
        image_shape: (C, H, W) of ``input``.
        mean, std: one value per channel, of the training split, for pixels in [0, 1].
        class_names: one name per class; empty for unlabelled data.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def __init__(self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            if len(values) != self.image_shape[0]:
                raise ValueError(f"{name} must have one value for each of {self.image_shape[0]} channels, got {list(values)}")
            setattr(self, name, tuple(values))
        if std is not None and min(std) <= 0:
            raise ValueError(f"std must be positive, got {list(std)}")
        self._datasets: dict[str, Dataset] = {}
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def dataset(self, split: Split) -> Dataset:
        """The samples of ``split``, read once and kept.

        Raises:
            MissingDataError: the files are not there; says where they belong and how to get them.
            ValueError: unknown split, images of another shape, or labels outside of the classes.
        """
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if split not in self._datasets:
            loaded = self._synthetic() if self.synthetic else self._load(split)
            for name, dataset in loaded.items():
                self._check_labels(name, dataset)
            self._datasets.update(loaded)
        return self._datasets[split]

    def _load(self, split: Split) -> dict[str, Any]:
        """Data sets by split: at least ``split``, and those that come from the same files."""
        raise NotImplementedError

    def _check_labels(self, split: str, dataset: Any) -> None:
        n = self.num_classes or 0
        wrong = np.flatnonzero((dataset.labels < -1) | (dataset.labels >= n))
        if len(wrong):
            raise ValueError(
                f"{type(self).__name__}: sample {wrong[0]} of split {split} has the label {dataset.labels[wrong[0]]}, "
                f"expected 0 to {n - 1}, or -1 for unknown"
            )

    def _synthetic(self) -> dict[str, Any]:
        """512 images to train on, 256 for val and test: half coarse pattern of the class, half noise."""
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

    # ---- on the device -----------------------------------------------------------------------------------------------

    def decode(self, raw: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 in [0, 1], contiguous."""
        return raw.to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def standardise(self, decoded: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] to zero mean and unit variance per channel over the training split."""
        mean, std = self._mean_std(decoded.device)
        return torch.addcmul(-mean / std, decoded, 1 / std)  # one pass over the pixels

    def unstandardise(self, x: Tensor) -> Tensor:
        """The inverse of ``standardise``, clamped to [0, 1] for display."""
        mean, std = self._mean_std(x.device)
        return (x * std + mean).clamp(0, 1)

    def _mean_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:  # kept, because a copy to a GPU in every step would make the CPU wait
            mean, std = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1).to(device)
            self._constants[device] = (mean, std)
        return self._constants[device]


# ---- data sets kept in memory ----------------------------------------------------------------------------------------


class Digits(ImageDataModule):
    """Handwritten digits embedded in scikit-learn: 1,797 grey 8x8 images, no download (Alpaydin and Kaynak 1998).

    Pixels 0 to 16 are scaled to 0 to 255. Fixed stratified split: 1,077 train, 360 val, 360 test. Mean and standard
    deviation were computed over the 1,077. https://archive.ics.uci.edu/dataset/80

    Args:
        root: ignored, the images come with scikit-learn; accepted so that ``--data.root`` works with every data set.
    """

    image_shape = (1, 8, 8)
    mean, std = (0.3064,), (0.3767,)
    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _load(self, split: Split) -> dict[str, Any]:
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        rest, test = stratified_holdout(digits.target, 360)
        train, val = stratified_holdout(digits.target[rest], 360)
        indices = {"train": rest[train], "val": rest[val], "test": test}
        splits = {name: ArrayDataset(images[i], digits.target[i]) for name, i in indices.items()}
        return {**splits, "bank": splits["train"]}


@contextmanager
def inside_only() -> Iterator[None]:
    """Tar archives are unpacked with Python's ``data`` filter: nothing outside of the folder, no link that leads out of it.

    torchvision asks for no filter, and before Python 3.14 none is the default.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


class _TorchvisionImages(ImageDataModule):
    """A data set that torchvision reads. ``val`` is a fixed stratified hold-out of ``val_size`` training images.

    Args:
        root: folder that holds the data set's own folder. Nothing is created there unless ``download`` is set.
        download: fetch missing files into ``root`` (created if its parent exists).
        train_on_val: pre-train on ``val``, too, hence on the whole official training split, as published results do. Probes
            still learn from ``bank``, without ``val``; the method's losses on ``val`` are then those of training images.

    Raises:
        ValueError: ``train_on_val`` where training images are others than those that ``val`` is taken from.
    """

    files: tuple[str, ...]  # below root; all must exist
    val_size: int
    trains_on_unlabelled = False

    def __init__(self, root: str = "data", download: bool = False, train_on_val: bool = False, **kwargs: Any) -> None:
        root = str(root)  # a Path would not be kept among the plain hyper-parameters of a checkpoint
        super().__init__(**kwargs)
        if train_on_val and self.trains_on_unlabelled:
            raise ValueError(f"train_on_val must be false for {type(self).__name__}: it trains on images without labels only")
        self.root, self.download, self.train_on_val = root, download, train_on_val

    def prepare_data(self) -> None:
        if self.download and not self.synthetic:  # Lightning calls this in one process per node, before the others read
            for part in ("train", "test"):
                self._part(part, download=True)

    def _load(self, split: Split) -> dict[str, Any]:
        download = self.download and self.trainer is None  # with a Trainer, `prepare_data` has done it
        if split == "test":
            return {"test": ArrayDataset(*self._part("test", download))}
        images, labels = self._part("train", download)
        train, val = stratified_holdout(labels, self.val_size)
        bank = ArrayDataset(images[train], labels[train])
        every = ArrayDataset(images, labels) if self.train_on_val else bank
        return {"train": every, "bank": bank, "val": ArrayDataset(images[val], labels[val])}

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        """Images and labels of "train" or "test" as torchvision gives them."""
        raise NotImplementedError

    def _part(self, part: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, H, W, C) uint8 and labels (N,) int64 of a part; every failure is a ``MissingDataError``."""
        root = Path(self.root).expanduser()
        if download and not root.is_dir():
            if not root.parent.is_dir():
                raise self._missing(f"--data.root {root} cannot be created, {root.parent} does not exist")
            try:
                root.mkdir()
            except OSError as error:
                raise self._missing(f"--data.root {root} cannot be created ({error})") from error
        if not download:
            absent = [name for name in self.files if not (root / name).is_file()]
            if not root.is_dir():
                raise self._missing(f"--data.root {root} does not exist")
            if absent:
                count = f"{len(absent)} of {len(self.files)} files"
                raise self._missing(f"{absent[0]} ({count}) is missing in --data.root {root}")
        try:
            with inside_only():
                images, labels = self._read(root, part, download)
            images, labels = np.asarray(images), np.asarray(labels, dtype=np.int64)
        except (OSError, RuntimeError, ValueError, AssertionError, EOFError, pickle.UnpicklingError, tarfile.TarError) as error:
            # torchvision's own: URLError without a network, RuntimeError for mirrors and checksums, and whatever a
            # damaged file does to the reader
            what = "could not be downloaded to" if download else "cannot be read (damaged files?) in"
            raise self._missing(f"{what} --data.root {root}: {' '.join(str(error).split())[:300]}") from error
        if images.ndim == 3:
            images = images[..., None]
        channels, height, width = self.image_shape
        if images.shape[1:] != (height, width, channels):
            raise ValueError(
                f"{type(self).__name__}: images of {part} in {root} have shape {images.shape[1:]}, "
                f"expected {(height, width, channels)}"
            )
        return images, labels

    def _missing(self, reason: str) -> MissingDataError:
        folder, names = (Path(self.root) / self.files[0]).parent, ", ".join(Path(name).name for name in self.files)
        return MissingDataError(
            f"{type(self).__name__}: {reason}. Expected in {folder}: {names}. Get them with --data.download true, or "
            "copy them there. The configs in configs/digits/ need no download."
        )


class MNIST(_TorchvisionImages):
    """Handwritten digits, grey 28x28 (LeCun et al. 1998): 55,000 train, 5,000 val (the official 60,000), 10,000 test.

    Mean and standard deviation of the 60,000, as in PyTorch's example. http://yann.lecun.com/exdb/mnist
    """

    image_shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)
    num_classes = 10
    class_names = tuple("0123456789")
    files = tuple(f"MNIST/raw/{s}-{k}" for s in ("train", "t10k") for k in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.MNIST(root, train=part == "train", download=download)
        return data.data, data.targets


class FashionMNIST(_TorchvisionImages):
    """Clothes, grey 28x28 (Xiao et al. 2017): 55,000 train and 5,000 val (the official 60,000), 10,000 test.

    Mean and standard deviation of the 60,000 (the usual constants). https://arxiv.org/abs/1708.07747
    """

    image_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    num_classes = 10
    class_names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    files = tuple(f"FashionMNIST/raw/{name.rpartition('/')[2]}" for name in MNIST.files)
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.FashionMNIST(root, train=part == "train", download=download)
        return data.data, data.targets


class CIFAR10(_TorchvisionImages):
    """Objects, 32x32 (Krizhevsky 2009): 45,000 train, 5,000 val (the official 50,000), 10,000 test.

    Mean and standard deviation over the pixels of the 50,000 (the usual constants; the 0.2023, 0.1994, 0.2010 seen
    elsewhere are means of per-image deviations). https://www.cs.toronto.edu/~kriz/cifar.html
    """

    image_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    files = (
        *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/batches.meta",
    )
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.CIFAR10(root, train=part == "train", download=download)
        return data.data, data.targets


class CIFAR100(_TorchvisionImages):
    """Objects of 100 classes, 32x32 (Krizhevsky 2009): 45,000 train, 5,000 val (the official 50,000), 10,000 test.

    Mean and standard deviation over the pixels of the 50,000 (the usual constants).
    https://www.cs.toronto.edu/~kriz/cifar.html
    """

    image_shape = (3, 32, 32)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    num_classes = 100
    class_names = tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
        dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
        leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
        otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
        rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
        sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm""".split()  # noqa: SIM905
    )
    files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.CIFAR100(root, train=part == "train", download=download)
        return data.data, data.targets


class SVHN(_TorchvisionImages):
    """Street view house numbers, cropped digits, 32x32 (Netzer et al. 2011): 68,257 train, 5,000 val (of the official
    73,257), 26,032 test; the 531,131 extra images are not used.

    Mean and standard deviation over the pixels of the 73,257 (the usual constants).
    http://ufldl.stanford.edu/housenumbers
    """

    image_shape = (3, 32, 32)
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    num_classes = 10
    class_names = tuple("0123456789")
    files = ("train_32x32.mat", "test_32x32.mat")
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.SVHN(str(root), split=part, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels


class STL10(_TorchvisionImages):
    """Objects, 96x96 (Coates et al. 2011), made for pre-training without labels: 100,000 unlabelled train, 4,000
    bank and 1,000 val (the official 5,000 labelled ones), 8,000 test. The ten official folds of 1,000 are not used.

    The unlabelled images take 2.8 GB of memory, twice that while they are read. Mean and standard deviation over the
    pixels of the 5,000 (the usual constants). https://cs.stanford.edu/~acoates/stl10
    """

    image_shape = (3, 96, 96)
    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    num_classes = 10
    class_names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    files = tuple(f"stl10_binary/{f}.bin" for f in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y"))
    val_size = 1_000
    trains_on_unlabelled = True

    def _load(self, split: Split) -> dict[str, Any]:
        if split == "train":
            return {"train": ArrayDataset(*self._part("unlabeled", self.download and self.trainer is None))}
        loaded = super()._load(split)
        loaded.pop("train", None)
        return loaded

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.STL10(root, split=part, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels


# ---- folders of image files ------------------------------------------------------------------------------------------


def _entries(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Sorted paths of the sub-folders and of the image files of a folder, hidden ones left out, links followed."""
    with os.scandir(folder) as scan:
        entries = sorted((e for e in scan if not e.name.startswith(b".")), key=lambda e: e.name)
    images = [e.path for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file()]
    return [e.path for e in entries if e.is_dir()], images


def _images_below(folder: bytes, parents: tuple[bytes, ...] = ()) -> list[bytes]:
    """All image files of a tree in a fixed order; a link back to a folder on the way down is not followed."""
    real = os.path.realpath(folder)
    if real in parents:
        return []
    folders, images = _entries(folder)
    return images + [path for f in folders for path in _images_below(f, (*parents, real))]


def image_files(path: str | os.PathLike[str]) -> list[bytes]:
    """The image file ``path``, or the images directly in the folder ``path``, sorted; hidden files are left out.

    Raises:
        MissingDataError: there is no such file or folder, or the folder holds no images.
    """
    name = os.fsencode(path)
    if os.path.isfile(name):
        return [name]
    if not os.path.isdir(name):
        raise MissingDataError(f"{_text(name)} does not exist: expected an image or a folder of images")
    if not (images := _entries(name)[1]):
        raise MissingDataError(f"no images in {_text(name)}: expected files that end in {_text(IMAGE_SUFFIXES, most=99)}")
    return images


def _text(paths: bytes | Sequence[bytes], most: int = 5) -> str:
    """File names for a message: the first few, printable whatever bytes they are made of, escape sequences too."""
    if isinstance(paths, bytes):
        text = paths.decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return ", ".join(map(_text, paths[:most])) + (f", ... ({len(paths)} in all)" if len(paths) > most else "")


def _names(paths: Sequence[bytes]) -> list[bytes]:
    return [os.path.basename(path) for path in paths]


def to_uint8(image: Image.Image, channels: int) -> Image.Image:
    """An 8-bit picture with 3 channels ("RGB") or 1 ("L") from whatever mode a file has.

    16-bit grey is scaled from 0..65535 to 0..255 (Pillow's own conversion clips it at 255). Transparent pictures are
    laid on white. Palettes and CMYK are converted by Pillow.

    Raises:
        ValueError: 32-bit integer or floating-point pixels, whose range the file does not tell.
    """
    mode = "RGB" if channels == 3 else "L"
    # Pillow reads 16-bit PNG and PGM files as "I" in old and as "I;16" in new versions
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel format {image.mode!r} (32 bits) has no known range; convert it to 8 or 16 bits")
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(
    path: bytes, size: int, channels: int, shorter: int, draw: int | None = None, content: bytes | None = None
) -> np.ndarray:
    """Decode a file, resize its shorter side to ``shorter`` and crop a square (bilinear with antialiasing, by Pillow).

    A picture that is ``size`` x ``size`` already is taken as it is. EXIF orientation is not applied, as in torchvision.

    Args:
        path: of the file.
        size: side of the square, pixels.
        channels: 1 or 3.
        shorter: pixels, at least ``size``.
        draw: 63 random bits that choose the place of the crop; None crops the centre.
        content: of the file, where it was read already; ``path`` is then only its name for messages.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ImageFileError: the file is missing, empty, truncated, no image or of an unusable format; names the file.
    """
    try:
        with Image.open(os.fsdecode(path) if content is None else io.BytesIO(content)) as file:
            if draw is not None and file.size != (size, size):
                file.draft(None, _resized(file.size, shorter))  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size
            image = to_uint8(file, channels)
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError):  # its message repeats the path
            length = os.path.getsize(path) if content is None else len(content)
            reason = "it is empty" if length == 0 else "it is not an image"
        else:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"cannot read image {_text(path)}: {reason}") from None
    width, height = image.size
    if (width, height) != (size, size):
        w, h = _resized(image.size, shorter)
        if draw is None:
            left, top = round((w - size) / 2), round((h - size) / 2)
        else:
            left, top = draw % (w - size + 1), (draw >> 32) % (h - size + 1)
        # only the part that is kept is resized: the same pixels, and a 1 x 10,000 picture does not fill the memory
        x, y = width / w, height / h
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(size, size, channels)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side made ``shorter``, rounded down as in torchvision's Resize."""
    width, height = size
    return (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)


class FolderDataset(Dataset):
    """Image files, decoded and cropped to squares when they are fetched.

    Args:
        paths: (N,) bytes.
        labels: (N,) integers, -1 = unknown.
        size: side of the squares, pixels.
        channels: 1 or 3.
        shorter: the shorter side is resized to so many pixels before the crop.
        random_crop: place the crop at random, as a pure function of (the run's seed, epoch, index); else at the centre.
        max_unreadable: files that may be passed over. The next one that can be read takes the place of such a file, with
            the label -1, so that no probe counts it; each is named once on the terminal.
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
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that outlive an epoch
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

    def _read(self, index: int, draw: int | None = None, content: bytes | None = None) -> tuple[np.ndarray, bool]:
        """The picture at ``index`` or, if it cannot be read, the next one that can; and whether it is the one asked for."""
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
                    more = f" (file number {count} that cannot be read, max_unreadable is {self.max_unreadable})"
                    raise ImageFileError(f"{error}{more if self.max_unreadable else ''}") from None
                print(f"warning: {error}: passed over, {count} of at most {self.max_unreadable}", file=sys.stderr, flush=True)
                self.unreadable[other] = True
        raise ImageFileError(f"none of {len(self)} images can be read{f': {first}' if first else ''}")

    def in_memory(self, only_same_size: bool) -> ArrayDataset | None:
        """The same samples decoded once, as centre crops; None at a file of another size if ``only_same_size``."""
        images, labels = np.empty((len(self), self.size, self.size, self.channels), np.uint8), self.labels.copy()
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

    With labels there is one folder per class (files may lie deeper), without labels files may lie anywhere. Pictures
    directly in the folder, or in one single sub-folder, are unlabelled. Hidden files and folders are skipped, links are
    followed, endings in capitals are read (jpg, jpeg, png, webp, bmp, tif, tiff, ppm, pgm).

    Splits:
        - ``root/train`` and ``root/val`` and ``root/test``: these.
        - ``root/train`` and one of ``root/val``, ``root/test``: that one is reported as ``test`` (as is the practice
          with ImageNet's 50,000 validation images), and ``val`` is held out of ``train``.
        - none of them, or ``root/train`` alone: ``test`` and ``val`` are held out; without labels only ``val`` is, and
          ``test`` is the same, because nothing is measured on it.

        Hold-outs are stratified by class and fixed for a given set of files.

    Pixels: training samples have their shorter side resized to ``decode_size`` and are cropped at a random place, the
    same for the same (seed, epoch, index); all others get a centre crop after a resize to 256/224 of ``image_size``.
    Files that are ``image_size`` x ``image_size`` already are taken as they are. See ``to_uint8`` for 16-bit and
    transparent files.

    Args:
        root: folder of the images; only read.
        image_size: side of the squares that networks and views get, pixels.
        decode_size: shorter side before the random crop; default 256/224 of ``image_size``.
        channels: 3 (RGB) or 1 (grey).
        labelled: False ignores the folders: every image below ``root`` is one unlabelled sample.
        val_fraction: of the training images, held out where there is no validation folder.
        test_fraction: of all images, held out where there are no split folders.
        in_memory: decode once and keep; random crops are then left to the views. Default: when all files of a split are
            ``image_size`` x ``image_size`` and the folder takes at most 512 MB.
        max_unreadable: damaged files that may be passed over in each split, see ``FolderDataset``; by default the first one
            ends the run with its name. ``train/unreadable_files`` counts them in the logs.
        mean, std: per channel, of pixels in [0, 1]; default ImageNet's.

    Raises:
        MissingDataError: ``root`` does not exist or holds no images.
        ValueError: a bad argument, classes without images or that differ between the splits, too few images to split.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        decode_size: int | None = None,
        channels: int = 3,
        labelled: bool = True,
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
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if decode_size is not None and decode_size < image_size:
            raise ValueError(f"decode_size must be at least image_size = {image_size}, got {decode_size}")
        if max_unreadable < 0:
            raise ValueError(f"max_unreadable must not be negative, got {max_unreadable}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {fraction}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(f"{name} must have one value for each of {channels} channels, got {list(values)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {list(std)}")
        self.root, self.labelled, self.in_memory, self.max_unreadable = root, labelled, in_memory, max_unreadable
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
            return tuple(f"class {i}" for i in range(10)) if self.labelled else ()
        self._find()
        return self._class_names

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

    def unreadable_files(self) -> list[str]:
        """The files that were passed over so far, in all splits."""
        return sorted({d.name(i) for d in self._opened for i in np.flatnonzero(d.unreadable.numpy()).tolist()})

    def files(self, split: Split) -> list[str]:
        """Paths of the samples of ``split``, in the order of ``dataset(split)``."""
        paths, _ = self._find()["train" if split == "bank" else split]
        return [os.fsdecode(path) for path in paths]

    def _load(self, split: Split) -> dict[str, Any]:
        files = self._find()
        if split in ("train", "bank"):
            bank, random = self._open("train"), self._crops(files["train"], self.decode_size, random_crop=True)
            return {"bank": bank, "train": bank if isinstance(bank, ArrayDataset) else random}
        return {split: self._open(split)}

    def _open(self, split: str) -> ArrayDataset | FolderDataset:
        """Centre crops of a split, in memory if that was asked for or is small."""
        channels, size, _ = self.image_shape
        dataset = self._crops(self._find()[split], self.standard_size, random_crop=False)
        total = sum(len(labels) for _, labels in self._find().values()) * channels * size * size
        if self.in_memory is False or (self.in_memory is None and total > MEMORY_LIMIT):
            return dataset
        if len(dataset) >= 10_000:  # takes seconds
            rank_zero_info(f"decoding {len(dataset)} images of {self.root} ({split}) once, to keep them in memory")
        return dataset.in_memory(only_same_size=self.in_memory is None) or dataset

    def _crops(self, files: tuple[np.ndarray, np.ndarray], shorter: int, random_crop: bool) -> FolderDataset:
        channels, size, _ = self.image_shape
        dataset = FolderDataset(*files, size, channels, shorter, random_crop, self.max_unreadable)
        self._opened.append(dataset)
        return dataset

    # ---- which file is what ------------------------------------------------------------------------------------------

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
                f"ImageFolder: --data.root {_text(root)} is not a folder. Expected image files in one folder per "
                "class, or train/ and val/ with such folders, or unlabelled files. The configs in configs/digits/ "
                "need no data."
            )
        folders = {os.path.basename(f): f for f in _entries(root)[0]}
        given = {s: folders[s.encode()] for s in ("train", "val", "test") if s.encode() in folders}
        if "train" not in given or (len(given) == 1 and len(folders) > 1):
            given = {"train": root}
        return {split: self._classes(folder) for split, folder in given.items()}

    def _classes(self, folder: bytes) -> dict[bytes, list[bytes]]:
        """Files by class; unlabelled ones under the empty name."""
        folders, images = _entries(folder)
        below = {os.path.basename(f): _images_below(f) for f in folders}
        if not images and not any(below.values()):
            held = _text(sorted(os.listdir(folder))) or "nothing"
            raise MissingDataError(
                f"ImageFolder: no images in {_text(folder)}, which holds: {held}. Expected files that end in "
                f"{_text(IMAGE_SUFFIXES, most=99)}, in one folder per class or unlabelled"
            )
        if not self.labelled or not any(below.values()):
            return {b"": images + [path for paths in below.values() for path in paths]}
        if images:
            raise ValueError(
                f"ImageFolder: images ({_text(_names(images))}) lie beside folders with images "
                f"({_text([name for name, paths in below.items() if paths])}) in {_text(folder)}: move them into a "
                "class folder, or give --data.labelled false to use all of them without labels"
            )
        empty = [name for name, paths in below.items() if not paths]
        if empty:
            raise ValueError(
                f"ImageFolder: class folders without images in {_text(folder)}: {_text(empty)}; with images: "
                f"{_text([name for name, paths in below.items() if paths])}. Remove the empty ones or fill them"
            )
        return below

    def _split(self, found: dict[str, dict[bytes, list[bytes]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        classes = sorted(found["train"])
        for split, files in found.items():
            if sorted(files) != classes:
                extra, absent = sorted(set(files) - set(classes)), sorted(set(classes) - set(files))
                raise ValueError(
                    f"ImageFolder: the classes of {split} and train differ in {self.root}: only in {split}: "
                    f"{_describe(extra)}; only in train: {_describe(absent)}"
                )
        labelled = len(classes) > 1  # one class tells nothing
        self._class_names = tuple(map(_text, classes)) if labelled else ()
        parts = {}
        for split, files in found.items():
            paths = np.array([path for name in classes for path in files[name]], dtype=bytes)
            labels = np.repeat(np.arange(len(classes)) if labelled else -1, [len(files[name]) for name in classes])
            parts[split] = (paths, labels)
        return self._held_out(parts, labelled)

    def _held_out(
        self, parts: dict[str, tuple[np.ndarray, np.ndarray]], labelled: bool
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The splits that are given, and those that are not, held out of train."""
        n = len(parts["train"][0])
        if len(parts) == 2 and "val" in parts:  # what is given is reported, so choices need images of their own
            parts["test"] = parts.pop("val")
        if len(parts) == 1 and labelled:
            parts["train"], parts["test"] = self._hold_out(parts["train"], "test_fraction", self.test_fraction, n)
            n = len(parts["train"][0])
        if "val" not in parts:
            parts["train"], parts["val"] = self._hold_out(parts["train"], "val_fraction", self.val_fraction, n)
        parts.setdefault("test", parts["val"])
        return parts

    def _hold_out(self, files: tuple[np.ndarray, np.ndarray], name: str, fraction: float, n: int) -> Any:
        size = round(fraction * n)
        if not 0 < size < n:
            raise ValueError(f"{type(self).__name__}: {name} {fraction} of {n} images in {self.root} is {size}: cannot split")
        return tuple((files[0][i], files[1][i]) for i in stratified_holdout(files[1], size))


def _describe(classes: Sequence[bytes]) -> str:
    return _text([name or b"(images without class folder)" for name in classes]) or "none"
