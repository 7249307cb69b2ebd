"""Image data sets: fixed splits, exact pixels, clear errors. No network; every file is made in
``tmp_path``.
"""

import gc
import os
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import ExifTags, Image, features
from torch.utils.data import DataLoader
from torchvision.datasets import cifar, mnist, stl10, svhn
from torchvision.transforms import v2

from datamodules.base import keep_batch
from datamodules.errors import DataFileError, ImageFileError, MissingDataError
from datamodules.images import folder
from datamodules.images.arrays import CIFAR10, CIFAR100, MNIST, STL10, SVHN, Digits, FashionMNIST
from datamodules.images.decode import image_size, read_image, to_uint8
from datamodules.images.folder import FolderDataset, ImageFolder
from datamodules.images.module import ArrayDataset
from datamodules.images.pack import make_shards
from datamodules.images.shards import Shards
from datamodules.splits import stratified_holdout

DOWNLOADED = [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN, STL10]


# ---- splits and arrays -------------------------------------------------------------------------------------


def test_holdout_is_stratified_and_never_changes():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    np.random.seed(1)  # the global state must not matter
    kept, held = stratified_holdout(labels, 12)
    assert np.bincount(labels[held]).tolist() == [2, 4, 6]
    assert sorted([*kept, *held]) == list(range(60))
    # written down once: another choice would make old and new results incomparable
    assert held.tolist() == [2, 8, 12, 20, 23, 25, 35, 36, 38, 43, 46, 50]


def test_holdout_rounds_by_largest_remainder_and_takes_unlabeled_data():
    _, held = stratified_holdout(np.repeat([0, 1, 2], [5, 3, 2]), 4)  # shares 2, 1.2, 0.8
    assert len(held) == 4 and np.bincount(np.repeat([0, 1, 2], [5, 3, 2])[held]).tolist() == [2, 1, 1]
    assert len(stratified_holdout(np.full(9, -1), 3)[1]) == 3


def test_array_dataset_gives_whole_batches_in_channel_first_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    labels = np.array([3, 1, 4, 1, 5], dtype=np.int32)
    for array in (images, np.load(tmp_path / "images.npy", mmap_mode="r"), np.asfortranarray(images)):
        batch = ArrayDataset(array, labels).__getitems__([4, 0])
        assert batch["input"].dtype == torch.uint8 and batch["label"].dtype == torch.int64
        assert np.array_equal(batch["input"].numpy(), images[[4, 0]].transpose(0, 3, 1, 2))
        assert batch["label"].tolist() == [5, 3]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), np.zeros(2), "float32"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2), r"\(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3), r"2 images.*\(3,\)"),
    ],
)
def test_array_dataset_refuses_other_arrays(images, labels, said):
    with pytest.raises(ValueError, match=said):
        ArrayDataset(images, labels)


