"""Faults of a running process: signals, kills, full disks, non-finite values."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import ConfigError
from runtime.callbacks import FiniteLoss
from runtime.checkpoints import read_checkpoint
from sslmodules import SimCLR
from tests.conftest import build, trainer_for
from tests.faults.bench import STEPS, VALIDATES, Bench, row


@row(1, "SIGTERM in training")
def _(bench: Bench) -> None:
    outcome = bench.process("signal SIGTERM train")
    assert outcome.status == 143 and "resumes it" in outcome.text and "Traceback" not in outcome.text
    bench.goes_on(6)


@row(2, "SIGTERM in the first batch and in validation")
def _(bench: Bench) -> None:
    outcome = bench.process("signal SIGTERM first-batch")
    assert outcome.status == 143 and "resumes it" in outcome.text
    bench.goes_on(1)
    shutil.rmtree(bench.folder / "run")
    outcome = bench.process("signal SIGTERM validation", *VALIDATES)
    assert outcome.status == 143 and "resumes it" in outcome.text
    bench.goes_on(read_checkpoint(bench.last)["global_step"], *VALIDATES)


@row(3, "Ctrl-C")
def _(bench: Bench) -> None:
    outcome = bench.process("signal SIGINT train")
    assert outcome.status == 130 and "resumes it" in outcome.text and "Traceback" not in outcome.text
    bench.goes_on(6)


@row(4, "SIGUSR1 without SLURM")
def _(bench: Bench) -> None:
    for name in ("SIGUSR1", "SIGUSR2"):
        outcome = bench.process(f"signal {name} train")
        assert (
            outcome.status == 143 and "last.ckpt at step 6" in outcome.text and "resumes it" in outcome.text
        ), outcome.text
        bench.goes_on(6)
        shutil.rmtree(bench.folder / "run")


@row(5, "SIGUSR1 with SLURM")
def _(bench: Bench) -> None:
    scontrol = bench.folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {bench.folder}/requeued\n')
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "123",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1",
        "SLURM_PROCID": "0",
    }
    slurm |= {
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "ssl",
        "SLURM_STEP_ID": "0",
        "SLURM_NODELIST": "localhost",
    }
    outcome = bench.process("signal SIGUSR1 train", **slurm, PATH=f"{scontrol.parent}:{os.environ['PATH']}")
    assert outcome.status == 143 and (bench.folder / "requeued").read_text().split() == ["requeue", "123"]
    bench.goes_on(6)


@row(6, "kill -9 while a checkpoint is saved")
def _(bench: Bench) -> None:
    for moment, step in (
        ("half-written", 4),
        ("before-rename", 4),
        ("between-renames", 4),
        ("after-rename", 8),
    ):
        shutil.rmtree(bench.folder / "run", ignore_errors=True)
        assert bench.process(f"kill-save {moment}").status == -9
        assert read_checkpoint(bench.last)["global_step"] == step, moment
        assert bench.train().status == 0 and read_checkpoint(bench.last)["global_step"] == STEPS


@row(7, "kill -9 while a checkpoint is saved, TMPDIR on another file system")
def _(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != os.stat(bench.folder).st_dev
        assert bench.process("kill-save half-written", TMPDIR=elsewhere).status == -9
        left = [path for path in Path(elsewhere).rglob("*") if path.is_file() and path.suffix != ".py"]
        assert left == [], "something was left in TMPDIR"  # torch 2.6 leaves code
    assert read_checkpoint(bench.last)["global_step"] == 4
    assert bench.train().status == 0 and read_checkpoint(bench.last)["global_step"] == STEPS


@row(8, "disk full while a checkpoint is saved")
def _(bench: Bench) -> None:
    outcome = bench.process("disk-full")
    assert outcome.status == 2 and "last.ckpt" in outcome.error.strip().splitlines()[-1]
    bench.goes_on(4)


@row(9, "output folder that cannot be written")
def _(bench: Bench) -> None:
    (bench.folder / "file").write_text("mine")
    bench.refused(because="file/run cannot be created", run="file/run")
    bench.refused(because="/proc/run cannot be created", run="/proc/run")


@row(10, "NaN loss")
def _(bench: Bench) -> None:
    outcome = bench.process("nan")
    assert outcome.status == 2 and len(outcome.error.strip().splitlines()) == 1
    assert "error: the loss is nan in step 6 (epoch 2): learning rate" in outcome.error
    bench.goes_on(4)


@row(11, "infinite gradients under mixed precision")
def _(bench: Bench) -> None:
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins import MixedPrecision

    def fit(first: int, last: int, max_skipped: int) -> list[str]:
        module, data = build("configs/digits/simclr.yaml")
        steps: list[int] = []

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            steps.append(1)
            return gradient * float("inf") if first <= len(steps) <= last else gradient

        next(module.parameters()).register_hook(spoil)
        logger = CSVLogger(str(bench.folder), version="")
        scaler = torch.amp.GradScaler("cpu", init_scale=64)  # type: ignore[attr-defined]  # no step overflows by itself
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        options = {
            "plugins": [plugin],
            "callbacks": [FiniteLoss(bench.last, max_skipped)],
            "logger": logger,
            "max_steps": 8,
        }
        trainer_for(bench.folder, limit_val_batches=0, **options).fit(module, data)
        logger.save()
        assert all(p.isfinite().all() for p in module.parameters())
        return (bench.folder / "lightning_logs" / "metrics.csv").read_text().splitlines()

    lines = fit(2, 4, 4)  # three in a row, then sound again
    column = lines[0].split(",").index("train/skipped_steps")
    assert [line.split(",")[column] for line in lines[1:] if line.split(",")[column]] == ["1", "2", "3"]
    with pytest.raises(
        ConfigError, match=r"gradient is not in 4 steps in a row, last in step 5 .*learning rate"
    ):
        fit(2, 99, 4)


@row(12, "collapse of the representation")
def _(bench: Bench) -> None:
    def losses(self: Any, batch: Any) -> dict[str, torch.Tensor]:  # views may agree by all being the same
        one, two = (self.encoder(view) for view in batch["views"])
        return {"loss": (one - two).square().mean() + one.square().mean()}

    bench.patch.setattr(SimCLR, "losses", losses)
    with pytest.warns(
        UserWarning, match=r"representation has collapsed at step \d+: .*(zero|feature std|RankMe)"
    ) as caught:
        assert (
            bench.train(*VALIDATES, "--model.optimizer.lr", "0.05", "--trainer.max_epochs", "20").status == 0
        )
    assert sum("collapsed" in str(w.message) for w in caught) == 1
