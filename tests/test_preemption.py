"""Signals: the run saves, ends with a status that no scheduler takes for success, and continues as if nothing
had been.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from runtime import signals
from runtime.checkpoints import read_checkpoint
from runtime.failures import forget_failures
from runtime.messages import ROOT
from runtime.signals import Preempted, StopRequest, receiver
from runtime.stopping import Preemption
from sslmodules import SimCLR, SSLModule
from tests.pair import said, start, wait

QUICK = Path(__file__).with_name("quick.yaml")
OPTIONS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--config", str(QUICK)]
#: With a validation after each of the two epochs of four steps.
VALIDATES = ["--trainer.limit_val_batches", "1", "--trainer.check_val_every_n_epoch", "1"]
STEPS = 8


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SSL_RUN_DIR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def run(folder: Path, *options: str) -> int:
    os.environ.pop("SSL_RUN_DIR", None)
    return train.main([*OPTIONS, *VALIDATES, "--run_dir", str(folder), *options])


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged scalar but clock times, as TensorBoard shows them: a step that is shown twice is there
    twice.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_same_end(one: Path, two: Path) -> None:
    first, second = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert first["global_step"] == second["global_step"] == STEPS
    assert all(torch.equal(first["state_dict"][k], second["state_dict"][k]) for k in first["state_dict"])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    for a, b in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        for key, state in a["state"].items():
            assert all(torch.equal(state[k], b["state"][key][k]) for k in state)
    assert curves(one) == curves(two)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == 0
    return folder


def signal_in_training(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    """The signal arrives while optimizer step ``step`` is made, counted from 1."""
    original = SSLModule.on_train_batch_start

    def on_train_batch_start(self: Any, *args: Any) -> None:
        original(self, *args)
        if self.global_step == step - 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(SSLModule, "on_train_batch_start", on_train_batch_start)


EVERY = [
    ("SIGTERM", 143, ()),
    pytest.param("SIGINT", 130, (), marks=pytest.mark.slow),
    pytest.param("SIGUSR1", 143, (), marks=pytest.mark.slow),
    pytest.param("SIGUSR2", 143, (), marks=pytest.mark.slow),
    pytest.param("SIGTERM", 143, ("--save_in_background", "true"), marks=pytest.mark.slow),
    pytest.param("SIGTERM", 143, ("--save_every_n_steps", "3"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "status", "options"), EVERY)
def test_a_signal_in_training(
    name: str,
    status: int,
    options: tuple[str, ...],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of an epoch: saved there, and the same command ends where an undisturbed run ends, curves
    included.
    """
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_training(patch, getattr(signal, name), 2)
        assert run(folder, *options) == status
    out = capsys.readouterr().out
    step = read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert step == 2 and f"last.ckpt at step {step}" in out and "resumes it" in out
    assert run(folder, *options) == 0
    assert f"resuming after epoch 0, step {step}" in capsys.readouterr().out
    assert_same_end(undisturbed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8], ids=["first-validation", "last-validation"])
def test_a_signal_in_validation(
    step: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = SimCLR.validation_step

    def validation_step(self: Any, *args: Any) -> Any:
        if self.global_step == step and not self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "validation_step", validation_step)
        assert run(folder) == 143
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step
    assert run(folder) == 0
    assert_same_end(undisturbed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8], ids=["end-of-epoch", "end-of-run"])