def test_digits():
    data = Digits(root="nowhere")
    splits = {split: data.dataset(split) for split in ("train", "bank", "val", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 1077,
        "bank": 1077,
        "val": 360,
        "test": 360,
    }
    for split in ("train", "val", "test"):
        share = np.bincount(splits[split].labels, minlength=10) / len(splits[split])
        assert abs(share - 0.1).max() < 0.005
    joined = np.concatenate([splits[split].images for split in ("train", "val", "test")])
    assert len(np.unique(joined.reshape(1797, -1), axis=0)) == 1797  # no image in two splits
    assert joined.max() == 255 and np.unique(joined).size == 17
    assert data.dataset("val") is splits["val"]
    pixels = splits["train"].images / 255
    assert data.mean[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert data.std[0] == pytest.approx(pixels.std(), abs=1e-4)


def test_unknown_split():
    with pytest.raises(ValueError, match="'validation'"):
        Digits().dataset("validation")


def test_labels_outside_of_the_classes_are_refused(monkeypatch):
    labels = np.array([0, 10, 2])
    monkeypatch.setattr(
        Digits, "_load", lambda *_: {"val": ArrayDataset(np.zeros((3, 8, 8, 1), np.uint8), labels)}
    )
    with pytest.raises(ValueError, match="sample 1 of split val has the label 10, expected 0 to 9"):
        Digits().dataset("val")


# ---- from uint8 to what a network sees ---------------------------------------------------------------------


def test_decode_standardize_and_back():
    data = CIFAR10(synthetic=True)
    raw = data.dataset("val").__getitems__(range(8))["input"]
    decoded = data.decode(raw)
    assert (
        decoded.dtype == torch.float32 and decoded.is_contiguous() and torch.equal(decoded * 255, raw.float())
    )
    x = data.standardize(decoded)
    expected = v2.functional.normalize(decoded, list(data.mean), list(data.std))
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(data.unstandardize(x), decoded)
    assert data.unstandardize(torch.full((1, 3, 2, 2), 99.0)).max() == 1


def test_other_constants_for_standardizing():
    raw = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    data = Digits(mean=(0.0,), std=(1.0,))
    pixels = data.transform({"input": raw}, None)["input"]
    assert torch.equal(pixels, data.decode(raw)) and torch.equal(data.unstandardize(pixels), pixels)
    assert Digits().mean == Digits.mean == (0.3064,)
    for knob, value in (("mean", (0.0, 0.0)), ("std", (0.0,))):
        with pytest.raises(ValueError, match=rf"{knob} must .*got \(0"):
            Digits(**{knob: value})


@pytest.mark.parametrize("cls", [Digits, *DOWNLOADED, ImageFolder])
def test_synthetic_touches_no_file_and_can_be_learnt(cls, tmp_path):
    root = str(tmp_path / "absent")
    kwargs = {"image_size": 64} if cls is ImageFolder else {}
    first, second = (cls(root=root, synthetic=True, batch_size=64, **kwargs) for _ in range(2))
    for split in ("train", "bank", "val", "test"):
        batch = first.dataset(split).__getitems__(range(200))
        assert batch["input"].shape == (200, *first.image_shape) and batch["input"].dtype == torch.uint8
        assert torch.equal(batch["input"], second.dataset(split).__getitems__(range(200))["input"])
    train, test = (first.dataset(split).__getitems__(range(n)) for split, n in (("train", 128), ("test", 64)))
    distance = torch.cdist(test["input"].flatten(1).float(), train["input"].flatten(1).float())
    assert (train["label"][distance.argmin(1)] == test["label"]).float().mean() > 0.95
    assert len(first.class_names) == first.num_classes
    assert not os.listdir(tmp_path)


def test_constructor_arguments_are_plain_values_of_a_checkpoint(tmp_path):
    assert MNIST(root=tmp_path, batch_size=8).hparams["root"] == str(tmp_path)
    assert ImageFolder(root=tmp_path, mean=[0.5] * 3).hparams["mean"] == [0.5, 0.5, 0.5]


# ---- data sets that torchvision reads ----------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def make_files(cls, root: Path, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write a small copy of a data set in its own format; returns images (N, H, W, C) and labels by part."""
    channels, height, width = cls.image_shape
    parts = {}
    for part, n in (("train", 50), ("test", 20), ("unlabeled", 7)):
        images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
        parts[part] = images, np.arange(n) % cls.num_classes if part != "unlabeled" else np.full(n, -1)
    for name in cls.source_files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test", "unlabeled"):
        images, labels = parts[part]
        if cls in (MNIST, FashionMNIST) and part != "unlabeled":
            prefix = root / cls.__name__ / "raw" / ("train" if part == "train" else "t10k")
            write_idx(Path(f"{prefix}-images-idx3-ubyte"), images[..., 0])
            write_idx(Path(f"{prefix}-labels-idx1-ubyte"), labels.astype(np.uint8))
        elif cls in (CIFAR10, CIFAR100) and part != "unlabeled":
            base, key = (root / cls.source_files[0]).parent, "labels" if cls is CIFAR10 else "fine_labels"
            names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
            rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            for name, piece in zip(
                names[part] if cls is CIFAR10 else [part],
                np.array_split(np.arange(len(rows)), len(names[part]) if cls is CIFAR10 else 1),
                strict=True,
            ):
                (base / name).write_bytes(pickle.dumps({"data": rows[piece], key: labels[piece].tolist()}))
            meta, names_key = (
                ("batches.meta", "label_names") if cls is CIFAR10 else ("meta", "fine_label_names")
            )
            (base / meta).write_bytes(pickle.dumps({names_key: list(cls.class_names)}))
        elif cls is SVHN and part != "unlabeled":
            y = np.where(labels == 0, 10, labels)[:, None]  # the files call the digit 0 "10"
            scipy.io.savemat(root / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})
        elif cls is STL10:
            images.transpose(0, 3, 2, 1).tofile(root / f"stl10_binary/{part}_X.bin")
            if part != "unlabeled":
                (labels + 1).astype(np.uint8).tofile(root / f"stl10_binary/{part}_y.bin")
    return parts


@pytest.fixture
def no_checksums(monkeypatch):
    for library in (cifar, svhn, stl10):
        monkeypatch.setattr(library, "check_integrity", lambda *_: True)
    monkeypatch.setattr(svhn, "calculate_md5", lambda *_: svhn.SVHN.split_list["train"][2], raising=False)


@pytest.mark.parametrize("cls", DOWNLOADED)
def test_torchvision_data_sets(cls, tmp_path, monkeypatch, no_checksums):
    parts = make_files(cls, tmp_path, np.random.default_rng(0))
    monkeypatch.setattr(cls, "val_size", 10)
    data = cls(root=str(tmp_path))
    train, bank, val, test = (data.dataset(split) for split in ("train", "bank", "val", "test"))
    images, labels = parts["train"]
    kept, held = stratified_holdout(labels, 10)
    assert np.array_equal(val.images, images[held]) and np.array_equal(val.labels, labels[held])
    assert np.array_equal(bank.images, images[kept]) and np.array_equal(bank.labels, labels[kept])
    assert np.array_equal(test.images, parts["test"][0]) and np.array_equal(test.labels, parts["test"][1])
    if cls is STL10:
        assert np.array_equal(train.images, parts["unlabeled"][0]) and set(train.labels) == {-1}
        with pytest.raises(ValueError, match="train_on_val must be false for STL10"):
            cls(root=str(tmp_path), train_on_val=True)
    else:
        assert train is bank
        whole = cls(root=str(tmp_path), train_on_val=True)
        assert np.array_equal(whole.dataset("train").images, images)
        for split, same in (
            ("bank", bank),
            ("val", val),
        ):  # probes learn and choose from the same samples as ever
            assert np.array_equal(whole.dataset(split).images, same.images)
    channels, height, width = cls.image_shape
    assert test.images.shape == (20, height, width, channels)
    assert len(data.mean) == len(data.std) == channels and len(data.class_names) == data.num_classes


@pytest.mark.parametrize("cls", DOWNLOADED)
def test_missing_data_is_one_clear_error_and_nothing_is_created(cls, tmp_path):
    root = tmp_path / "mistyped"
    for split in ("train", "val", "test"):
        with pytest.raises(MissingDataError) as error:
            cls(root=str(root)).dataset(split)
        said = str(error.value)
        for part in (
            cls.__name__,
            f"{root} does not exist",
            Path(cls.source_files[-1]).name,
            "--data.download",
            "configs/digits",
        ):
            assert part in said
        assert "\n" not in said
    assert not os.listdir(tmp_path)


def test_an_incomplete_folder_names_the_missing_file(tmp_path):
    make_files(MNIST, tmp_path, np.random.default_rng(0))
    (tmp_path / MNIST.source_files[2]).unlink()
    with pytest.raises(MissingDataError, match=r"t10k-images-idx3-ubyte \(1 of 4 files\) is missing"):
        MNIST(root=str(tmp_path)).dataset("train")


def test_damaged_files_are_reported(tmp_path):
    make_files(MNIST, tmp_path, np.random.default_rng(0))
    path = tmp_path / MNIST.source_files[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MissingDataError, match="MNIST: cannot be read"):
        MNIST(root=str(tmp_path)).dataset("train")
    make_files(CIFAR10, tmp_path, np.random.default_rng(0))  # not the official bytes
    with pytest.raises(MissingDataError, match=r"CIFAR10: cannot be read.*corrupted"):
        CIFAR10(root=str(tmp_path)).dataset("train")


@pytest.mark.parametrize("cls", DOWNLOADED)
def test_a_failed_download_is_wrapped(cls, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise URLError("no network here")

    for library in (mnist, cifar, stl10):
        monkeypatch.setattr(library, "download_and_extract_archive", fail)
    monkeypatch.setattr(svhn, "download_url", fail)
    with pytest.raises(MissingDataError, match=r"could not be downloaded.*no network here.*copy them there"):
        cls(root=str(tmp_path / "new"), download=True).prepare_data()
    with pytest.raises(MissingDataError, match="does not exist"):
        cls(root=str(tmp_path / "no" / "parent"), download=True).prepare_data()
    assert os.listdir(tmp_path) == ["new"]


def test_a_complete_folder_is_not_downloaded_again(tmp_path, monkeypatch):
    make_files(MNIST, tmp_path, np.random.default_rng(0))
    monkeypatch.setattr(mnist, "download_and_extract_archive", lambda *_, **__: pytest.fail("downloads"))
    data = MNIST(root=str(tmp_path), download=True)
    data.prepare_data()
    assert len(data.dataset("test")) == 20


# ---- folders: layouts --------------------------------------------------------------------------------------


def write_images(
    folder: Path, n: int, size: tuple[int, int] = (16, 16), start: int = 0, suffix: str = "png"
) -> None:
    """``n`` pictures of one gray value each: ``start``, ``start`` + 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("L", size, start + i).save(folder / f"{i:03d}.{suffix}")


def gray(dataset, n: int | None = None) -> list[int]:
    """The gray value of every picture."""
    batch = dataset.__getitems__(range(n or len(dataset)))["input"]
    return batch[:, 0, 0, 0].tolist()


def test_folder_without_splits(tmp_path):
    write_images(tmp_path / "cat", 20)
    write_images(tmp_path / "dog" / "deeper", 20, start=100)
    data = ImageFolder(str(tmp_path), image_size=16)
    assert data.num_classes == 2 and data.class_names == ("cat", "dog")
    seen = []
    for split, n in (("train", 29), ("val", 3), ("test", 8)):
        dataset = data.dataset(split)
        assert sorted(np.bincount(dataset.labels)) == [n // 2, n - n // 2]
        assert [value >= 100 for value in gray(dataset)] == [label == 1 for label in dataset.labels]
        seen += gray(dataset)
    assert len(set(seen)) == 40
    again = ImageFolder(str(tmp_path), image_size=16, in_memory=False)
    assert gray(again.dataset("test")) == gray(data.dataset("test"))


@pytest.mark.parametrize("given", ["val", "test"])
def test_train_and_one_more_folder(tmp_path, given):
    for label, name in enumerate("ab"):
        write_images(tmp_path / "train" / name, 10, start=label * 50)
        write_images(tmp_path / given / name, 3, start=200 + label)
    data = ImageFolder(str(tmp_path), image_size=16)
    assert min(gray(data.dataset("test"))) >= 200
    assert len(data.dataset("val")) == 2 and len(data.dataset("train")) == 18
    assert max(gray(data.dataset("val")) + gray(data.dataset("bank"))) < 200


def test_train_val_and_test_folders(tmp_path):
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        for label, name in enumerate("ab"):
            write_images(tmp_path / split / name, 4, start=start + 10 * label)
    data = ImageFolder(str(tmp_path), image_size=16)
    for low, split in ((0, "train"), (100, "val"), (200, "test")):
        values = gray(data.dataset(split))
        assert len(values) == 8 and low <= min(values) and max(values) < low + 100


@pytest.mark.parametrize("layout", ["flat", "one folder", "asked for"])
def test_unlabeled(tmp_path, layout):
    if layout == "asked for":
        write_images(tmp_path / "a", 10)
        write_images(tmp_path / "b", 10, start=100)
    else:
        write_images(tmp_path / ("x" if layout == "one folder" else ""), 20)
    data = ImageFolder(str(tmp_path), image_size=16, labeled=layout != "asked for")
    assert data.num_classes is None and data.class_names == ()
    assert len(data.dataset("train")) == 18 and len(data.dataset("val")) == 2
    assert gray(data.dataset("test")) == gray(data.dataset("val"))  # nothing is measured on it
    batch = data.dataset("train").__getitems__([0, 1])
    assert batch["label"].tolist() == [-1, -1] and batch["input"].shape == (2, 3, 16, 16)


def test_which_files_are_images(tmp_path):
    write_images(tmp_path / "a", 1, suffix="JPG")
    write_images(tmp_path / "a", 1, suffix="webp")
    write_images(tmp_path / "b", 3, suffix="Tiff")
    (tmp_path / "a" / "._000.jpg").write_bytes(b"hidden")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    write_images(tmp_path / ".thumbnails", 2)
    (tmp_path / "c").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b", target_is_directory=True)
    name = os.fsencode(tmp_path) + b"/b/caf\xe9.png"  # Latin-1, not UTF-8
    (tmp_path / "b" / "000.Tiff").rename(os.fsdecode(name))
    data = ImageFolder(str(tmp_path), image_size=16, val_fraction=0.2, test_fraction=0.2)
    n = sum(len(data.dataset(split)) for split in ("train", "val", "test"))
    assert data.class_names == ("a", "b", "c") and n == 2 + 3 + 3
    Path(os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(ImageFileError) as error:
        read_image(name, 16, 3, 18)
    assert str(error.value).encode().endswith(b"/b/caf\\xe9.png: it is empty")  # can be printed anywhere


def test_every_format_of_pillow_is_read_and_the_rest_is_counted(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(folder, "rank_zero_info", said.append)
    endings = ["jpg", "jfif", "gif", "png", "bmp", "TGA", "ppm"]
    endings += [e for e, name in (("jp2", "jpg_2000"), ("avif", "avif")) if features.check(name)]
    (tmp_path / "a").mkdir()
    for ending in endings:
        Image.new("RGB", (16, 16), (90, 90, 90)).save(tmp_path / "a" / f"x.{ending}")
    (tmp_path / "a" / "x.png").rename(tmp_path / "a" / "without")
    for name in ("README", "x.heic", "y.heic", "z.txt", "page.eps"):
        (tmp_path / "a" / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    data = ImageFolder(str(tmp_path), image_size=16, val_fraction=0.3, in_memory=False)
    assert len(data.files("train")) + len(data.files("val")) == len(endings)
    values = gray(data.dataset("train")) + gray(data.dataset("val"))
    assert all(abs(value - 90) <= 3 for value in values)
    assert said == [
        f"{tmp_path}: ignored files that are not images: 2 .heic, 1 without an extension, 1 .eps, 1 .txt"
    ]


def test_a_file_that_is_no_image_inside_does_not_start_ghostscript(tmp_path):
    (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(ImageFileError, match=r"x\.jpg: it is not an image$"):
        read_image(tmp_path / "x.jpg", 8, 1, 9)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_whole_training_split_and_unlabeled_images(tmp_path, in_memory):
    for start, split in ((0, "Training"), (100, "testing")):
        for label, name in enumerate("ab"):
            write_images(tmp_path / "src" / split / name, 20, start=start + 20 * label)
    write_images(tmp_path / "src" / "unlabeled" / "mixed", 5, start=200)
    options = {"image_size": 16, "in_memory": in_memory}
    if not in_memory:
        options["decode_size"] = 16
    part, whole = (ImageFolder(str(tmp_path / "src"), train_on_val=x, **options) for x in (False, True))
    assert part.class_names == ("a", "b")
    values = {split: gray(part.dataset(split)) for split in ("train", "bank", "val", "test")}
    assert {split: len(x) for split, x in values.items()} == {"train": 41, "bank": 36, "val": 4, "test": 40}
    assert sorted(values["train"]) == sorted(values["bank"] + list(range(200, 205)))
    assert sorted(gray(whole.dataset("train"))) == [*range(40), *range(200, 205)]
    for split in ("bank", "val", "test"):
        assert gray(whole.dataset(split)) == values[split]
    labels = whole.dataset("train").labels
    assert (labels == -1).sum() == 5 and len(whole.files("train")) == len(labels) == 45
    make_shards(tmp_path / "src", tmp_path / "dst")
    shards = Shards(str(tmp_path / "dst"), train_on_val=True, **options)
    assert sorted(gray(shards.dataset("train"))) == [*range(40), *range(200, 205)]
    assert len(shards.dataset("bank")) == 36 and (shards.dataset("train").labels == -1).sum() == 5
    assert shards.class_names == ("a", "b")


def test_bad_layouts_say_what_was_found(tmp_path):
    def said(name: str, **kwargs) -> str:
        with pytest.raises((DataFileError, ValueError)) as error:
            ImageFolder(str(tmp_path / name), image_size=16, **kwargs).dataset("train")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "mistyped is not a folder" in said("mistyped") and not os.listdir(tmp_path)

    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("")
    assert "contains: notes.txt, sub" in said("empty")

    write_images(tmp_path / "class" / "a", 2)
    (tmp_path / "class" / "b").mkdir()
    assert "without images" in said("class") and "class: b; with images: a" in said("class")

    write_images(tmp_path / "mixed" / "a", 2)
    write_images(tmp_path / "mixed", 1)
    assert "contains both images (000.png) and folders with images (a)" in said("mixed")

    for name in "abcdefgh":
        write_images(tmp_path / "differ" / "train" / name, 1)
    write_images(tmp_path / "differ" / "val" / "a", 1)
    write_images(tmp_path / "differ" / "val" / "z", 1)
    assert "only in val: z; only in train: b, c, d, e, f, ... (7 in all)" in said("differ")

    write_images(tmp_path / "flat" / "train" / "a", 1)
    write_images(tmp_path / "flat" / "train" / "b", 1)
    write_images(tmp_path / "flat" / "val", 1)
    assert "only in val: (no class folder); only in train: a, b" in said("flat")

    write_images(tmp_path / "few" / "a", 1)
    write_images(tmp_path / "few" / "b", 1)
    assert "test_fraction 0.2 of 2 images" in said("few")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0),
        ("decode_size", 100),
        ("channels", 4),
        ("val_fraction", 1.0),
        ("test_fraction", 0.0),
        ("mean", (0.5,)),
        ("std", (1.0, 0.0, 1.0)),
        ("batch_size", 0),
    ],
)
def test_bad_knobs_are_named_with_their_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {re.escape(str(value))}"):
        ImageFolder("unused", **{name: value})


# ---- folders: pixels ---------------------------------------------------------------------------------------


def test_evaluation_pixels_equal_torchvisions(tmp_path):
    rng = np.random.default_rng(0)
    pipeline = v2.Compose([v2.Resize(37), v2.CenterCrop(32)])  # 32 * 256 / 224
    for height, width in ((50, 81), (97, 40), (20, 31), (37, 37)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / "x.png")
        ours = read_image(os.fsencode(tmp_path / "x.png"), 32, 3, 37).astype(int)
        theirs = np.asarray(pipeline(image)).astype(int)
        assert abs(ours - theirs).max() <= 1  # one rounding


def test_pictures_of_the_right_size_are_taken_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for draw in (None, 12345):
        assert np.array_equal(read_image(os.fsencode(tmp_path / "x.png"), 32, 3, 37, draw), pixels)


def test_extreme_shapes(tmp_path):
    for size in ((1, 1), (1, 30_000), (3000, 2)):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "x.png")
        for draw in (None, 2**62 + 12345):
            image = read_image(os.fsencode(tmp_path / "x.png"), 32, 3, 37, draw)
            assert image.shape == (32, 32, 3) and (image == [10, 20, 30]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_formats(tmp_path, channels):
    def read(image: Image.Image, name: str = "x.png", **kwargs) -> np.ndarray:
        image.save(tmp_path / name, **kwargs)
        return read_image(os.fsencode(tmp_path / name), 8, channels, 9).astype(int)

    def filled(mode: str, value) -> Image.Image:
        return Image.new(mode, (8, 8), value)

    near = {"atol": 2}
    np.testing.assert_allclose(read(filled("L", 77)), 77)
    np.testing.assert_allclose(read(filled("1", 1)), 255)
    np.testing.assert_allclose(read(filled("RGB", (77, 77, 77)).quantize(4)), 77, **near)
    np.testing.assert_allclose(read(filled("CMYK", (0, 0, 0, 155)), "x.jpg"), 100, **near)
    # transparent: white shines through, whatever color is hidden below
    np.testing.assert_allclose(read(filled("RGBA", (9, 9, 9, 0))), 255)
    np.testing.assert_allclose(read(filled("RGBA", (100, 100, 100, 255))), 100)
    np.testing.assert_allclose(read(filled("LA", (0, 128))), 127, **near)
    np.testing.assert_allclose(read(filled("L", 5), transparency=5), 255)
    # 16 bits: scaled, not clipped
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    expected = np.linspace(0, 255, 64).reshape(8, 8, 1).repeat(channels, 2)
    np.testing.assert_allclose(read(ramp), expected, atol=1)
    np.testing.assert_allclose(read(ramp, "x.tiff"), expected, atol=1)
    if channels == 3:
        assert read(filled("RGB", (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]
    for mode in ("F", "I"):
        with pytest.raises(ImageFileError, match=r"x\.tif: pixel format.*32 bits"):
            read(filled(mode, 7), "x.tif")
    with pytest.raises(ValueError, match="no known range"):
        to_uint8(Image.new("F", (2, 2)), channels)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_as_they_are_seen(tmp_path, suffix, orientation):
    """Stored pixels are turned by EXIF's orientation: its corner values name where row 0 and column 0 are."""
    seen = np.zeros((24, 24), np.uint8)
    seen[:12, :12], seen[:12, 12:], seen[12:, :12] = 250, 150, 70
    back = {6: 1, 8: 3, 3: 2}  # quarter turns to the left that store it
    stored = {
        2: seen[:, ::-1],
        4: seen[::-1],
        5: seen.T,
        7: np.rot90(seen, 2).T,
        **{value: np.rot90(seen, turns) for value, turns in back.items()},
    }.get(orientation, seen)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(path, exif=exif)
    for draw in (None, 5):
        got = read_image(path, 24, 1, 28, draw)[..., 0].astype(int)
        assert abs(got[[4, 4, 18, 18], [4, 18, 4, 18]] - [250, 150, 70, 0]).max() < 12, got


def test_damaged_exif_does_not_matter(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01")
    assert np.array_equal(read_image(tmp_path / "x.png", 8, 1, 9)[..., 0], pixels)


def test_size_is_that_of_the_picture_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (30, 10)).save(tmp_path / "x.jpg", exif=exif)
    Image.new("L", (30, 10)).save(tmp_path / "y.jpg")
    assert image_size(str(tmp_path / "x.jpg")) == (10, 30) and image_size(str(tmp_path / "y.jpg")) == (30, 10)


def test_a_fourth_band_of_tiff_that_is_no_transparency(tmp_path):
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)

    def read(band: np.ndarray, tags: dict[int, Any] | None = None, suffix: str = "tif") -> np.ndarray:
        picture = Image.fromarray(np.dstack([colors, band.astype(np.uint8)]))
        picture.save(tmp_path / f"x.{suffix}", **({"tiffinfo": tags} if tags else {}))
        return read_image(tmp_path / f"x.{suffix}", 16, 3, 18)

    infrared = rng.integers(0, 256, (16, 16))
    assert np.array_equal(read(infrared), colors)
    assert np.array_equal(read(np.zeros((16, 16))), colors)  # would be a white picture
    shape = np.where(np.arange(16) < 8, 255, 0) * np.ones((16, 1))
    expected = np.where(shape[..., None] == 255, colors, 255)
    assert np.array_equal(read(shape), expected)
    assert np.array_equal(read(shape, {33550: (1.0, 1.0, 0.0)}), colors)  # georeferenced: no transparency
    assert not np.array_equal(read(infrared, suffix="png"), colors)  # PNG has no other fourth band


def test_too_many_pixels_say_what_to_do(tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ImageFileError) as error:
        read_image(tmp_path / "x.png", 8, 1, 9)
    assert str(error.value) == (
        f"cannot read image {tmp_path}/x.png: Image size (1600 pixels) exceeds limit of 1400 pixels: reduce "
        "its size, cut it into tiles, or skip such files (max_unreadable)"
    )


def test_random_crops_are_a_function_of_seed_epoch_and_index(tmp_path, monkeypatch):
    ramp = np.arange(64 * 100, dtype=np.uint32).reshape(64, 100)
    pixels = np.stack([ramp % 100 * 2, ramp // 100 * 3, 0 * ramp], -1).astype(
        np.uint8
    )  # color tells the place
    (tmp_path / "a").mkdir()
    for i in range(8):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i}.png")

    def crops(seed: int, epoch: int, indices=range(6)) -> torch.Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = ImageFolder(str(tmp_path), image_size=16, decode_size=20)
        dataset = data.dataset("train")
        dataset.set_epoch(epoch)
        return dataset.__getitems__(list(indices))["input"]

    first = crops(0, 0)
    assert torch.equal(first, crops(0, 0)) and torch.equal(first[[4, 1]], crops(0, 0, [4, 1]))
    assert not torch.equal(first, crops(0, 1)) and not torch.equal(first, crops(1, 0))
    assert len(first.flatten(1).unique(dim=0)) > 3
    data = ImageFolder(str(tmp_path), image_size=16, decode_size=20)
    bank = data.dataset("bank").__getitems__([0, 1, 2])["input"]
    assert len(bank.flatten(1).unique(dim=0)) == 1  # the center


def loader(dataset, workers: int) -> DataLoader:
    return DataLoader(dataset, 4, collate_fn=keep_batch, num_workers=workers, persistent_workers=workers > 0)


def test_workers_that_outlive_an_epoch_see_the_new_one(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = np.array(sorted(map(os.fsencode, tmp_path.iterdir())))
    inputs = []
    for workers in (0, 2):
        dataset = FolderDataset(paths, np.full(8, -1), 16, 3, 20, random_crop=True)
        batches = loader(dataset, workers)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            inputs.append(torch.cat([batch["input"] for batch in batches]))
    for alone, with_workers in zip(inputs[:3], inputs[3:], strict=True):
        assert torch.equal(alone, with_workers)
    assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize(
    ("damage", "workers"), [("truncated", 0), ("empty", 0), ("text", 0), ("gone", 0), ("truncated", 1)]
)
def test_a_bad_file_is_named_in_one_line(tmp_path, monkeypatch, damage, workers):
    monkeypatch.setattr(
        torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1
    )  # not five seconds to end a worker
    path = tmp_path / "bad.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"hello")
    dataset = FolderDataset(np.array([os.fsencode(path)]), np.array([-1]), 16, 3, 20, random_crop=True)
    with pytest.raises(ImageFileError) as error:
        next(iter(loader(dataset, workers)))
    said = str(error.value)
    del error
    gc.collect()  # ends the worker while waiting for it is short
    reason = {"truncated": "truncated", "empty": "empty", "text": "not an image", "gone": "No such file"}[
        damage
    ]
    assert said.startswith(f"cannot read image {path}: ") and reason in said and "\n" not in said


# ---- folders: memory ---------------------------------------------------------------------------------------


def test_small_folders_are_kept_in_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")

    def open_train(**kwargs):
        return ImageFolder(str(tmp_path), image_size=16, **kwargs).dataset("train")

    kept, read = open_train(), open_train(in_memory=False)
    assert isinstance(kept, ArrayDataset) and isinstance(read, FolderDataset)
    everything = range(len(kept))
    assert torch.equal(kept.__getitems__(everything)["input"], read.__getitems__(everything)["input"])
    assert torch.equal(kept.__getitems__(everything)["label"], read.__getitems__(everything)["label"])
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 20 * 16 * 16 * 3 - 1)
    assert isinstance(open_train(), FolderDataset) and isinstance(open_train(in_memory=True), ArrayDataset)
    monkeypatch.undo()
    Image.new("RGB", (16, 17)).save(tmp_path / "a" / "0.png")
    Image.new("RGB", (16, 17)).save(tmp_path / "b" / "0.png")
    (tmp_path / "a" / "1.png").unlink()
    data = ImageFolder(str(tmp_path), image_size=16)
    kinds = {type(data.dataset(split)) for split in ("train", "val", "test")}
    assert FolderDataset in kinds  # of another size: resized when it is fetched
    (tmp_path / "b" / "5.png").write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"b/5\.png: it is empty"):
        data = ImageFolder(str(tmp_path), image_size=16, in_memory=True)
        [data.dataset(split) for split in ("train", "val", "test")]


# ---- real data ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("SSL_DATA" not in os.environ, reason="SSL_DATA is not set to a folder that holds MNIST")
def test_real_mnist():
    data = MNIST(root=os.environ["SSL_DATA"])
    train, val, test = (data.dataset(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (55_000, 5_000, 10_000)
    pixels = np.concatenate([train.images, val.images]) / 255
    assert pixels.mean() == pytest.approx(data.mean[0], abs=1e-4)
    assert pixels.std() == pytest.approx(data.std[0], abs=1e-4)
