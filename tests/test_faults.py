"""Faults, each provoked: the line that is shown, the exit status, and that nothing was lost.

``python -m tests.test_faults`` runs them and prints how many end as they should. The table in words:
docs/faults.md
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from datamodules.errors import ConfigError, DataFileError
from datamodules.images.arrays import Digits
from datamodules.images.folder import ImageFolder
from datamodules.images.module import ArrayDataset
from runtime.callbacks import FiniteLoss
from runtime.checkpoints import load_module, read_checkpoint
from runtime.messages import ROOT
from sslmodules import SimCLR, methods
from tests import faulty
from tests.conftest import CONFIGS, build, trainer_for

pytestmark = pytest.mark.slow

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
#: Two epochs of four steps, without validation.
QUICK = Path(__file__).with_name("quick.yaml")
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
        """Exit status 2 with one line that holds ``because``; no file appears or changes."""
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
        return {p: p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()}

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


# ---- signals and checkpoints -------------------------------------------------------------------------------


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
    assert os.stat("/dev/shm").st_dev != os.stat(bench.folder).st_dev
    before = set(os.listdir("/dev/shm"))
    assert bench.process("kill-save half-written", TMPDIR="/dev/shm").status == -9
    assert set(os.listdir("/dev/shm")) == before, "something was left in TMPDIR"
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
    bench.refused(because="file/run cannot be written", run="file/run")
    bench.refused(because="/proc/run cannot be written", run="/proc/run")


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
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))  # type: ignore[attr-defined]
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


# ---- data --------------------------------------------------------------------------------------------------


@row(13, "empty data set")
def _(bench: Bench) -> None:
    (bench.folder / "photos" / "train").mkdir(parents=True)
    (bench.folder / "photos" / "train" / "readme.txt").write_text("x")
    bench.refused(*on_photos(bench.folder / "photos"), because="photos/train, which holds: readme.txt")
    bench.patch.setattr(
        Digits, "dataset", lambda self, split: ArrayDataset(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0))
    )
    bench.refused(because="Digits has 0 training samples")


@row(14, "fewer samples than a batch")
def _(bench: Bench) -> None:
    bench.refused("--data.batch_size", "2000", because="1077 training samples, fewer than one batch of 2000")
    bench.refused(*on_photos(bench.photos(n=5), "--data.val_fraction", "0.5"), because="3 or less")


@row(15, "a last batch of one under batch norm")
def _(bench: Bench) -> None:
    bench.patch.setattr(
        Digits,
        "dataset",
        lambda self, split: ArrayDataset(np.zeros((5, 8, 8, 1), np.uint8) + 9, np.arange(5)),
    )
    outcome = bench.train("--data.batch_size", "4")
    assert (
        outcome.status == 0 and read_checkpoint(bench.last)["global_step"] == 2
    )  # one step an epoch: the rest is dropped


@row(16, "batch of one for a method that compares samples")
def _(bench: Bench) -> None:
    coupled = [name for name, cls in methods().items() if cls.couples_batch]
    assert {"SimCLR", "MoCo", "BarlowTwins", "VICReg", "SwAV", "DINO", "LeJEPA"} <= {*coupled, "MoCo", "DINO"}
    for config in CONFIGS:
        name = yaml.safe_load((ROOT / config).read_text())["model"]["class_path"]
        if config.startswith("configs/digits") and name in coupled:
            because = f"{name} compares the samples of a batch, so batch_size must be at least 2, got 1"
            bench.refused("--config", str(ROOT / config), "--data.batch_size", "1", because=because)


@row(17, "batch that does not divide the queue")
def _(bench: Bench) -> None:
    options = ["--config", str(ROOT / "configs" / "digits" / "moco.yaml"), "--model.queue_size", "1000"]
    bench.refused(
        *options,
        "--data.batch_size",
        "300",
        because="queue_size must be a multiple of the global batch of 300",
    )


@row(18, "missing data")
def _(bench: Bench) -> None:
    bench.refused("--data", "MNIST", "--data.root", "nowhere", because="--data.root nowhere does not exist")
    bench.refused(
        *on_photos(bench.folder / "nowhere"), because="nowhere is not a folder. Expected image files in"
    )


@row(19, "folders that are no classes")
def _(bench: Bench) -> None:
    folder = bench.photos(classes=2)
    (folder / "class9").mkdir()
    bench.refused(*on_photos(folder), because="without images in")
    (folder / "class9").rmdir()
    shutil.copy(folder / "class0" / "00.jpg", folder / "stray.jpg")
    bench.refused(
        *on_photos(folder), because="images (stray.jpg) lie beside folders with images (class0, class1)"
    )


def damaged(bench: Bench, contents: list[bytes]) -> None:
    """By default the first damaged file ends the run; when asked for they are passed over, counted and
    limited.
    """
    folder = bench.photos(n=40)
    for i, content in enumerate(contents):
        (folder / f"{i}7.jpg").write_bytes(content)
    once = on_photos(folder, "--data.num_workers", "1")
    outcome = bench.train(*once)
    assert outcome.status == 2 and "error: cannot read image" in outcome.error and "7.jpg: " in outcome.error
    shutil.rmtree(bench.folder / "run")
    outcome = bench.train(*once, "--data.max_unreadable", "5")
    assert outcome.status == 0, outcome.text
    passed_over = {
        line.partition("cannot read image ")[2].partition(":")[0]
        for line in outcome.text.splitlines()
        if "passed over" in line
    }
    assert passed_over == {str(folder / f"{i}7.jpg") for i in range(len(contents))}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(bench.folder / "run"))
    events.Reload()
    assert events.Scalars("train/unreadable_files")[-1].value == len(contents)
    shutil.rmtree(bench.folder / "run")
    outcome = bench.train(*once, "--data.max_unreadable", "1")
    assert outcome.status == (2 if len(contents) > 1 else 0)
    assert len(contents) == 1 or "file number 2 that cannot be read, max_unreadable is 1" in outcome.error


@row(20, "truncated image")
def _(bench: Bench) -> None:
    whole = (bench.photos("other", n=1) / "00.jpg").read_bytes()
    damaged(bench, [whole[: len(whole) // 2]])


@row(21, "empty file or text instead of an image")
def _(bench: Bench) -> None:
    damaged(bench, [b"", b"this is no picture"])


@row(22, "gray, transparent, 16-bit and 1x1 images")
def _(bench: Bench) -> None:
    folder = bench.folder / "photos"
    folder.mkdir()
    wide = np.full((16, 16), 32896, np.uint16)  # 128 / 255 of 65535
    pictures = [
        Image.new("L", (16, 16), 128),
        Image.fromarray(wide),
        Image.new("RGBA", (16, 16), (128, 128, 128, 255)),
    ]
    pictures += [
        Image.new("RGB", (1, 1), (128, 128, 128)),
        Image.new("P", (16, 16)),
        Image.new("RGBA", (16, 16), (0, 0, 0, 0)),
    ]
    for i, picture in enumerate(pictures * 3):
        picture.save(folder / f"{i:02d}.png")
    data = ImageFolder(str(folder), image_size=16, labeled=False)
    data.setup("fit")
    values = {}
    for split in ("train", "val"):
        images = data.dataset(split).__getitems__(range(len(data.files(split))))["input"]
        values |= {
            Path(f).name: image.unique().tolist() for f, image in zip(data.files(split), images, strict=True)
        }
    expected = [[128], [128], [128], [128], [0], [255]] * 3
    assert [values[f"{i:02d}.png"] for i in range(18)] == expected
    assert bench.train(*on_photos(folder)).status == 0


@row(23, "labels out of range, classes that differ between splits")
def _(bench: Bench) -> None:
    bench.photos("photos/train", classes=3)
    bench.photos("photos/val", classes=2)
    bench.refused(*on_photos(bench.folder / "photos"), because="only in val: none; only in train: class2")
    labels = np.arange(300) % 11
    splits = {
        split: ArrayDataset(np.zeros((300, 8, 8, 1), np.uint8), labels)
        for split in ("train", "bank", "val", "test")
    }
    bench.patch.setattr(Digits, "_load", lambda self, split: splits)
    bench.refused(because="has the label 10, expected 0 to 9")


@row(24, "error in a data-loading worker")
def _(bench: Bench) -> None:
    def happens() -> None:
        raise ZeroDivisionError("in my data set")

    bench.patch.setattr(ArrayDataset, "__getitems__", ArrayDataset.__getitems__)
    faulty.worker(happens)
    with pytest.raises(ZeroDivisionError, match=r"(?s)in my data set.*samples \d+, \d+, .*256 in all"):
        bench.train("--data.num_workers", "1")


@row(25, "data-loading worker killed")
def _(bench: Bench) -> None:
    outcome = bench.process("worker-killed", "--data.num_workers", "1")
    assert outcome.status == 2 and "error: a data-loading worker was killed" in outcome.error
    assert (
        "/dev/shm" in outcome.error
        and "--data.num_workers" in outcome.error
        and "Traceback" not in outcome.error
    )


# ---- resuming ----------------------------------------------------------------------------------------------


def half_done(bench: Bench) -> dict[str, Any]:
    """A run that was stopped after its first epoch; returns the checkpoint."""
    with bench.patch.context() as patch:

        def stop(self: Any, *args: Any) -> None:
            if self.global_step == 5:
                raise KeyboardInterrupt

        patch.setattr(SimCLR, "on_train_batch_end", stop)
        assert bench.train().status == 130
    return read_checkpoint(bench.last)


def unusable(bench: Bench, content: bytes) -> None:
    """Without another checkpoint the run is refused, and the damaged file stays as it is."""
    half_done(bench)
    bench.last.write_bytes(content)
    for other in bench.last.parent.iterdir():
        if other != bench.last:
            other.unlink()
    bench.refused(because=str(Path("run") / "checkpoints" / "last.ckpt"))


@row(26, "truncated checkpoint")
def _(bench: Bench) -> None:
    half_done(bench)
    unusable(bench, bench.last.read_bytes()[:2000])


@row(27, "empty checkpoint, or text")
def _(bench: Bench) -> None:
    for content in (b"", b"this is no checkpoint"):
        unusable(bench, content)
        shutil.rmtree(bench.folder / "run")


@row(28, "checkpoint of another method")
def _(bench: Bench) -> None:
    content = half_done(bench)
    byol = ["--config", str(ROOT / "configs" / "digits" / "byol.yaml")]
    bench.refused(*byol, because="holds a run of SimCLR, not of BYOL")
    content["hyper_parameters"]["_class_path"] = "sslmodules.byol.BYOL"
    torch.save(content, bench.last)
    bench.refused(because="is a checkpoint of BYOL, not of SimCLR")


@row(29, "checkpoint of another width")
def _(bench: Bench) -> None:
    content = half_done(bench)
    bench.refused("--model.projector_out", "77", because="model.init_args.projector_out: ")
    for key, value in content["state_dict"].items():
        if key.startswith("projector") and value.ndim == 2:
            content["state_dict"][key] = value[:, :-1].clone()
    torch.save(content, bench.last)
    bench.refused(because="projector.0.weight is (128, 127) there, (128, 128) now")


@row(30, "checkpoint with weights only")
def _(bench: Bench) -> None:
    content = half_done(bench)
    content.pop("optimizer_states")
    torch.save(content, bench.last)
    bench.refused(because="holds weights only and cannot be resumed")


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@row(31, "checkpoint that would run code")
def _(bench: Bench) -> None:
    content, mark = half_done(bench), bench.folder / "code-ran"
    torch.save({**content, "evil": Evil(str(mark))}, bench.last)
    bench.refused(because="loading them could run code, so it was refused")
    with pytest.raises(DataFileError, match="could run code"):
        load_module(bench.last)
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), "run"], cwd=bench.folder, capture_output=True, text=True
    )
    assert done.returncode == 2 and "could run code" in done.stderr
    for name in ("os.system", "subprocess.Popen", "torch.hub.os.system", "tests.faulty.Evil"):
        content["hyper_parameters"]["encoder"] = {"class_path": name, "init_args": {}}
        torch.save(content, bench.last)
        with pytest.raises(DataFileError, match="outside of the project"):
            load_module(bench.last)
    assert not mark.exists()


@row(32, "resumed with another batch size, another number of processes or other epochs")
def _(bench: Bench) -> None:
    half_done(bench)
    bench.refused("--data.batch_size", "128", because="data.init_args.batch_size: 256 there, 128 now")
    bench.refused("--trainer.max_epochs", "3", because="trainer.max_epochs: 2 there, 3 now")
    bench.refused("--trainer.devices", "2", because="trainer.devices: ")


@row(33, "finished run started again")
def _(bench: Bench) -> None:
    assert bench.train().status == 0
    before = bench.files()
    outcome = bench.train()
    assert outcome.status == 0 and "is finished: 2 epochs, 8 steps" in outcome.text
    assert bench.files() == before


@row(34, "two runs in one folder")
def _(bench: Bench) -> None:
    import fcntl

    half_done(bench)
    bench.refused("--model.temperature", "0.7", because="model.init_args.temperature: 0.2 there, 0.7 now")
    with (bench.folder / "run" / ".lock").open("r+") as lock:  # as another process of the same run holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        bench.refused(because="is in use by another process")
    bench.goes_on(read_checkpoint(bench.last)["global_step"])


# ---- what was given ----------------------------------------------------------------------------------------


@row(35, "misspelt option")
def _(bench: Bench) -> None:
    bench.refused("--model.optimizer.lerning_rate", "1", because="no option 'lerning_rate'")
    bench.refused("--model.temprature", "1", because="(did you mean 'temperature'?)")
    (bench.folder / "c.yaml").write_text("model: {init_args: {temprature: 1}}\n")
    bench.refused("--config", "c.yaml", because="(did you mean 'temperature'?)")


@row(36, "value of the wrong type or out of range")
def _(bench: Bench) -> None:
    for yml, because in {
        "model: {init_args: {temperature: .nan}}": "model.temperature: expected float, got NaN",
        "model: {init_args: {temperature: hot}}": "model.temperature: expected float, got hot",
        "model: {init_args: {temperature: -1}}": "model.temperature must be positive, got -1.0",
        "trainer: {max_epochs: -1}": "--trainer.max_epochs -1 would never end",
        "trainer: {max_epochs: -3}": "-3",
        "trainer: {limit_train_batches: 0}": "leaves nothing to train",
        "data: {init_args: {batch_size: 2.5}}": "data.batch_size: expected int, got 2.5",
        "seed_everything: one": "seed_everything: expected",
    }.items():
        (bench.folder / "c.yaml").write_text(yml)
        bench.refused("--config", "c.yaml", because=because)
    (bench.folder / "c.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}}}"
    )
    assert (
        bench.train("--config", "c.yaml", "--trainer.max_steps", "1").status == 0
    )  # a string for YAML 1.1, a number here


@row(37, "configuration that would run code")
def _(bench: Bench) -> None:
    mark, package = bench.folder / "code-ran", bench.folder / "mypackage.py"
    package.write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom sslmodules.networks import "
        "ConvEncoder\n"
        "class Mine(ConvEncoder):\n    pass\ndef hook(*args):\n    pass\n"
    )
    bench.patch.syspath_prepend(str(bench.folder))
    lambda_callback = "lightning.pytorch.callbacks.LambdaCallback"
    for yml in (
        "model: os.system",
        "model: {class_path: os.system, init_args: {command: x}}",
        "model: {init_args: {encoder: {class_path: subprocess.Popen, init_args: {args: [touch, x]}}}}",
        "model: {init_args: {encoder: {class_path: mypackage.Mine}}}",
        "model: {init_args: {encoder: {class_path: torch.hub.load}}}",
        "model: {init_args: {encoder: {class_path: timm.models.os.system}}}",
        "model: {init_args: {encoder: {class_path: ConvEncoder, dict_kwargs: {x: {class_path: os.system}}}}}",
        "model: {init_args: {optimizer: os.system}}",
        "trainer: {callbacks: [{class_path: os.system}]}",
        "trainer: {callbacks+: [mypackage.Mine]}",
        "trainer: "
        f"{{callbacks: [{{class_path: {lambda_callback}, init_args: {{on_fit_start: os.system}}}}]}}",
        "trainer: "
        f"{{callbacks: [{{class_path: {lambda_callback}, init_args: {{on_fit_start: torch.hub.load}}}}]}}",
        "trainer: {plugins: [{class_path: mypackage.Mine}]}",
        "trainer: {strategy: {class_path: mypackage.Mine}}",
        "trainer: other.yaml",
        "data: {init_args: {views: {class_path: mypackage.Mine}}}",
        "model: !!python/object/apply:os.system [x]",
    ):
        (bench.folder / "c.yaml").write_text(yml)
        bench.refused("--config", "c.yaml", because="c.yaml")
    bench.refused(
        "--model.encoder",
        "mypackage.Mine",
        because="If you trust what it runs: --trust_config_classes mypackage",
    )
    bench.refused(
        "--model.encoder", '{"class_path": "mypackage.Mine"}', because="--trust_config_classes mypackage"
    )
    bench.refused("--trainer.callbacks+=mypackage.Mine", because="--trust_config_classes mypackage")
    bench.refused("--trainer", "c.yaml", because="--trainer: expected options")
    assert not mark.exists() and "mypackage" not in sys.modules
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        "--config",
        str(QUICK),
        "--run_dir",
        "run",
        "--trainer.max_steps",
        "1",
    ]
    command += [
        "--model.encoder",
        "mypackage.Mine",
        "--model.encoder.in_channels",
        "1",
        "--trust_config_classes",
        "mypackage",
    ]
    env = {**os.environ, "PYTHONPATH": str(bench.folder)}
    done = subprocess.run(command, cwd=bench.folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        mark.exists()
        and read_checkpoint(bench.last)["hyper_parameters"]["encoder"]["class_path"] == "mypackage.Mine"
    )
    for flag, status in (([], 2), (["--trust_config_classes", "mypackage"], 0)):
        evaluate = [sys.executable, str(ROOT / "eval.py"), "run", "--probes", "knn", *flag]
        done = subprocess.run(evaluate, cwd=bench.folder, env=env, capture_output=True, text=True)
        assert done.returncode == status, done.stderr


@row(38, "archive that reaches outside its folder, wrong checksum")
def _(bench: Bench) -> None:
    import hashlib
    import io
    import tarfile

    archive = bench.folder / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    options = [
        "--data",
        "CIFAR10",
        "--data.root",
        "data",
        "--data.download",
        "true",
        "--model.encoder.in_channels",
        "3",
    ]
    for name, link in (("../outside", None), ("link", "../../outside")):
        with tarfile.open(archive, "w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            tar.addfile(info, io.BytesIO())
        with bench.patch.context() as patch:  # as if the publisher's own archive did that
            patch.setattr(
                "torchvision.datasets.CIFAR10.tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest()
            )
            bench.refused(*options, because="which is outside the destination")
    # a checksum that is wrong: the file is fetched again, which the address makes impossible here
    bench.patch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/none.tar.gz")
    bench.refused(*options, because="could not be downloaded to --data.root data")


@row(39, "one of two processes raises")
def _(bench: Bench) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
    for rank in ("0", "1"):
        outcome = bench.process(f"rank-raises {rank}", *two)
        assert outcome.status != 0 and outcome.text.count(f"RuntimeError: the fault of rank {rank}") == 1, (
            outcome.text
        )
        assert outcome.text.count("Traceback") == 1 and "Connection" not in outcome.text, outcome.text


@row(40, "no GPU, half precision on a CPU, logger not installed, port in use")
def _(bench: Bench) -> None:
    if not torch.cuda.is_available():
        bench.refused(
            "--trainer.accelerator", "gpu", because="--trainer.accelerator gpu: there is no GPU here"
        )
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        assert bench.train("--trainer.precision", "16-mixed", "--trainer.max_steps", "1").status == 0
    shutil.rmtree(bench.folder / "run")
    bench.refused("--trainer.logger", "lightning.pytorch.loggers.WandbLogger", because="Requirement 'wandb")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
        outcome = bench.process("none", *two, MASTER_PORT=port, MASTER_ADDR="127.0.0.1")
    assert (
        outcome.status == 2
        and f"error: port {port} is in use" in outcome.error
        and "Traceback" not in outcome.text
    )


@row(41, "one of two processes is killed")
def _(bench: Bench) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
    for moment, status, how in (("1", 2, "is gone"), ("1:start", 1, "was ended by SIGKILL")):
        outcome = bench.process(f"rank-killed {moment}", *two)
        shutil.rmtree(bench.folder / "run")
        told = [line for line in outcome.text.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and re.match(rf"error: rank 1 \(process \d+ on .+\) {how}: ", told[0]), told
        assert outcome.status == status and "Traceback" not in outcome.text, outcome.text


@row(42, "config.yaml or environment.json empty after a power cut")
def _(bench: Bench) -> None:
    assert bench.train().status == 0
    bench.last.with_name("previous.ckpt").replace(bench.last)
    config = (bench.folder / "run" / "config.yaml").read_bytes()
    for name in ("config.yaml", "environment.json"):
        (bench.folder / "run" / name).write_bytes(b"")
    outcome = bench.train()
    warnings = [line.partition(": kept")[0] for line in outcome.error.splitlines()]
    assert warnings == [
        "warning: run/config.yaml is damaged",
        "warning: run/environment.json is damaged",
    ]
    assert outcome.status == 0 and read_checkpoint(bench.last)["global_step"] == STEPS
    assert (bench.folder / "run" / "config.yaml").read_bytes() == config


@row(43, "statistics of batch norm overflow")
def _(bench: Bench) -> None:
    assert bench.train().status == 0
    bench.last.with_name("previous.ckpt").replace(bench.last)

    def overflow(module: Any, batch: Any) -> Any:
        next(b for n, b in module.named_buffers() if n.endswith("running_var")).fill_(float("inf"))
        return original(module, batch)

    original = SimCLR.losses
    with bench.patch.context() as patch:
        patch.setattr(SimCLR, "losses", overflow)
        outcome = bench.train()
    assert outcome.status == 2 and "running_var of SimCLR is not finite after step 8" in outcome.error
    bench.goes_on(STEPS // 2)


@row(44, "--run_dir is an address")
def _(bench: Bench) -> None:
    for name in ("s3://bucket/run", "a::b"):
        bench.refused(run=name, because=f"--run_dir {name}: expected a folder on this machine")


# ---- all of them -------------------------------------------------------------------------------------------


def marked(row: Row) -> Any:
    marks = [pytest.mark.xfail(reason=row.missing, strict=True)] if row.missing else []
    return pytest.param(row, marks=marks, id=f"{row.number:02d} {row.fault}")


@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
def test_fault(
    row: Row, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    row.test(Bench(tmp_path, capfd, monkeypatch))


def test_no_row_is_left_out() -> None:
    assert [row.number for row in ROWS] == list(range(1, 45))


class Count:
    def __init__(self) -> None:
        self.passed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if (
            report.when == "call"
            and report.passed
            and "test_fault[" in report.nodeid
            and not hasattr(report, "wasxfail")
        ):
            self.passed.add(report.nodeid)


if __name__ == "__main__":
    count = Count()
    code = pytest.main(["-n", "0", "-m", "slow", __file__, *sys.argv[1:]], plugins=[count])
    print(f"{len(count.passed)} of {len(ROWS)} faults end as they should")
    sys.exit(code)
