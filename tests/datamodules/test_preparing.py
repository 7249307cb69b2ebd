"""One process prepares a shared folder, the others wait and find it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import CIFAR10, TextFiles
from datamodules.images import arrays
from datamodules.preparing import LOCK, alone_in
from datamodules.text import files


def together(*tasks: object) -> None:
    threads = [threading.Thread(target=task) for task in tasks]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def test_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside: list[int] = []
    most: list[int] = []

    def prepare() -> None:
        with alone_in(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    together(prepare, prepare, prepare)
    assert most == [1, 1, 1]
    waiting = f"waiting for another process to prepare {tmp_path}\n"
    assert capsys.readouterr().out in (waiting, 2 * waiting)


def test_nobody_waits_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()  # in the way
    with alone_in(tmp_path), alone_in(tmp_path):
        pass


def test_two_ranks_tokenize_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("a line of text\n" * 400)
    made: list[str] = []
    tokenize = files.TextFiles._tokenize

    def counting(self: TextFiles, number: int, split: files.Split, path: Path | None) -> files.Tokens:
        made.append(split)
        time.sleep(0.02)
        return tokenize(self, number, split, path)

    monkeypatch.setattr(files.TextFiles, "_tokenize", counting)
    ranks = [TextFiles(root=str(tmp_path), cache=str(tmp_path / "cache"), length=8) for _ in range(2)]
    together(*(rank.prepare_data for rank in ranks))
    assert made == ["train", "val", "test"]
    one, two = (rank.dataset("train").__getitems__([0, 3])["input"] for rank in ranks)  # type: ignore[attr-defined]
    assert torch.equal(one, two)


def test_two_ranks_do_not_download_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    most: list[int] = []

    def download(self: CIFAR10, root: Path, part: str, download: bool) -> tuple[np.ndarray, list[int]]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.03)
        inside.pop()
        return np.zeros((4, 32, 32, 3), dtype=np.uint8), [0, 1, 2, 3]

    monkeypatch.setattr(arrays.CIFAR10, "_read", download)
    ranks = [CIFAR10(root=str(tmp_path / "data"), download=True) for _ in range(2)]
    together(*(rank.prepare_data for rank in ranks))
    assert most == [1, 1, 1, 1]
