"""Small image data sets, kept in memory as one uint8 array."""

from __future__ import annotations

import pickle
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from sklearn.datasets import load_digits

from datamodules.errors import ConfigError, MissingDataError
from datamodules.images.module import ArrayDataset, ImageDataModule
from datamodules.preparing import alone_in
from datamodules.splits import Split, stratified_holdout

# ---- data sets kept in memory ------------------------------------------------------------------------------


class Digits(ImageDataModule):
    """Handwritten digits from scikit-learn: 1,797 gray 8x8 images, no download (Alpaydin and Kaynak 1998).

    Pixels 0 to 16 are scaled to 0 to 255. Fixed stratified split: 1,077 train, 360 val, 360 test. Mean and
    standard deviation were computed over the 1,077. https://archive.ics.uci.edu/dataset/80

    Args:
        root: ignored, the images come with scikit-learn; accepted so that ``--data.root`` works with every
            data set.
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
    """Unpack tar archives with Python's ``data`` filter, which blocks paths and links that leave the folder.

    torchvision sets no filter, and before Python 3.14 there is no default one. Where Python has no filters,
    archives are not unpacked.

    Raises:
        ConfigError: an archive would have to be unpacked by a Python older than 3.10.12, 3.11.4 or 3.12.
    """

    def refuse(*args: Any, **kwargs: Any) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        raise ConfigError(
            f"Python {version} cannot unpack a tar archive safely: use 3.10.12, 3.11.4, 3.12 or newer, or "
            "unpack it into --data.root yourself and leave out --data.download"
        )

    has_filters = hasattr(tarfile, "data_filter")
    name = "extraction_filter" if has_filters else "extractall"
    before = getattr(tarfile.TarFile, name)
    setattr(tarfile.TarFile, name, staticmethod(tarfile.data_filter) if has_filters else refuse)
    try:
        yield
    finally:
        setattr(tarfile.TarFile, name, before)


class _TorchvisionImages(ImageDataModule):
    """A data set read by torchvision. ``val`` is a fixed stratified hold-out of ``val_size`` training images.

    Args:
        root: folder that contains the data set's own folder. Nothing is created there unless ``download`` is
            set.
        download: download missing files into ``root`` (created if its parent exists).
        train_on_val: pre-train on ``val`` too, i.e. on the whole official training split, as published
            results do. Probes still train on ``bank``, without ``val``; the method's losses on ``val`` are
            then those of training images.

    Raises:
        ValueError: ``train_on_val`` for a data set whose ``val`` is not taken from its training images.
    """

    source_files: tuple[str, ...]  # below root; all must exist
    val_size: int
    trains_on_unlabeled = False

    def __init__(
        self, root: str = "data", download: bool = False, train_on_val: bool = False, **kwargs: Any
    ) -> None:
        root = str(root)  # a Path would not be stored among a checkpoint's plain hyper-parameters
        super().__init__(**kwargs)
        if train_on_val and self.trains_on_unlabeled:
            raise ConfigError(
                f"train_on_val must be false for {type(self).__name__}, which trains on unlabeled images only"
            )
        self.root, self.download, self.train_on_val = root, download, train_on_val

    def prepare_data(self) -> None:
        if (
            self.download and not self.synthetic
        ):  # Lightning calls this in one process per node, before the others read
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
        """Images and labels of "train" or "test" as torchvision returns them."""
        raise NotImplementedError

    def _part(self, part: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, H, W, C) uint8 and labels (N,) int64 of a part; failures raise ``MissingDataError``."""
        root = Path(self.root).expanduser()
        if download and not root.is_dir():
            if not root.parent.is_dir():
                raise self._missing(f"--data.root {root} cannot be created, {root.parent} does not exist")
            try:
                root.mkdir(exist_ok=True)
            except OSError as error:
                raise self._missing(f"--data.root {root} cannot be created ({error})") from error
        if not download:
            absent = [name for name in self.source_files if not (root / name).is_file()]
            if not root.is_dir():
                raise self._missing(f"--data.root {root} does not exist")
            if absent:
                count = f"{len(absent)} of {len(self.source_files)} files"
                raise self._missing(f"{absent[0]} ({count}) is missing in --data.root {root}")
        try:
            with inside_only(), alone_in(root) if download else nullcontext():
                images, labels = self._read(root, part, download)
            images, labels = np.asarray(images), np.asarray(labels, dtype=np.int64)
        except (
            OSError,
            RuntimeError,
            ValueError,
            AssertionError,
            EOFError,
            pickle.UnpicklingError,
            tarfile.TarError,
        ) as error:
            # torchvision raises URLError without a network, RuntimeError for mirrors and checksums, and
            # almost anything for a damaged file
            what = "could not be downloaded to" if download else "cannot be read (damaged files?) in"
            raise self._missing(f"{what} --data.root {root}: {' '.join(str(error).split())[:300]}") from error
        if images.ndim == 3:
            images = images[..., None]
        channels, height, width = self.image_shape
        if images.shape[1:] != (height, width, channels):
            raise ConfigError(
                f"{type(self).__name__}: images of {part} in {root} have shape {images.shape[1:]}, "
                f"expected {(height, width, channels)}"
            )
        return images, labels

    def _missing(self, reason: str) -> MissingDataError:
        folder, names = (
            (Path(self.root) / self.source_files[0]).parent,
            ", ".join(Path(name).name for name in self.source_files),
        )
        return MissingDataError(
            f"{type(self).__name__}: {reason}. Expected in {folder}: {names}. Get them with "
            "--data.download true, or copy them there. The configs in configs/digits/ need no download."
        )