def test_a_signal_in_the_last_step_of_an_epoch(
    step: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_training(patch, signal.SIGTERM, step)
        assert run(folder) == 143
    assert run(folder) == 0
    assert_same_end(undisturbed, folder)


@pytest.mark.slow
def test_again_and_again(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is preempted after every step still arrives, at the same place."""
    folder = tmp_path / "run"
    for step in range(1, STEPS):
        with monkeypatch.context() as patch:
            signal_in_training(patch, signal.SIGTERM, step)
            assert run(folder) == 143
    assert run(folder) == 0
    assert_same_end(undisturbed, folder)


def process(*options: str, **environment: str) -> subprocess.Popen[str]:
    env = (
        {k: v for k, v in os.environ.items() if k != "PL_GLOBAL_SEED"}
        | {"OMP_NUM_THREADS": "1"}
        | environment
    )
    command = [sys.executable, str(ROOT / "train.py"), *OPTIONS, *VALIDATES, *options]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_while_importing_ends_at_once(tmp_path: Path) -> None:
    """Nothing would be lost, so it ends at once, even while torch is being imported. The other signals: the
    slow test below.
    """
    started = process("--run_dir", "run")
    wait_until_it_listens(started.pid)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert "nothing was begun" in out and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def wait_until_it_listens(pid: int) -> None:
    """Until the process has a handler for SIGUSR1; a moment later it imports torch."""
    bit = 1 << (signal.SIGUSR1 - 1)
    while True:
        caught = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
        )
        if int(caught.split()[1], 16) & bit:
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_while_importing_is_not_lost(name: str, tmp_path: Path) -> None:
    """Python would be killed by SIGUSR1, and a handler of the framework is not there yet."""
    started = process("--run_dir", "run")
    wait_until_it_listens(started.pid)
    started.send_signal(getattr(signal, name))
    out, err = started.communicate(timeout=120)
    assert started.returncode == 143, err
    assert "asked to end" in out and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_requeued_job_that_gets_its_signal_early_keeps_what_it_has(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it reads its checkpoint: nothing was trained since, so nothing is saved, and the next start goes
    on from it.
    """
    from runtime.folder import RunFolder

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_training(patch, signal.SIGTERM, 3)
        assert run(folder) == 143
    saved = (folder / "checkpoints" / "last.ckpt").read_bytes()
    original = RunFolder.create

    def create(self: Any, *args: Any) -> None:
        original(self, *args)
        os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "create", create)
        assert run(folder) == 143
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == saved
    assert run(folder) == 0
    assert_same_end(undisturbed, folder)


def test_a_job_is_put_back_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGUSR1 under SLURM asks for the job itself, or for the task of an array; SIGTERM does not: it may be a
    cancellation.
    """
    from runtime.signals import end

    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")

    def after(number: signal.Signals) -> int:
        with receiver.listening(), pytest.raises(Preempted) as stop:
            os.kill(os.getpid(), number)
            receiver.end_if_asked()
        return end(stop.value)

    assert after(signal.SIGTERM) == 143 and not (tmp_path / "asked").exists()
    assert after(signal.SIGUSR1) == 143
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert after(signal.SIGUSR2) == 143
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 12", "requeue 10_3"]
    monkeypatch.setenv("SLURM_PROCID", "1")  # one rank asks for the whole job
    assert after(signal.SIGUSR2) == 143
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
    monkeypatch.setenv("SLURM_PROCID", "0")
    scontrol.write_text("#!/bin/sh\necho 'slurm_requeue error: Access denied' >&2\nexit 1\n")
    assert after(signal.SIGUSR1) == 143
    assert (
        "`scontrol requeue 10_3` failed (slurm_requeue error: Access denied): the run is saved"
        in capsys.readouterr().err
    )


def test_several_tasks_without_srun_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process would wait for the others for ever."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "ssl")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert run(tmp_path / "run") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert (
        len(lines) == 1
        and "has 2 tasks, but the command runs once: start it with `srun python train.py" in lines[0]
    )
    assert not (tmp_path / "run").exists()


def test_the_greatest_wish_counts() -> None:
    with receiver.listening():
        receiver.raises = ()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert receiver.take() == StopRequest.INTERRUPT and receiver.take() == StopRequest.NONE


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", 0), ("every_minutes", -1.0)])
def test_intervals_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"save_{name} must be positive, got {value}"):
        Preemption(Path("last.ckpt"), **{name: value})  # type: ignore[arg-type]


def test_other_ranks_leave_after_rank_0_has_asked_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``srun --kill-on-bad-exit`` ends rank 0 when another one has left with 143."""
    for name, value in (("SSL_RUN_DIR", str(tmp_path)), ("SLURM_JOB_ID", "12"), ("SLURM_PROCID", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(signals, "requeue", lambda: time.sleep(0.3))
    statuses = []
    stop = signals.Preempted(StopRequest.REQUEUE)
    other = threading.Thread(target=lambda: statuses.append(signals.end(stop)))
    other.start()
    time.sleep(0.3)
    assert not statuses
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert signals.end(stop) == 143
    other.join(5)
    assert statuses == [143]
    forget_failures(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    assert signals.end(stop) == 143  # rank 0 was killed


# ---- two processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [0, 1])
@pytest.mark.parametrize("moment", ["train", "validation"])
def test_one_of_two_processes_gets_the_signal(deaf: int, moment: str, tmp_path: Path) -> None:
    """Started as torchrun does; both save at the same step and end with 143, and the pair resumes to the
    end.
    """
    statuses, text = pair(f"signal SIGTERM {moment}", 1 - deaf, tmp_path)
    assert statuses == [143, 143], text
    assert "Traceback" not in text
    step = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < step < STEPS
    assert f"last.ckpt at step {step}" in text
    statuses, text = pair("none", 0, tmp_path)
    assert statuses == [0, 0], text
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == STEPS
    os.rename(tmp_path / "run", tmp_path / "resumed")
    assert pair("none", 0, tmp_path)[0] == [0, 0]
    assert_same_end(tmp_path / "run", tmp_path / "resumed")


def pair(fault: str, hears: int, folder: Path) -> tuple[list[int], str]:
    """Two processes of one run, with the fault in one of them: exit statuses and everything they said."""
    commands = []
    for rank in range(2):
        command = [sys.executable, "-m", "tests.faulty", *(fault if rank == hears else "none").split(), "--"]
        command += [*OPTIONS, *VALIDATES, "--run_dir", "run", "--data.batch_size", "128"]
        commands.append([*command, "--trainer.devices", "2", "--trainer.strategy", "ddp"])
    return wait(start(commands, folder, folder), 240), said(folder)
