"""Whole runs from the command line: folders, processes, data and encoders of several kinds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from runtime.checkpoints import read_checkpoint
from runtime.command_line import SSLCommandLine
from runtime.messages import ROOT
from tests.command_lines import DIGITS, QUICK

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_a_run_without_a_folder_gets_one_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *DIGITS,
        *QUICK,
        "--trainer.max_steps",
        "1",
        "--trainer.limit_val_batches",
        "0",
        "--evaluate",
        "false",
    ]
    assert train.main(command) == 0
    folders = list((tmp_path / "runs" / "digits-simclr").iterdir())
    assert len(folders) == 1 and re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folders[0].name)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]  # nothing beside the run folder


def test_a_short_run_is_short_on_the_terminal(tmp_path: Path) -> None:
    """The README's command in a process of its own: under 40 lines, with the table and where things are."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        "--trainer.max_epochs",
        "3",
        "--run_dir",
        str(tmp_path / "run"),
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "SSL_RUN_DIR")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert len([line for line in text.splitlines() if line.strip()]) < 40, text
    for expected in (
        "pretrained",
        "random_init",
        "raw_input",
        "run folder:",
        "tensorboard --logdir",
        "python eval.py",
        "linear",
        "5-shot",
    ):
        assert expected in done.stdout
    assert "Warning" not in text and "Tip" not in text and "litlogger" not in text, text


@pytest.mark.slow
def test_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """`--trainer.strategy ddp --trainer.devices 2`: one run folder, one table, and the child's exit does not
    go unnoticed.
    """
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        *QUICK,
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
    ]
    command += [
        "--trainer.max_epochs",
        "1",
        "--data.batch_size",
        "128",
        "--trainer.check_val_every_n_epoch",
        "1",
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "SSL_RUN_DIR")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env={**env, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "runs" / "digits-simclr").iterdir())
    assert len(runs) == 1 and (runs[0] / "results.json").is_file() and done.stdout.count("run folder:") == 1


def test_unlabeled_jpegs_train_without_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    command = [
        *DIGITS,
        *QUICK,
        "--data",
        "ImageFolder",
        "--data.root",
        str(folder),
        "--data.image_size",
        "16",
    ]
    command += [
        "--model.encoder.in_channels",
        "3",
        "--data.batch_size",
        "8",
        "--trainer.max_epochs",
        "1",
        "--run_dir",
        "run",
    ]
    assert train.main([*command, "--trainer.check_val_every_n_epoch", "1"]) == 0
    out = capsys.readouterr()
    assert "no labels" in out.out + out.err
    report = json.loads(Path("run/results.json").read_text())
    assert report["results"] == {}
    assert Path("run/checkpoints/best.ckpt").is_file()  # chosen by the loss on held-out images


def test_a_timm_name_is_an_encoder(tmp_path: Path) -> None:
    command = [
        *DIGITS,
        *QUICK,
        "--model.encoder",
        "resnet10t",
        "--trainer.max_steps",
        "1",
        "--evaluate",
        "false",
        "--run_dir",
        "run",
    ]
    # three channels by default, digits have one
    assert (
        train.main(
            [*command, "--model.encoder.init_args.in_channels", "1", "--trainer.limit_val_batches", "0"]
        )
        == 0
    )
    options = read_checkpoint("run/checkpoints/last.ckpt")["hyper_parameters"]["encoder"]
    assert options["class_path"].endswith("TimmEncoder") and options["init_args"]["name"] == "resnet10t"


def test_random_baseline_is_the_network_before_training(tmp_path: Path) -> None:
    from runtime.checkpoints import initial_module

    cli = SSLCommandLine([*DIGITS, *QUICK, "--run_dir", "r", "--seed_everything", "3"])
    rebuilt = initial_module({"hyper_parameters": dict(cli.model.hparams), "seed": 3})
    for (name, a), (_, b) in zip(cli.model.named_parameters(), rebuilt.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_run_whose_weights_are_not_float32_is_evaluated(precision: str) -> None:
    command = ["--config", str(ROOT / "configs/digits/autoencoder.yaml"), "--trainer.accelerator", "cpu"]
    quick = ["--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false", "--data.synthetic", "true"]
    assert train.main([*command, *quick, "--trainer.precision", precision, "--run_dir", "run"]) == 0
    assert json.loads(Path("run/results.json").read_text())["failed"] == {}
