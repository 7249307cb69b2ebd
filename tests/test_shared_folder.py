"""Runs that meet in one folder, a clock that goes backwards, and what a crash of the machine leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

import train
from runtime import lock
from runtime.checkpoints import read_checkpoint
from runtime.event_files import put_before_now
from runtime.folder import RunFolder
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.resume import curves

QUICK = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
QUICK += ["--config", str(Path(__file__).with_name("quick.yaml")), "--run_dir", "run"]
STEPS = list(range(8))  # two epochs of four


class Killed(BaseException):
    """Ends a run there and then, as SIGKILL would: nothing is saved."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SSL_RUN_DIR", *lock.LAUNCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained to its end; ``previous.ckpt`` is of step 4."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train.main([*QUICK, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same run, stopped after the first of its two epochs."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "checkpoints" / "previous.ckpt").replace(folder / "checkpoints" / "last.ckpt")
    return folder


def steps(folder: Path) -> list[int]:
    return [step for step, _ in curves(folder)["train/loss"]]


def start(*options: str) -> int:
    os.environ.pop("SSL_RUN_DIR", None)
    return train.main([*QUICK, *options])


@contextmanager
def another_process(folder: Path, source: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has the lock of ``folder`` until somebody waits for it, then leaves the files of ``source`` there."""
    held = lock.only_run_in(folder)
    held.__enter__()

    def finish(seconds: float) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
        held.__exit__(None, None, None)

    with patch.context() as waiting:
        waiting.setattr(lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=finish))
        yield


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not live longer; it saves after 4 steps."""
    losses = SimCLR.losses

    def dies(self: Any, batch: Any) -> Any:
        if self.global_step == step:
            raise Killed
        return losses(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SimCLR, "losses", dies)
        start()


# ---- two at once -------------------------------------------------------------------------------------------


def test_a_start_that_waits_sees_what_the_other_has_done(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It read the checkpoint before, trained the epoch a second time and hid the other's."""
    with another_process(run, finished, monkeypatch):
        assert start() == 0
    assert "is finished: 2 epochs, 8 steps" in capsys.readouterr().out


def test_the_second_of_two_in_a_new_folder_does_not_train_over_the_first(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with another_process(tmp_path / "run", finished, monkeypatch):
        assert start() == 0
    assert "is finished: 2 epochs, 8 steps" in capsys.readouterr().out


def test_a_folder_in_use_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with lock.only_run_in(run):
        assert start() == 2
    expected = "error: --run_dir run is in use by another process: end it, or choose another\n"
    assert capsys.readouterr().err == expected


def test_what_cannot_run_leaves_no_folder(tmp_path: Path) -> None:
    """The folder is made for the lock, and with it the folders above it."""
    assert start("--run_dir", "new/a/run", "--data.batch_size", "100000") == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert start("--run_dir", "mine", "--data.batch_size", "100000") == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]


def test_a_lock_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before may remove it, with the folder, between our opening and our locking it."""
    path, locked, flock = tmp_path / "run" / ".lock", [], fcntl.flock

    def late(file: Any, how: int) -> None:
        if not locked:
            path.unlink()
        locked.append(file)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.only_run_in(tmp_path / "run"):
        assert os.path.samestat(path.stat(), os.fstat(locked[-1].fileno()))


def test_other_processes_of_a_launch_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one could read a checkpoint that another run has not yet replaced, and decide differently."""
    seen: list[bool] = []

    def second() -> None:
        with RunFolder(tmp_path).in_use():
            seen.append((tmp_path / "done").exists())

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "6")
    before = lock.only_run_in(tmp_path)
    before.__enter__()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.3)
    assert not seen  # an earlier launch is at its end
    (tmp_path / "done").touch()
    before.__exit__(None, None, None)
    with lock.only_run_in(tmp_path):
        thread.join(5)
    assert seen == [True]


def test_two_starts_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    first = RunFolder.choose(None, "Digits", "SimCLR").path
    for _ in range(2):  # the second may begin as the second changes
        first.mkdir(parents=True, exist_ok=True)
        second = RunFolder.choose(None, "Digits", "SimCLR").path
        assert second not in (first, *first.parent.iterdir())
        first = second
    first.mkdir()
    assert any(re.fullmatch(r"[\d-]+_[\d-]+_[23]", p.name) for p in first.parent.iterdir())


# ---- one curve ---------------------------------------------------------------------------------------------


def test_killed_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(3, monkeypatch)
    assert start() == 0
    assert steps(tmp_path / "run") == STEPS


def test_a_clock_that_is_behind_when_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(6, monkeypatch)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86_400)
    assert start() == 0
    assert steps(tmp_path / "run") == STEPS


