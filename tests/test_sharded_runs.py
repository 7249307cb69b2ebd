"""Two processes that share the weights (FSDP) train, validate and draw as two that have all of them (DDP)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from tests.pair import said, start, wait
from tests.sharded_runs import PARTS, WHOLE, file_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    wait(start([[sys.executable, "-m", "tests.sharded_runs", str(folder)]] * 2, folder, ROOT), 600)
    return folder


def logged(folder: Path, config: str, strategy: str) -> Any:
    files = [file_of(folder, config, strategy, f"{rank}.pt") for rank in (0, 1)]
    assert all(file.is_file() for file in files), said(folder)[-3000:]
    return torch.load(files[0], weights_only=True)


CASES = [*((config, "whole") for config in WHOLE), *((config, "parts") for config in PARTS)]
CASES += [(PARTS[0], "offload"), (PARTS[0], "hybrid")]


@pytest.mark.parametrize(("config", "strategy"), CASES)
def test_sharded_weights_train_as_whole_ones(config: str, strategy: str, folder: Path) -> None:
    """The same weights, and the same numbers of probes, collapse metrics and gradients; the same pictures."""
    expected, found = (logged(folder, config, name) for name in ("ddp", strategy))
    assert found["media"] == expected["media"] and found["scalars"].keys() == expected["scalars"].keys()
    for name, values in expected["scalars"].items():
        if not name.startswith("time/"):
            rounding = 0.01 if "top1" in name else 1e-6  # 2 of the 256 samples
            assert found["scalars"][name] == pytest.approx(values, rel=1e-5, abs=rounding), name
    weights, whole = (
        read_checkpoint(file_of(folder, config, name, "ckpt"))["state_dict"] for name in (strategy, "ddp")
    )
    assert weights.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_callbacks_compute_in_the_precision_of_the_sharded_weights(folder: Path) -> None:
    expected, found = (logged(folder, "configs/digits/simclr.yaml", name) for name in ("ddp", "half"))
    assert found["media"] == expected["media"]
    assert found["scalars"]["val/loss"] == pytest.approx(expected["scalars"]["val/loss"], rel=0.05)


@pytest.mark.parametrize("config", PARTS)
def test_a_rank_with_a_batch_more_does_not_wait_for_the_other(config: str, folder: Path) -> None:
    """Each forward pass of a part needs all ranks."""
    scalars = logged(folder, config, "uneven")["scalars"]
    assert len(scalars["val/loss"]) == len(scalars["val/linear_top1"]) == 2
