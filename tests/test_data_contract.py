"""What every data set must satisfy, with synthetic samples and, where it reads files, with small ones made
here.

A new data set in a file is tested without an edit. One that reads files gets a line in ``FILES``.
"""

from __future__ import annotations

import inspect
import io
import re
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.pack import make_shards
from datamodules.splits import Split
from datamodules.transforms.base import BatchTransform
from datamodules.transforms.noise import GaussianNoise
from datamodules.transforms.recipes import SimCLRViews
from datamodules.transforms.tokens import MaskedTokens
from runtime.discovery import below, find_class
from runtime.optional import offers
from runtime.options import options_of
from tests.conftest import trainer_for

SPLITS = get_args(Split)
#: Data sets that need neither a file nor a download.
EMBEDDED = ("Digits", "TextFiles", "Tones")


def images(folder: Path) -> dict[str, Any]:
    """60 gray pictures of two classes, each of one brightness."""
    for i in range(60):
        path = folder / "images" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 4 * i).save(path)
    return {"root": str(folder / "images"), "image_size": 8, "channels": 1, "mean": [0.5], "std": [0.5]}


def shards(folder: Path) -> dict[str, Any]:
    options = images(folder)
    make_shards(folder / "images", folder / "shards", per_shard=16)
    return {**options, "root": str(folder / "shards")}


def sounds(folder: Path) -> dict[str, Any]:
    """60 clips of two classes, each of one amplitude."""
    for i in range(60):
        path = folder / "sounds" / "ab"[i % 2] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.tile([100 * (i + 1), -100 * (i + 1)], 2000).astype("<i2").tobytes())
    return {"root": str(folder / "sounds"), "sample_rate": 8000, "seconds": 0.5}


def genome(folder: Path) -> dict[str, Any]:
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 8000))
    (folder / "genome.fa").write_text(f">one\n{letters}\n")
    (folder / "genes.gff").write_text("##gff-version 3\none\tx\tCDS\t1\t4000\t.\t+\t0\tID=1\n")
    return {"root": str(folder / "genome.fa"), "gff": str(folder / "genes.gff"), "length": 20}


def table(folder: Path) -> dict[str, Any]:
    """200 documents of two classes."""
    rng = np.random.default_rng(0)
    rows = [f"{i % 2},{' '.join(map(str, rng.integers(0, 99, 20)))}\n" for i in range(200)]
    (folder / "table.csv").write_text("label,text\n" + "".join(rows))
    options = {"columns": ["text"], "label_column": "label", "layout": "documents", "length": 64}
    return {"root": str(folder / "table.csv"), **options}


FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ImageFolder": images,
    "Shards": shards,
    "WavFolder": sounds,
    "Fasta": genome,
    "TextFiles": table,
}


def required(cls: type) -> list[str]:
    return [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.kind < 4]


NAMES = below(["SSLDataModule"])
VARIANTS = [
    *((name, "synthetic") for name in NAMES),
    *((name, "embedded") for name in EMBEDDED),
    *((name, "files") for name in FILES),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=" ".join)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Builds the data set anew, as a run would before its first batch."""
    name, kind = request.param
    cls: Any = find_class(name)
    options: dict[str, Any] = {"batch_size": 16}
    if kind == "synthetic":  # no file is needed, whatever is named
        options |= {"synthetic": True, **{argument: "nowhere" for argument in required(cls)}}
        if "image_size" in options_of(cls):
            options["image_size"] = 32
    elif kind == "files":
        options |= FILES[name](tmp_path_factory.mktemp(name))

    def made(**more: Any) -> SSLDataModule:
        data = cls(**{**options, **more})
        data.prepare_data()
        data.setup("fit")
        return data

    return made


def everything(data: Any, split: str, most: int = 2000) -> dict[str, torch.Tensor]:
    dataset = data.dataset(split)
    return dataset.__getitems__(list(range(min(len(dataset), most))))


def contents(data: Any, split: str) -> list[bytes]:
    return [sample.numpy().tobytes() for sample in everything(data, split)["input"]]


def test_splits_are_disjoint(make: Callable[..., Any]) -> None:
    """Only where nothing is measured, or there is too little for three parts, may test be val."""
    data = make()
    train, bank, val, test = (set(contents(data, split)) for split in SPLITS)
    assert train and bank and val and test
    if data.num_classes is not None or val != test:
        assert not val & test
    assert not (train | bank) & (val | test)


def test_labels(make: Callable[..., Any]) -> None:
    data = make()
    for split in SPLITS:
        batch = everything(data, split)
        labels = batch["label"]
        assert labels.dtype == torch.int64 and labels.shape == (len(batch["input"]),)
        assert labels.min() >= -1 and labels.max() < (data.num_classes or 0)
    if data.num_classes is not None:
        assert len(data.class_names) == data.num_classes
        for split in ("bank", "val", "test"):
            assert len(everything(data, split)["label"].unique()) > 1, split


def test_shapes(make: Callable[..., Any]) -> None:
    """One shape in all splits, float32 or (tokens) int64; rows come in the order that was asked for."""
    data = make()
    shapes = set()
    for split in SPLITS:
        dataset = data.dataset(split)
        three, first = dataset.__getitems__([2, 0, 1]), dataset.__getitems__([0])
        assert torch.equal(three["input"][1:2], first["input"])
        assert torch.equal(three["label"][1:2], first["label"])
        x = data.transform(three, None)["input"]
        assert x.dtype in (torch.float32, torch.int64) and len(x) == 3 and x.isfinite().all()
        shapes.add((x.dtype, x.shape))
    assert len(shapes) == 1


def test_two_instances_hold_the_same_samples(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the global random state; and val, test and bank whatever the run's seed."""
    one = make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        np.random.seed(1)
        two = make()
        for split in SPLITS:
            assert contents(one, split) == contents(two, split), split
            assert torch.equal(everything(one, split)["label"], everything(two, split)["label"])
        monkeypatch.setenv("PL_GLOBAL_SEED", "17")
        other = make()
        for split in ("bank", "val", "test"):
            assert contents(one, split) == contents(other, split), split
        assert one.hparams == other.hparams