class MNIST(_TorchvisionImages):
    """Handwritten digits, gray 28x28 (LeCun et al. 1998): 55,000 train, 5,000 val (the official 60,000),
    10,000 test.

    Mean and standard deviation of the 60,000, as in PyTorch's example. http://yann.lecun.com/exdb/mnist

    Layouts::

        the original files; --data.download true downloads them:
            DIR/MNIST/raw/train-images-idx3-ubyte  DIR/MNIST/raw/train-labels-idx1-ubyte
            DIR/MNIST/raw/t10k-images-idx3-ubyte  DIR/MNIST/raw/t10k-labels-idx1-ubyte
    """

    image_shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)
    num_classes = 10
    class_names = tuple("0123456789")
    source_files = tuple(
        f"MNIST/raw/{s}-{k}" for s in ("train", "t10k") for k in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.MNIST(root, train=part == "train", download=download)
        return data.data, data.targets


class FashionMNIST(_TorchvisionImages):
    """Clothes, gray 28x28 (Xiao et al. 2017): 55,000 train and 5,000 val (the official 60,000), 10,000 test.

    Mean and standard deviation of the 60,000 (the usual constants). https://arxiv.org/abs/1708.07747

    Layouts::

        the original files; --data.download true downloads them:
            DIR/FashionMNIST/raw/train-images-idx3-ubyte  DIR/FashionMNIST/raw/train-labels-idx1-ubyte
            DIR/FashionMNIST/raw/t10k-images-idx3-ubyte  DIR/FashionMNIST/raw/t10k-labels-idx1-ubyte
    """

    image_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    num_classes = 10
    class_names = (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    source_files = tuple(f"FashionMNIST/raw/{name.rpartition('/')[2]}" for name in MNIST.source_files)
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.FashionMNIST(root, train=part == "train", download=download)
        return data.data, data.targets


class CIFAR10(_TorchvisionImages):
    """Objects, 32x32 (Krizhevsky 2009): 45,000 train, 5,000 val (the official 50,000), 10,000 test.

    Mean and standard deviation over the pixels of the 50,000 (the usual constants; the 0.2023, 0.1994, 0.2010
    seen elsewhere are means of per-image deviations). https://www.cs.toronto.edu/~kriz/cifar.html

    Layouts::

        the original files; --data.download true downloads them:
            DIR/cifar-10-batches-py/data_batch_1  DIR/cifar-10-batches-py/data_batch_2
            DIR/cifar-10-batches-py/data_batch_3  DIR/cifar-10-batches-py/data_batch_4
            DIR/cifar-10-batches-py/data_batch_5  DIR/cifar-10-batches-py/test_batch
            DIR/cifar-10-batches-py/batches.meta
    """

    image_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    source_files = (
        *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/batches.meta",
    )
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.CIFAR10(root, train=part == "train", download=download)
        return data.data, data.targets


class CIFAR100(_TorchvisionImages):
    """Objects of 100 classes, 32x32 (Krizhevsky 2009): 45,000 train, 5,000 val (the official 50,000), 10,000
    test.

    Mean and standard deviation over the pixels of the 50,000 (the usual constants).
    https://www.cs.toronto.edu/~kriz/cifar.html

    Layouts::

        the original files; --data.download true downloads them:
            DIR/cifar-100-python/train  DIR/cifar-100-python/test  DIR/cifar-100-python/meta
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
    source_files = ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.CIFAR100(root, train=part == "train", download=download)
        return data.data, data.targets


class SVHN(_TorchvisionImages):
    """Street view house numbers, cropped digits, 32x32 (Netzer et al. 2011): 68,257 train, 5,000 val (of the
    official 73,257), 26,032 test; the 531,131 extra images are not used.

    Mean and standard deviation over the pixels of the 73,257 (the usual constants).
    http://ufldl.stanford.edu/housenumbers

    Layouts::

        the original files; --data.download true downloads them:
            DIR/train_32x32.mat  DIR/test_32x32.mat
    """

    image_shape = (3, 32, 32)
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    num_classes = 10
    class_names = tuple("0123456789")
    source_files = ("train_32x32.mat", "test_32x32.mat")
    val_size = 5_000

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.SVHN(str(root), split=part, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels


class STL10(_TorchvisionImages):
    """Objects, 96x96 (Coates et al. 2011), made for unsupervised pre-training: 100,000 unlabeled train, 4,000
    bank and 1,000 val (the official 5,000 labeled ones), 8,000 test. The ten official folds of 1,000
    are not used.

    The unlabeled images take 2.8 GB of memory, twice that while they are read. Mean and standard deviation
    over the pixels of the 5,000 (the usual constants). https://cs.stanford.edu/~acoates/stl10

    Layouts::

        the original files; --data.download true downloads them:
            DIR/stl10_binary/train_X.bin  DIR/stl10_binary/train_y.bin  DIR/stl10_binary/unlabeled_X.bin
            DIR/stl10_binary/test_X.bin  DIR/stl10_binary/test_y.bin
    """

    image_shape = (3, 96, 96)
    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    num_classes = 10
    class_names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    source_files = tuple(
        f"stl10_binary/{f}.bin" for f in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y")
    )
    val_size = 1_000
    trains_on_unlabeled = True

    def _load(self, split: Split) -> dict[str, Any]:
        if split == "train":
            return {"train": ArrayDataset(*self._part("unlabeled", self.download and self.trainer is None))}
        loaded = super()._load(split)
        loaded.pop("train", None)
        return loaded

    def _read(self, root: Path, part: str, download: bool) -> tuple[Any, Any]:
        data = torchvision.datasets.STL10(root, split=part, download=download)
        return data.data.transpose(0, 2, 3, 1), data.labels