def test_event_files_of_one_second_are_read_in_the_order_of_writing(tmp_path: Path) -> None:
    """TensorBoard numbers the files of a process, and sorts 10 before 9."""
    second = int(time.time())
    for number in (8, 9, 10):
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_scalar("x", 0, number)
        [new] = [p for p in tmp_path.iterdir() if not p.name.endswith(".end")]
        new.rename(tmp_path / f"events.out.tfevents.{second}.host.77.{number}.end")
    put_before_now(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split(".")[-2] for name in names] == ["8", "9", "10"]
    assert int(names[-1].split(".")[3]) < time.time() - 1
    before = names
    put_before_now(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---- after a power cut -------------------------------------------------------------------------------------


def test_a_damaged_environment_is_set_aside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "environment.json").write_bytes(b"")
    assert start() == 0
    warning = "warning: run/environment.json is damaged: kept as environment.damaged.json, rewritten\n"
    assert capsys.readouterr().err == warning
    assert json.loads((run / "environment.json").read_text())["versions"].keys() >= {"torch"}
    assert (run / "environment.damaged.json").read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"model: {class_path: Sim"])
def test_a_damaged_config_is_written_anew_from_the_checkpoint(
    run: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_bytes(content)
    assert start("--model.temperature", "0.3") == 2  # the checkpoint knows what it was
    assert (
        "another configuration (model.init_args.temperature: 0.2 there, 0.3 now)" in capsys.readouterr().err
    )
    assert (run / "config.yaml").read_bytes() == content
    assert start("--data.num_workers", "1", "--trainer.enable_progress_bar", "false") == 0
    warning = "warning: run/config.yaml is damaged: kept as config.damaged.yaml, rewritten\n"
    assert capsys.readouterr().err == warning
    assert yaml.safe_load((run / "config.yaml").read_text()) == before
    assert (run / "config.damaged.yaml").read_bytes() == content
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 8


@pytest.mark.parametrize("content", ["", "model: [", "name: of another program"])
def test_a_config_of_something_else_is_left_alone(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    (tmp_path / "run" / ".unsaved.tmp").touch()
    assert start() == 2
    expected = "error: run/config.yaml is not that of a run: --run_dir run is not a run folder\n"
    assert capsys.readouterr().err == expected
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".unsaved.tmp", "config.yaml"]


def test_a_full_disk_at_the_results(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no half of a file, and the next start makes the report."""
    run = shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "evaluate": True}))
    sync = os.fsync

    def full(number: int) -> None:
        if "results.json" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert start("--evaluate", "true") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.fullmatch(
        r"error: run/results\.json could not be written \(No space left on device\): [\d.]+ MB are free\. "
        r"there is no earlier one",
        lines[0],
    )
    assert not [p.name for p in run.iterdir() if "results" in p.name]
    assert start("--evaluate", "true") == 0
    assert json.loads((run / "results.json").read_text())["results"]["pretrained"]["linear_top1"] > 0.1


# ---- names and numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a::b", "s3://bucket/run", "gs://bucket", "file:///tmp/x", "sub/a::b/c"])
def test_an_address_is_no_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("--run_dir", name) == 2
    expected = (
        f"error: --run_dir {name}: expected a folder on this machine, and no '://' or '::' in its path\n"
    )
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_below_such_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a::b").mkdir()
    monkeypatch.chdir(tmp_path / "a::b")
    assert start() == 2
    assert "expected a folder on this machine" in capsys.readouterr().err


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lightning expands ``~`` for its own files: all of them have to be in one place."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunFolder.choose("~/run", "Digits", "SimCLR").path == tmp_path / "home" / "run"


def test_statistics_that_overflow_are_not_saved(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each batch is normalized by its own, so the loss is finite; every later start would fail."""
    losses = SimCLR.losses

    def overflow(self: Any, batch: Any) -> Any:
        if self.global_step == 6:
            next(b for n, b in self.named_buffers() if n.endswith("running_var")).fill_(float("inf"))
        return losses(self, batch)

    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "losses", overflow)
        assert start() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.fullmatch(
        r"error: encoder\.\S+running_var of SimCLR is not finite after step 8: learning rate [\d.e-]+\. "
        r"Training stopped; run/checkpoints/last\.ckpt is from an earlier step\. Try a lower learning rate, "
        r"a longer warm-up, --trainer\.gradient_clip_val 1, or --trainer\.precision 32-true",
        lines[0],
    )
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert start() == 0


def test_a_constant_that_is_infinite_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as a mask of attention."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.register_buffer("future", torch.full((2, 2), -torch.inf).triu(1))

    original = SimCLR.__init__
    build.__wrapped__ = original  # type: ignore[attr-defined]
    monkeypatch.setattr(SimCLR, "__init__", build)
    assert start("--trainer.max_epochs", "1") == 0
