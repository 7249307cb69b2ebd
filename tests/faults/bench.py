"""A folder to provoke faults in, and the table that they are entered in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import train
from datamodules.preparing import LOCK
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
#: Two epochs of four steps, without validation.
QUICK = ROOT / "tests" / "quick.yaml"
VALIDATES = ["--trainer.limit_val_batches", "1", "--trainer.check_val_every_n_epoch", "1"]
STEPS = 8


class Outcome(NamedTuple):
    status: int
    text: str  # stdout and stderr
    error: str  # stderr


class Bench:
    """A folder of its own, and runs in it: in this process, or in one of its own where the fault ends the
    process.
    """

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capture, self.patch = folder, capture, patch
        self.last = folder / "run" / "checkpoints" / "last.ckpt"

    def train(self, *options: str, run: str = "run") -> Outcome:
        os.environ.pop("SSL_RUN_DIR", None)
        self.capture.readouterr()
        status = train.main([*DIGITS, "--config", str(QUICK), "--run_dir", run, *options])
        out = self.capture.readouterr()
        return Outcome(status, out.out + out.err, out.err)

    def process(self, fault: str, *options: str, **environment: str) -> Outcome:
        """Ends within 60 seconds, or the test fails."""
        hidden = ("PL_GLOBAL_SEED", "SSL_RUN_DIR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK")
        env = {k: v for k, v in os.environ.items() if k not in hidden}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        command = [
            sys.executable,
            "-m",
            "tests.faulty",
            *fault.split(),
            "--",
            *DIGITS,
            "--config",
            str(QUICK),
            "--run_dir",
            "run",
            *options,
        ]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)
        return Outcome(done.returncode, done.stdout + done.stderr, done.stderr)

    def refused(self, *options: str, because: str, run: str = "run") -> None:
        """Exit status 2 with one line that holds ``because``; no file appears or changes, but a lock that is
        left.
        """
        before = self.files()
        outcome = self.train(*options, run=run)
        lines = [
            line
            for line in outcome.error.strip().splitlines()
            if not line.startswith(("Seed set", "warning: "))
        ]
        assert outcome.status == 2, outcome.text
        assert len(lines) == 1 and lines[0].startswith("error: ") and because in lines[0], outcome.error
        assert self.files() == before

    def files(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file() and p.name != LOCK}

    def goes_on(self, step: int, *options: str) -> None:
        """The checkpoint is of ``step``, nothing half-written lies beside it, and the same command finishes
        the run.
        """
        content = read_checkpoint(self.last)
        assert content["global_step"] == step
        assert all(v.isfinite().all() for v in content["state_dict"].values())
        assert not list(self.last.parent.glob("*.tmp")) and not list(self.last.parent.glob(".*.tmp"))
        assert self.train(*options).status == 0
        assert read_checkpoint(self.last)["global_step"] == STEPS

    def photos(self, name: str = "photos", n: int = 12, classes: int = 0, size: int = 16) -> Path:
        """JPEGs of two sizes, so that they are decoded when they are needed."""
        rng = np.random.default_rng(0)
        for i in range(n):
            folder = self.folder / name / (f"class{i % classes}" if classes else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (size + i % 2, size, 3), dtype=np.uint8)).save(
                folder / f"{i:02d}.jpg"
            )
        return self.folder / name


def on_photos(folder: Path, *options: str) -> list[str]:
    return [
        *(
            "--data",
            "ImageFolder",
            "--data.root",
            str(folder),
            "--data.image_size",
            "16",
            "--data.batch_size",
            "4",
        ),
        *("--model.encoder.in_channels", "3", *options),
    ]


class Row(NamedTuple):
    number: int
    fault: str
    test: Callable[[Bench], None]
    missing: str | None  # why it cannot pass yet


ROWS: list[Row] = []


def row(
    number: int, fault: str, missing: str | None = None
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    def add(test: Callable[[Bench], None]) -> Callable[[Bench], None]:
        ROWS.append(Row(number, fault, test, missing))
        return test

    return add