def test_loaders_of_a_trainer_and_of_a_loop(make: Callable[..., Any], tmp_path: Path) -> None:
    data = make()
    alone = [batch["label"].tolist() for batch in data.train_dataloader()]
    data.trainer = trainer_for(tmp_path)
    assert alone == [batch["label"].tolist() for batch in data.train_dataloader()]
    assert all(len(labels) == 16 for labels in alone) and len(alone) == len(data.dataset("train")) // 16
    val = data.val_dataloader()[0]
    seen = torch.cat([batch["input"] for batch in val])
    assert sorted(x.numpy().tobytes() for x in seen) == sorted(contents(data, "val"))


# ---- files -------------------------------------------------------------------------------------------------


def level_of_picture(path: str) -> int:
    shard, _, member = path.partition(".tar/")
    if not member:
        return np.asarray(Image.open(path)).ravel()[0]
    with tarfile.open(f"{shard}.tar") as tar:
        content = tar.extractfile(member)
        assert content is not None
        return np.asarray(Image.open(io.BytesIO(content.read()))).ravel()[0]


def level_of_sound(path: str) -> int:
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(1), "<i2")[0]


LEVELS = {"ImageFolder": level_of_picture, "Shards": level_of_picture, "WavFolder": level_of_sound}


@pytest.mark.parametrize("name", [name for name in NAMES if offers(find_class(name), "files")])
def test_files_are_those_of_the_samples(name: str, tmp_path: Path) -> None:
    """One for each sample, in the order of the data set: features are written beside them."""
    data: Any = find_class(name)(**FILES[name](tmp_path))  # type: ignore[misc]
    data.prepare_data()
    for split in SPLITS:
        batch, files = everything(data, split), data.files(split)
        assert len(files) == len(data.dataset(split)) == len(set(files))
        assert [LEVELS[name](file) for file in files] == [int(x.ravel()[0]) for x in batch["input"]], split


@pytest.mark.parametrize(
    ("name", "views", "message"),
    [
        (
            "TextFiles",
            SimCLRViews(16),
            "SimCLRViews takes images or spectrograms (B, C, H, W), but the data has tokens (B, T): set "
            "data.views to null, or to a transform for this data",
        ),
        (
            "TextFiles",
            GaussianNoise(0.1),
            "GaussianNoise takes images or spectrograms (B, C, H, W), but the data has tokens (B, T): set "
            "data.views to null, or to a transform for this data",
        ),
        (
            "Digits",
            MaskedTokens(),
            "MaskedTokens takes tokens (B, T), but the data has images or spectrograms (B, C, H, W): set "
            "data.views to null, or to a transform for this data",
        ),
        (
            "Tones",
            SimCLRViews(16),
            "the spectrograms have 40 bands, but those of data.views have 16: give views that keep the size, "
            "or null",
        ),
    ],
)
def test_views_of_another_kind_of_data_are_refused(name: str, views: BatchTransform, message: str) -> None:
    data = find_class(name)(views=views)
    batch = data.dataset("train").__getitems__([0, 1])
    with pytest.raises(ConfigError, match=re.escape(message) + "$"):
        data.transform(batch, torch.Generator().manual_seed(0))
