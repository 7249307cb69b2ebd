"""torchrun.sh, really run with two processes on the CPU: run with ``pytest -m slow``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from tests.cluster.slurm import free_ports, wait_for

pytestmark = pytest.mark.slow

EPOCHS, STEPS_PER_EPOCH = 30, 16  # 1,077 samples in batches of 2 x 32
OPTIONS = [
    "--config=configs/digits/simclr.yaml",
    f"--config={ROOT / 'tests' / 'quick.yaml'}",
    "--data.batch_size=32",
    f"--trainer.max_epochs={EPOCHS}",
]


def launch(*options: str) -> subprocess.Popen[str]:
    foreign = ("SLURM_", "PL_", "SSL_", "MASTER_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= {
        "DEVICES": "2",
        "MASTER_PORT": str(free_ports(1)[0]),
        "PYTHON": sys.executable,
        "SAVE_SECONDS": "60",
    }
    return subprocess.Popen(
        [
            "env",
            "--default-signal=INT",
            ROOT / "cluster" / "torchrun.sh",
            *OPTIONS,
            *options,
        ],  # ignored in a job with `&`
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*options: str) -> tuple[int, str]:
    process = launch(*options)
    text = process.communicate(timeout=240)[0]
    return process.returncode, text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    status, text = run("--run_dir", str(folder))
    assert status == 0, text
    content = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert content["global_step"] == EPOCHS * STEPS_PER_EPOCH and content["Digits"]["world_size"] == 2
    return content["state_dict"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_with_the_signals_status_and_goes_on(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], number: int, status: int
) -> None:
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    process = launch("--run_dir", str(folder))
    wait_for("the first epoch", lambda: last.is_file() or process.poll() is not None, 120)
    process.send_signal(number)
    text = process.communicate(timeout=90)[0]
    assert process.returncode == status, text
    assert text.count("resumes it") == 1
    assert 0 < read_checkpoint(last)["global_step"] < EPOCHS * STEPS_PER_EPOCH
    status, text = run("--run_dir", str(folder))
    assert status == 0 and "resuming after epoch" in text, text
    now = read_checkpoint(last)["state_dict"]
    assert all(torch.equal(value, now[name]) for name, value in undisturbed.items())


def test_a_run_folder_is_needed() -> None:
    status, text = run()
    assert (
        status == 1
        and "error: under torchrun the processes cannot agree on a date: give --run_dir DIR" in text
    ), text
