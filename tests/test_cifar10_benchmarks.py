"""The benchmarks on CIFAR-10: their data, checkpoints, lines of results and tables."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks import cifar10, cifar10_gate
from benchmarks.cifar10 import Meter
from benchmarks.parts.cifar10_images import find_data
from benchmarks.parts.cifar10_table import table
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from tests.test_benchmarks import refused, run, write_images


def test_a_checkpoint_follows_half_a_minute_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of EMP-SSL takes that long, one of SimCLR a second."""
    saver = ModelCheckpoint(filename="last")
    for seconds, saved in ((40.0, list(range(1, 101))), (1.0, [31, 62, 93, 100])):
        meter, clock, found = Meter(deadline=float("inf")), itertools.count(1.0, seconds), []
        monkeypatch.setattr(time, "monotonic", lambda clock=clock: next(clock))
        for epoch in range(100):
            trainer: Any = SimpleNamespace(current_epoch=epoch, max_epochs=100, checkpoint_callbacks=[saver])
            meter.mark = time.monotonic()
            module: Any = SimpleNamespace(device=torch.device("cpu"))
            meter.on_train_epoch_end(trainer, module)
            found += [epoch + 1] if saver._every_n_epochs == 1 else []
        assert found == saved


def test_a_variant_beside_other_work_counts_for_accuracy_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    found = {"knn10": 70.0, "training_minutes": 2.0, "images_per_s": 9.0, "device": "a GPU"}
    monkeypatch.setattr(cifar10_gate, "measure", lambda *_: found)
    given = (
        f"--data {tmp_path}/images --runs {tmp_path} --results {tmp_path}/r --variants ours --seeds".split()
    )
    for seed, more in (("0", []), ("1", ["--disturbed", "tests"])):
        monkeypatch.setattr(sys, "argv", ["cifar10_gate.py", *given, seed, *more])
        assert cifar10_gate.main() == 0
    lines = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert [line.get("disturbed") for line in lines] == [None, "tests"]
    assert [line["command"].split()[-1] for line in lines] == ["0", "tests"]
    row = cifar10_gate.table([json.dumps(lines[1])]).splitlines()[-1].split(" | ")
    assert (row[7], row[-3:-1]) == ("70.0", ["", ""])


def test_what_fails_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(failing: str) -> Callable[..., dict[str, Any]]:
        def found(*given: Any) -> dict[str, Any]:
            if failing in given:
                raise RuntimeError("out of memory")
            return {"knn10": 70.0}

        return found

    write_images(tmp_path / "images")
    monkeypatch.setattr(cifar10_gate, "measure", measured("bare"))
    monkeypatch.setattr(cifar10, "run", measured("byol"))
    for script, asked in ((cifar10_gate, "--variants bare ours"), (cifar10, "--methods byol moco")):
        given = f"x --data {tmp_path}/images --runs {tmp_path} --results {tmp_path}/r --epochs 1 {asked}"
        monkeypatch.setattr(sys, "argv", given.split())
        assert script.main() == 1
        assert capsys.readouterr().err.endswith("RuntimeError: out of memory\n")
        assert json.loads((tmp_path / "r").read_text())["knn10"] == 70.0
        (tmp_path / "r").unlink()


def test_a_column_has_the_accuracies_of_the_lines_that_have_them() -> None:
    line = {"data": "CIFAR-10", "method": "simclr", "batch": 512, "epochs": 200, "seed": 0, "device": "a GPU"}
    line |= {"precision": "32-true", "compile": False, "knn200": 0.7, "knn20": 0.7, "linear": 0.8}
    line |= {"fewshot5": 0.5, "images_per_s": 9.0, "seconds_per_epoch": 1.0, "training_minutes": 3.0}
    line |= {"views_share": 0.1, "data_wait_share": 0.1, "peak_memory_gib": None}
    newer = {**line, "epochs": 500, "knn10": 0.9, "lr": 0.06}
    assert "kNN 10" not in table([json.dumps(line)])
    head, _, *rows = [row.split(" | ") for row in table(map(json.dumps, (line, newer))).splitlines()]
    assert [(row[1], row[head.index("kNN 10")]) for row in rows] == [
        ("simclr", ""),
        ("simclr, lr 0.06", "90.0"),
    ]


@pytest.mark.slow
def test_slices_of_cifar10_add_up_to_a_run(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    command = f"--data {tmp_path}/images --runs {tmp_path}/runs --results {tmp_path}/r --device cpu"
    command += " --batch 16 --epochs 3 --minutes 0.01"
    slices = [run(tmp_path, str(ROOT / "benchmarks" / "cifar10.py"), *command.split()) for _ in range(3)]
    assert [done.returncode for done in slices] == [75, 75, 0], slices
    stops = [re.findall("stopped after epoch . of 3", done.stdout) for done in slices]
    assert stops == [["stopped after epoch 1 of 3"], ["stopped after epoch 2 of 3"], []]
    checkpoint = next((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))
    assert read_checkpoint(checkpoint)["global_step"] == 9
    assert json.loads((tmp_path / "r").read_text())["epochs"] == 3


@pytest.mark.parametrize("suffix", ("png", "webp"))
def test_files_of_other_images_are_not_called_cifar10(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, suffix)
    message = refused(capsys, lambda: find_data(tmp_path, tmp_path))
    start = f"error: --data {tmp_path}: .{suffix} files, but not CIFAR-10: ["
    end = "instead of (0.49139968, 0.48215841, 0.44653091)\n"
    assert message.startswith(start) and message.endswith(end), message


def test_the_archive_of_cifar10_is_cifar10(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    root = tmp_path / "runs" / "cifar-10-python"
    (tmp_path / "runs").mkdir()
    for _ in range(2):
        assert find_data(archive, tmp_path / "runs") == ("CIFAR-10", ["--data.root", str(root)])
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]


def test_an_archive_that_is_not_whole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images")
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "images", "images")
    runs = tmp_path / "runs"
    runs.mkdir()
    assert find_data(archive, runs)[0] == "CIFAR-10-JPEG"
    shutil.rmtree(runs / "images")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    message = refused(capsys, lambda: find_data(archive, runs))
    start = f"error: --data {archive}: the archive is damaged or not whole ("
    assert message.startswith(start) and message.count("\n") == 1, message
    assert [path for path in runs.iterdir() if any(path.iterdir())] == []
