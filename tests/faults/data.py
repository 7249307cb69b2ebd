"""Faults of data: missing, too little, damaged, mislabeled; and of the workers that load it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.images.arrays import Digits
from datamodules.images.folder import ImageFolder
from datamodules.images.module import ArrayDataset
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from sslmodules import methods
from tests import faulty
from tests.conftest import CONFIGS
from tests.faults.bench import Bench, on_photos, row


@row(13, "empty data set")
def _(bench: Bench) -> None:
    (bench.folder / "photos" / "train").mkdir(parents=True)
    (bench.folder / "photos" / "train" / "readme.txt").write_text("x")
    bench.refused(
        *on_photos(bench.folder / "photos"), because="photos, which contains: train. Expected files"
    )
    bench.patch.setattr(
        Digits, "dataset", lambda self, split: ArrayDataset(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0))
    )
    bench.refused(because="Digits has 0 training samples")


@row(14, "fewer samples than a batch")
def _(bench: Bench) -> None:
    bench.refused("--data.batch_size", "2000", because="1077 training samples, fewer than one batch of 2000")
    bench.refused(*on_photos(bench.photos(n=5), "--data.val_fraction", "0.5"), because="3 or less")


@row(15, "a last batch of one under batch norm")
def _(bench: Bench) -> None:
    bench.patch.setattr(
        Digits,
        "dataset",
        lambda self, split: ArrayDataset(np.zeros((5, 8, 8, 1), np.uint8) + 9, np.arange(5)),
    )
    outcome = bench.train("--data.batch_size", "4")
    assert (
        outcome.status == 0 and read_checkpoint(bench.last)["global_step"] == 2
    )  # one step an epoch: the rest is dropped


@row(16, "batch of one for a method that compares samples")
def _(bench: Bench) -> None:
    coupled = [name for name, cls in methods().items() if cls.couples_batch]
    assert {"SimCLR", "MoCo", "BarlowTwins", "VICReg", "SwAV", "DINO", "LeJEPA"} <= {*coupled, "MoCo", "DINO"}
    for config in CONFIGS:
        name = yaml.safe_load((ROOT / config).read_text())["model"]["class_path"]
        if config.startswith("configs/digits") and name in coupled:
            because = f"{name} compares the samples of a batch, so batch_size must be at least 2, got 1"
            bench.refused("--config", str(ROOT / config), "--data.batch_size", "1", because=because)


@row(17, "batch that does not divide the queue")
def _(bench: Bench) -> None:
    options = ["--config", str(ROOT / "configs" / "digits" / "moco.yaml"), "--model.queue_size", "1000"]
    bench.refused(
        *options,
        "--data.batch_size",
        "300",
        because="queue_size must be a multiple of the global batch of 300",
    )


@row(18, "missing data")
def _(bench: Bench) -> None:
    bench.refused("--data", "MNIST", "--data.root", "nowhere", because="--data.root nowhere does not exist")
    bench.refused(
        *on_photos(bench.folder / "nowhere"), because="nowhere is not a folder. Expected image files in"
    )


@row(19, "folders that are not classes")
def _(bench: Bench) -> None:
    folder = bench.photos(classes=2)
    (folder / "class9").mkdir()
    bench.refused(*on_photos(folder), because="without images in")
    (folder / "class9").rmdir()
    shutil.copy(folder / "class0" / "00.jpg", folder / "stray.jpg")
    bench.refused(
        *on_photos(folder),
        because="contains both images (stray.jpg) and folders with images (class0, class1)",
    )


def damaged(bench: Bench, contents: list[bytes]) -> None:
    """By default the first damaged file ends the run; when asked for they are skipped, counted and
    limited.
    """
    folder = bench.photos(n=40)
    for i, content in enumerate(contents):
        (folder / f"{i}7.jpg").write_bytes(content)
    once = on_photos(folder, "--data.num_workers", "1")
    outcome = bench.train(*once)
    assert outcome.status == 2 and "error: cannot read image" in outcome.error and "7.jpg: " in outcome.error
    shutil.rmtree(bench.folder / "run")
    outcome = bench.train(*once, "--data.max_unreadable", "5")
    assert outcome.status == 0, outcome.text
    passed_over = {
        line.partition("cannot read image ")[2].partition(":")[0]
        for line in outcome.text.splitlines()
        if "skipped" in line
    }
    assert passed_over == {str(folder / f"{i}7.jpg") for i in range(len(contents))}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(bench.folder / "run"))
    events.Reload()
    assert events.Scalars("train/unreadable_files")[-1].value == len(contents)
    shutil.rmtree(bench.folder / "run")
    outcome = bench.train(*once, "--data.max_unreadable", "1")
    assert outcome.status == (2 if len(contents) > 1 else 0)
    assert len(contents) == 1 or "unreadable file number 2, max_unreadable is 1" in outcome.error


@row(20, "truncated image")
def _(bench: Bench) -> None:
    whole = (bench.photos("other", n=1) / "00.jpg").read_bytes()
    damaged(bench, [whole[: len(whole) // 2]])


@row(21, "empty file or text instead of an image")
def _(bench: Bench) -> None:
    damaged(bench, [b"", b"this is no picture"])


@row(22, "gray, transparent, 16-bit and 1x1 images")
def _(bench: Bench) -> None:
    folder = bench.folder / "photos"
    folder.mkdir()
    wide = np.full((16, 16), 32896, np.uint16)  # 128 / 255 of 65535
    pictures = [
        Image.new("L", (16, 16), 128),
        Image.fromarray(wide),
        Image.new("RGBA", (16, 16), (128, 128, 128, 255)),
    ]
    pictures += [
        Image.new("RGB", (1, 1), (128, 128, 128)),
        Image.new("P", (16, 16)),
        Image.new("RGBA", (16, 16), (0, 0, 0, 0)),
    ]
    for i, picture in enumerate(pictures * 3):
        picture.save(folder / f"{i:02d}.png")
    data = ImageFolder(str(folder), image_size=16, labeled=False)
    data.setup("fit")
    values = {}
    for split in ("train", "val"):
        images = data.dataset(split).__getitems__(range(len(data.files(split))))["input"]
        values |= {
            Path(f).name: image.unique().tolist() for f, image in zip(data.files(split), images, strict=True)
        }
    expected = [[128], [128], [128], [128], [0], [255]] * 3
    assert [values[f"{i:02d}.png"] for i in range(18)] == expected
    assert bench.train(*on_photos(folder)).status == 0


@row(23, "labels out of range, classes that differ between splits")
def _(bench: Bench) -> None:
    bench.photos("photos/train", classes=3)
    bench.photos("photos/val", classes=2)
    bench.refused(*on_photos(bench.folder / "photos"), because="only in val: none; only in train: class2")
    labels = np.arange(300) % 11
    splits = {
        split: ArrayDataset(np.zeros((300, 8, 8, 1), np.uint8), labels)
        for split in ("train", "bank", "val", "test")
    }
    bench.patch.setattr(Digits, "_load", lambda self, split: splits)
    bench.refused(because="has the label 10, expected 0 to 9")


@row(24, "error in a data-loading worker")
def _(bench: Bench) -> None:
    def happens() -> None:
        raise ZeroDivisionError("in my data set")

    bench.patch.setattr(ArrayDataset, "__getitems__", ArrayDataset.__getitems__)
    faulty.worker(happens)
    with pytest.raises(ZeroDivisionError, match=r"(?s)in my data set.*samples \d+, \d+, .*256 in all"):
        bench.train("--data.num_workers", "1")


@row(25, "data-loading worker killed")
def _(bench: Bench) -> None:
    outcome = bench.process("worker-killed", "--data.num_workers", "1")
    assert outcome.status == 2 and "error: a data-loading worker was killed" in outcome.error
    assert (
        "/dev/shm" in outcome.error
        and "--data.num_workers" in outcome.error
        and "Traceback" not in outcome.error
    )
