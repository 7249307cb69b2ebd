"""Two processes on uneven data, with accumulated gradients, with sharded weights, and when one of them
fails.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from tests import distributed_runs
from tests.conftest import TORCH_2_6, build
from tests.distributed_runs import TRAIN
from tests.pair import said, start, wait

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    wait(start([[sys.executable, "-m", "tests.distributed_runs", str(folder)]] * 2, folder, ROOT), 280)
    return folder


def of_ranks(folder: Path, name: str) -> list[dict[str, Any]]:
    files = [folder / f"{name}.{rank}.pt" for rank in range(2)]
    assert all(file.is_file() for file in files), said(folder)[-3000:]
    return [torch.load(file, weights_only=True) for file in files]


def test_uneven_training_data(folder: Path) -> None:
    """101 samples, 2 x 8 a step: as many steps on each rank, or one would wait for ever; no sample twice in
    an epoch.
    """
    ranks = [rank["train"]["samples"] for rank in of_ranks(folder, "runs")]
    steps = TRAIN // 16
    assert [len(numbers) for numbers in ranks] == [2 * steps, 2 * steps]
    for epoch in range(2):
        seen = [n for rank in ranks for batch in rank[epoch * steps : (epoch + 1) * steps] for n in batch]
        assert len(seen) == len(set(seen)) == 16 * steps and set(seen) <= set(range(TRAIN))


def test_two_processes_train_as_one(folder: Path, tmp_path: Path) -> None:
    """Two ranks with 8 samples and one process with 16: the same samples in each step, the same weights at
    the end.
    """
    one, two = of_ranks(folder, "runs")
    alone = distributed_runs.train(tmp_path, 16)
    for joined, *parts in zip(
        alone["samples"], one["train"]["samples"], two["train"]["samples"], strict=True
    ):
        assert sorted(joined) == sorted(parts[0] + parts[1])
    initial, _ = distributed_runs.digits("autoencoder")
    for key, value in alone["state"].items():
        assert torch.equal(one["train"]["state"][key], two["train"]["state"][key])
        if value.is_floating_point() and "running" not in key:
            moved = (value - initial.state_dict()[key]).abs().max()
            torch.testing.assert_close(
                one["train"]["state"][key], value, rtol=0, atol=1e-6 * float(moved) + 1e-12
            )


def test_validation_numbers_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    """51 and 101 samples in batches of 4: ranks with different numbers of batches, and a last batch of
    one.
    """
    one, two = (rank["validate"] for rank in of_ranks(folder, "runs"))
    alone = distributed_runs.validate(tmp_path)
    assert {"val/loss", "val/linear_top1", "val/knn_top1", "val/rankme", "val/feature_std"} <= alone.keys()
    assert one.keys() == two.keys() == alone.keys()
    for key, value in alone.items():
        assert one[key] == two[key]
        torch.testing.assert_close(one[key], value, rtol=1e-6, atol=1e-9, msg=key, check_dtype=False)


@pytest.mark.skipif(TORCH_2_6, reason="torch 2.6 crashes on CPUs when FSDP gathers weights")
def test_fsdp_on_two_processes(folder: Path) -> None:
    """Each rank holds half of a ViT's weights; a checkpoint is one file with all of them, as DDP's is, and
    resumes exactly.
    """
    ranks = of_ranks(folder, "fsdp")
    module, _ = build("configs/digits/mae.yaml")
    whole = sum(p.numel() for p in module.parameters())
    assert all(rank["ddp"]["own"] == whole for rank in ranks)
    assert all(rank["fsdp"]["own"] < 0.6 * whole for rank in ranks)
    assert all(rank["half"]["step"] in (2, 3) for rank in ranks)
    ddp, fsdp, resumed = (read_checkpoint(folder / f"{name}.ckpt") for name in ("ddp", "fsdp", "resumed"))
    assert ddp["global_step"] == fsdp["global_step"] == resumed["global_step"] == 4
    for key, value in ddp["state_dict"].items():
        torch.testing.assert_close(fsdp["state_dict"][key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(resumed["state_dict"][key], fsdp["state_dict"][key])
    module.load_state_dict(fsdp["state_dict"])
    report = json.loads((folder / "results.json").read_text())  # of whole weights, which no rank has
    assert report["failed"] == {} and 0 < report["results"]["pretrained"]["linear_top1"] <= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_raises(rank: int, tmp_path: Path) -> None:
    """Under torchrun: both end, not with 0, soon after the error, which is shown once."""
    options = [
        "--config",
        str(ROOT / "configs/digits/simclr.yaml"),
        "--config",
        str(ROOT / "tests/quick.yaml"),
    ]
    options += [
        "--trainer.strategy",
        "ddp",
        "--trainer.devices",
        "2",
        "--data.batch_size",
        "128",
        "--run_dir",
        "run",
    ]
    command = [sys.executable, "-m", "tests.faulty", "rank-raises", str(rank), "--", *options]
    processes = start([command] * 2, tmp_path, tmp_path)
    while all(p.poll() is None for p in processes):
        time.sleep(0.1)
    first_end = time.monotonic()
    statuses = wait(processes, 60)
    assert time.monotonic() - first_end < 60
    assert all(statuses), statuses
    text = said(tmp_path)
    assert text.count(f"RuntimeError: the fault of rank {rank}") == 1 and text.count("Traceback") == 1, text
