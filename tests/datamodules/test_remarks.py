"""Remarks on splits before training, and runs refused because their files have changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import base, remarks
from datamodules.errors import ConfigError
from datamodules.images.arrays import Digits
from datamodules.images.folder import ImageFolder
from datamodules.remarks import copies, missing_classes
from tests.datamodules.test_images import write_images


def files(root: Path, **contents: list[bytes]) -> dict[str, list[str]]:
    """By split, files with these contents."""
    made: dict[str, list[str]] = {}
    for split, several in contents.items():
        for i, content in enumerate(several):
            (root / f"{split}{i}").write_bytes(content)
            made.setdefault(split, []).append(str(root / f"{split}{i}"))
    return made


def test_copies_across_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = bytes(range(256)) * 16
    given = files(
        tmp_path,
        train=[b"one", b"two", head + b"a", head + b"b"],
        val=[b"two", b"new", head + b"c"],  # as long as another, the same beginning, another end
        test=[b"one", head + b"b", b"new"],
    )
    given["test"].append(given["val"][0])  # the same path in two splits is no copy
    assert copies(given) == (
        f"1 files of val and 3 files of test are copies of files in another split, such as {tmp_path}/val0 "
        f"of {tmp_path}/train1 (train): results on them are too good"
    )
    os.remove(given["test"][0])  # is named when it is read
    assert "2 files of test" in copies(given)
    assert copies({"train": given["train"], "val": given["val"][2:]}) == ""
    monkeypatch.setattr(remarks, "MOST_BYTES", 20)
    assert copies(given).startswith("at least ")
    monkeypatch.setattr(remarks, "MOST_FILES", 3)
    assert copies(given) == "did not search for copies between splits: 10 files, more than 3"


def test_classes_without_a_sample() -> None:
    labels = {"train": np.array([0, 1, 2, -1]), "val": np.array([0, 0]), "test": np.array([2, 1])}
    assert missing_classes(labels, ["cat", "dog", "emu"]) == (
        "2 of 3 classes have no sample in val (dog, emu); 1 of 3 classes have no sample in test (cat)"
    )
    assert missing_classes({"val": np.array([0, 1])}, ["cat", "dog"]) == ""
    assert missing_classes({"val": np.full(3, -1)}, []) == ""


def fit(data: ImageFolder | Digits, **trainer: int) -> None:
    data.trainer = SimpleNamespace(**{"world_size": 1, "global_rank": 0, **trainer})  # type: ignore[assignment]
    data.setup("fit")


def test_remarks_come_before_training_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(base, "rank_zero_info", said.append)
    write_images(tmp_path / "a", 30)
    write_images(tmp_path / "b", 2, start=40)
    data = ImageFolder(str(tmp_path), image_size=16, batch_size=4)
    fit(data)
    assert said == [
        f"{tmp_path}: 1 of 2 classes have no sample in val (b); 1 of 2 classes have no sample in test (b)",
    ]
    shutil.copy(data.files("train")[0], data.files("test")[0])
    fit(data)
    assert len(said) == 3 and said[2].startswith(
        f"{tmp_path}: 1 files of test are copies of files in another "
    )
    fit(data, global_rank=1, world_size=2)
    assert len(said) == 3
    assert data.class_counts() == {"a": 21, "b": 2} and data.class_counts("test") == {"a": 6, "b": 0}
    assert sum(Digits().class_counts().values()) == 1077


def test_fewer_validation_samples_than_processes(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 20)
    write_images(tmp_path / "b", 20, start=40)
    data = ImageFolder(str(tmp_path), image_size=16, batch_size=1)
    fit(data, world_size=3)
    with pytest.raises(ConfigError) as error:
        fit(data, world_size=4)
    assert str(error.value) == (
        "ImageFolder has 3 samples in the split val, fewer than the 4 processes: give --trainer.devices 3 or "
        "less, or more data"
    )


@pytest.mark.parametrize("change", ["more", "fewer", "larger", "renamed"])
def test_a_run_does_not_go_on_with_other_files(tmp_path: Path, change: str) -> None:
    for label in "ab":
        write_images(tmp_path / label, 10)
    first = ImageFolder(str(tmp_path), image_size=16, batch_size=4)
    state = first.state_dict()
    ImageFolder(str(tmp_path), image_size=16, batch_size=4).load_state_dict(state)
    moved = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-moved"))
    ImageFolder(str(moved), image_size=16, batch_size=4).load_state_dict(state)
    count = 20
    if change == "more":
        shutil.copy(tmp_path / "a" / "000.png", tmp_path / "b" / "more.png")
        count = 21
    elif change == "fewer":
        (tmp_path / "a" / "000.png").unlink()
        count = 19
    elif change == "larger":
        with (tmp_path / "a" / "000.png").open("ab") as file:
            file.write(b"more")
    else:
        (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "999.png")
    with pytest.raises(ConfigError) as error:
        ImageFolder(str(tmp_path), image_size=16, batch_size=4).load_state_dict(state)
    assert str(error.value) == (
        f"the files of {tmp_path} have changed since the checkpoint was written (20 then, {count} now, or "
        "other names or sizes): splits and the order of samples would change within the run. Restore the "
        "files, or start a new run"
    )
    del state["files"]  # as earlier versions wrote it
    ImageFolder(str(tmp_path), image_size=16, batch_size=4).load_state_dict(state)
