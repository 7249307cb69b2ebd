"""Shards in whole runs: resumed inside an epoch, and the error when a shard or a worker is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn

import train
from datamodules.images.shards import ShardDataset, Shards
from runtime.messages import ROOT
from runtime.stopping import Preemption
from sslmodules import SimCLR
from tests.conftest import trainer_for

pytestmark = pytest.mark.slow

BATCHES = 5  # of 8 samples in an epoch
OPTIONS = [
    *(
        "--config",
        str(ROOT / "configs" / "digits" / "simclr.yaml"),
        "--config",
        str(ROOT / "tests" / "quick.yaml"),
    ),
    *("--data", "Shards", "--data.image_size", "16", "--data.batch_size", "8", "--data.in_memory", "false"),
    *("--model.encoder.in_channels", "3", "--run_dir", "run"),
]


class Recorder(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["input"].clone())
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen(
    root: Any, folder: Path, workers: int, steps: int, save_at: int | None = None, resume: bool = False
) -> list[Tensor]:
    """The batches of a run up to ``steps`` optimizer steps; after ``save_at`` of them it saves
    ``last.ckpt``.
    """
    data = Shards(str(root), image_size=16, batch_size=8, in_memory=False, num_workers=workers)
    options = {"max_epochs": 2, "max_steps": steps, "limit_val_batches": 0, "enable_checkpointing": True}
    last = folder / "last.ckpt"
    module, trainer = (
        Recorder(),
        trainer_for(folder, callbacks=[Preemption(last, every_n_steps=save_at)], **options),
    )
    trainer.fit(module, data, ckpt_path=last if resume else None)
    return module.seen


@pytest.mark.parametrize(("where", "workers"), [("folder", 0), ("folder", 2), ("url", 2)])
def test_a_run_resumed_inside_an_epoch_sees_the_rest(
    made: Path, server: Any, tmp_path: Path, where: str, workers: int
) -> None:
    root = made if where == "folder" else server.url
    whole = seen(root, tmp_path, workers, 2 * BATCHES)
    assert len(whole) == 2 * BATCHES
    for stop in (4, BATCHES + 1):
        begun = seen(root, tmp_path, workers, stop + 1, save_at=stop)[
            :stop
        ]  # it is killed in the step after the save
        rest = seen(root, tmp_path, workers, 2 * BATCHES, resume=True)
        assert len(rest) == 2 * BATCHES - stop
        assert all(torch.equal(one, two) for one, two in zip(whole, begun + rest, strict=True))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, root: Any, *options: str) -> int:
    monkeypatch.setenv("SSL_RUN_DIR", "")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(folder)
    return train.main([*OPTIONS, "--data.root", str(root), *options])


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("where", ["folder", "url"])
def test_a_shard_that_goes_missing_ends_the_run_with_its_name(
    folder: Path,
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    where: str,
    workers: str,
) -> None:
    def remove(self: Any, *args: Any) -> None:
        if (
            self.global_step == BATCHES
        ):  # at the end of the first epoch, which has been saved when this is noticed
            for shard in folder.glob("*.tar"):
                shard.unlink(missing_ok=True)

    monkeypatch.setattr(SimCLR, "on_train_batch_end", remove)
    status = run(
        tmp_path, monkeypatch, folder if where == "folder" else server.url, "--data.num_workers", workers
    )
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Traceback" not in error
    assert len(lines) == 1 and ".tar is missing" in lines[0]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_killed_worker_is_said(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = ShardDataset._contents

    def contents(self: ShardDataset, indices: Any) -> list[bytes]:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, indices)

    monkeypatch.setattr(ShardDataset, "_contents", contents)
    assert run(tmp_path, monkeypatch, made, "--data.num_workers", "1") == 2
    error = capfd.readouterr().err
    assert "error: a data-loading worker was killed" in error and "Traceback" not in error
