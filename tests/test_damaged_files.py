"""Data files that are damaged end a run in one line that names the file."""

from __future__ import annotations

import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train
from runtime.messages import ROOT
from sslmodules import SSLModule
from tests.errors import DIGITS, QUICK, Capture, Patch, error_of

pytestmark = pytest.mark.usefixtures("clean_environment")


def images(folder: Path, patch: Patch) -> list[str]:
    rng = np.random.default_rng(0)
    for i in range(40):  # of two sizes: decoded as they are needed
        pixels = rng.integers(0, 255, (16 + i % 2, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return [
        *DIGITS,
        *["--data", "ImageFolder", "--data.image_size", "16", "--model.encoder.in_channels", "3"],
    ]


def shards(folder: Path, patch: Patch) -> list[str]:
    from datamodules.images.pack import make_shards

    photos = folder / "photos"
    photos.mkdir()
    options = images(photos, patch)
    make_shards(photos, folder / "shards", 10)
    return [*options, "--data", "Shards"]


def sounds(folder: Path, patch: Patch) -> list[str]:
    patch.setattr("datamodules.audio.wav_folder.MEMORY_LIMIT", 0)  # read as they are needed
    rng = np.random.default_rng(0)
    for i in range(40):
        with wave.open(str(folder / f"{i % 2}_a_{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(rng.integers(-9999, 9999, 8000).astype("<i2").tobytes())
    small = ["--data.split_field", "null", "--data.test_values", "null", "--model.encoder.width", "16"]
    return ["--config", str(ROOT / "configs" / "fsdd" / "apc.yaml"), *QUICK, *small]


MODALITIES = [
    (images, r"cannot read image .*\d\d\.png: it is empty"),
    (shards, r"shard .*\.tar is truncated: .*"),
    (sounds, r"cannot read audio file .*_a_\d+\.wav: .*"),
]


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(("make", "line"), MODALITIES, ids=["image", "shard", "sound"])
def test_a_file_that_is_damaged_while_the_run_reads_it(
    make: Any, line: str, workers: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "data").mkdir()
    options, steps = make(tmp_path / "data", monkeypatch), []
    root = tmp_path / "data" / ("shards" if make is shards else "")

    def damage(module: SSLModule, *args: Any) -> None:
        steps.append(module.global_step)
        if module.global_step == 1:
            for path in (path for path in root.rglob("*") if path.suffix in (".png", ".tar", ".wav")):
                path.write_bytes(b"")

    monkeypatch.setattr(SSLModule, "on_train_batch_end", damage, raising=False)
    options += ["--data.root", str(root), "--data.batch_size", "4", "--data.num_workers", workers]
    assert train.main([*options, "--run_dir", "run"]) == 2
    assert len(steps) >= 1
    (shown,) = error_of(capsys)
    assert re.fullmatch(f"error: {line}", shown)


def text(folder: Path) -> list[str]:
    (folder / "a.txt").write_bytes(b"caf\xe9 " * 1000)
    return ["--config", str(ROOT / "configs" / "shakespeare" / "gpt.yaml")]


def sequences(folder: Path) -> list[str]:
    (folder / "a.fa").write_text(">one\nACGT\n>two\nMKVL\n")
    return ["--config", str(ROOT / "configs" / "dna" / "gpt.yaml"), "--data.synthetic", "false"]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            text,
            r".*a\.txt is not UTF-8 \(byte 0xe9: .*\): convert it from its encoding, for example "
            r"with iconv -f latin1 -t utf-8",
        ),
        (sequences, r".*a\.fa.* record two, has 'L' at position 4, which is not a letter of DNA .*"),
    ],
    ids=["text", "sequence"],
)
def test_a_damaged_file_that_is_read_at_the_start(
    make: Any, line: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "data").mkdir()
    assert train.main([*make(tmp_path / "data"), *QUICK, "--data.root", str(tmp_path / "data")]) == 2
    (shown,) = error_of(capsys)
    assert re.fullmatch(f"error: {line}", shown)
