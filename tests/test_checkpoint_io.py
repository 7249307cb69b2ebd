"""A checkpoint is whole or absent: killed, cut, changed, on a full disk, written in the background."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from datamodules.errors import ConfigError
from runtime.checkpoints import LAST, PREVIOUS, AtomicCheckpointIO, DamagedCheckpoint, read_checkpoint
from runtime.files import remove_leftovers
from runtime.folder import RunFolder
from runtime.signals import StopRequest
from runtime.stopping import Preemption


def content(value: float, tensors: int = 4, size: int = 5_000) -> dict[str, Any]:
    return {"state_dict": {f"w{i}": torch.full((size,), value) for i in range(tensors)}, "global_step": value}


def value_of(path: Path) -> float:
    """What ``content`` was made of; fails if the tensors are not all of one checkpoint."""
    read = read_checkpoint(path)
    assert all(torch.equal(w, torch.full_like(w, read["global_step"])) for w in read["state_dict"].values())
    return read["global_step"]


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """``last.ckpt`` of value 2 with ``previous.ckpt`` of value 1 beside it."""
    path = tmp_path / "checkpoints" / LAST
    for value in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint(content(value), path)
    return path


def names(path: Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()}


# ---- writing -----------------------------------------------------------------------------------------------


def test_the_one_before_is_kept_and_nothing_else(last: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(content(3.0), last)
    assert names(last) == {LAST, PREVIOUS}
    assert value_of(last) == 3.0 and value_of(last.with_name(PREVIOUS)) == 2.0


def test_on_a_file_system_without_hard_links(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    AtomicCheckpointIO().save_checkpoint(content(3.0), last)
    assert names(last) == {LAST, PREVIOUS}
    assert value_of(last) == 3.0 and value_of(last.with_name(PREVIOUS)) == 2.0


def test_synced_before_the_rename_and_the_folder_after_it(
    last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another order a power cut leaves an empty file under the good name."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        what = os.readlink(f"/proc/self/fd/{number}")
        calls.append("sync folder" if Path(what) == last.parent else "sync file")
        fsync(number)

    def note_replace(source: Any, target: Any) -> None:
        calls.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    AtomicCheckpointIO().save_checkpoint(content(3.0), last)
    assert calls == [
        "sync file",
        f"rename to {PREVIOUS}",
        "sync file",
        f"rename to {LAST}",
        "sync folder",
    ]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/1\n at"),
    ],
    ids=["system", "torch"],
)
def test_a_full_disk(error: Exception, last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays, the half-written one goes, and the line says how much room is needed."""

    def save(_: Any, file: Any) -> None:
        file.write(b"PK half of a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", save)
    size = r"about 0\.1 MB are needed, [\d.]+ MB are free"
    with pytest.raises(
        OSError, match=rf"last\.ckpt could not be written \((No space|Pytorch).*\): {size}.*is unchanged"
    ):
        AtomicCheckpointIO().save_checkpoint(content(3.0), last)
    assert names(last) == {LAST, PREVIOUS}
    assert value_of(last) == 2.0 and value_of(last.with_name(PREVIOUS)) == 1.0


def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty kills of a process that does nothing but save: both files whole each time, no step backwards,
    TMPDIR untouched.
    """
    elsewhere = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path / "tmp"
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    before = set(os.listdir(elsewhere))
    last, lot, reached, half_written = tmp_path / "checkpoints" / LAST, random.Random(0), 0.0, 0
    for value in (-2.0, -1.0):
        begin = time.monotonic()
        AtomicCheckpointIO().save_checkpoint(content(value, size=50_000), last)
        duration = time.monotonic() - begin
    for _ in range(40):
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            value = reached
            while True:
                value += 1.0
                AtomicCheckpointIO().save_checkpoint(content(value, size=50_000), last)
                os.write(begins, b".")
        os.read(begun, 1)  # a slow machine may take longer to start a process than to save
        time.sleep(lot.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(begins)
        half_written += bool(list(last.parent.glob(".*.tmp")))
        now, earlier = value_of(last), value_of(last.with_name(PREVIOUS))
        assert now >= reached or now < 0
        # killed between the two renames, both names are of the same file
        assert now - earlier in (0.0, 1.0) or earlier < 0 or earlier == reached
        reached = max(now, 0.0)
        remove_leftovers(last.parent)
        assert names(last) == {LAST, PREVIOUS}
    assert half_written > 0, "no kill met a save: the test says nothing"
    assert reached > 0
    assert set(os.listdir(elsewhere)) == before


# ---- reading -----------------------------------------------------------------------------------------------


def test_cut_anywhere(last: Path) -> None:
    whole = last.read_bytes()
    lot = random.Random(0)
    for length in {0, 1, 100, len(whole) - 1, *(lot.randrange(len(whole)) for _ in range(30))}:
        last.write_bytes(whole[:length])
        with pytest.raises(
            DamagedCheckpoint, match=r"last\.ckpt is (empty|truncated|damaged).*try .*previous\.ckpt"
        ):
            read_checkpoint(last)


def test_one_bit_changed_anywhere(last: Path) -> None:
    """It is noticed, or it was in a place that says nothing."""
    whole, sound, lot, noticed = last.read_bytes(), read_checkpoint(last), random.Random(0), 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[lot.randrange(len(whole))] ^= 1 << lot.randrange(8)
        last.write_bytes(changed)
        try:
            read = read_checkpoint(last)
        except DamagedCheckpoint:  # no other error: the run is to go on from the one before
            noticed += 1
        else:
            assert read["global_step"] == sound["global_step"]
            assert all(torch.equal(w, sound["state_dict"][k]) for k, w in read["state_dict"].items())
    assert noticed > 140  # tensors fill nearly all of the file


def test_no_code_is_run_from_a_checkpoint(last: Path) -> None:
    """Whatever the framework asks for."""
    torch.save({**content(3.0), "evil": Path("x")}, last)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(last, weights_only=False)


# ---- resuming ----------------------------------------------------------------------------------------------


def test_a_damaged_last_one_falls_back_and_says_so(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last.write_bytes(last.read_bytes()[:-1])
    folder = RunFolder(last.parent.parent)
    folder._read_newest()
    assert folder.resume == last.with_name(PREVIOUS) and folder.content["global_step"] == 1.0
    assert capsys.readouterr().err.startswith(f"warning: {last} is truncated")


def test_a_missing_last_one_falls_back(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As when a process was killed between two renames on a file system without hard links."""
    last.unlink()
    folder = RunFolder(last.parent.parent)
    folder._read_newest()
    assert folder.resume == last.with_name(PREVIOUS)
    assert not capsys.readouterr().err


def test_two_damaged_ones_are_refused(last: Path) -> None:
    """Starting again in silence would throw away weeks."""
    last.write_bytes(b"")
    last.with_name(PREVIOUS).write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"last\.ckpt is empty.* and .*previous\.ckpt is truncated.*: nothing is left"
    ):
        RunFolder(last.parent.parent)._read_newest()
    last.unlink()
    with pytest.raises(DamagedCheckpoint, match=r"previous\.ckpt is truncated"):
        RunFolder(last.parent.parent)._read_newest()


# ---- in the background -------------------------------------------------------------------------------------


class Slow(AtomicCheckpointIO):
    """Writes when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        assert self.go.wait(10)
        super().save_checkpoint(*args, **kwargs)


def test_the_background_writes_the_moment_of_the_save(tmp_path: Path) -> None:
    slow, now = Slow(), content(1.0)
    writer = AsyncCheckpointIO(slow)
    writer.save_checkpoint(now, tmp_path / LAST)
    for weight in now["state_dict"].values():  # training goes on
        weight.add_(1)
    slow.go.set()
    writer.teardown()
    assert value_of(tmp_path / LAST) == 1.0


@pytest.mark.parametrize("asked", [StopRequest.DUE, StopRequest.END])
def test_the_last_save_is_waited_for(
    asked: StopRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``saved`` is on the terminal only when it is true."""
    slow, last = Slow(), tmp_path / LAST
    writer, preemption = AsyncCheckpointIO(slow), Preemption(last)

    class Trainer:
        strategy = type("Strategy", (), {"checkpoint_io": writer})
        is_global_zero, global_step = True, 7

    preemption.request = asked
    writer.save_checkpoint(content(7.0), last)
    threading.Timer(0.2, slow.go.set).start()
    preemption._saved(Trainer())  # type: ignore[arg-type]
    assert last.exists() == (asked == StopRequest.END) == ("saved" in capsys.readouterr().out)
    writer.teardown()
    assert value_of(last) == 7.0


def test_a_failure_in_the_background_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    writer, preemption = AsyncCheckpointIO(AtomicCheckpointIO()), Preemption(tmp_path / LAST)

    class Trainer:
        strategy = type("Strategy", (), {"checkpoint_io": writer})
        is_global_zero, global_step = True, 7

    preemption.request = StopRequest.END
    with pytest.raises(OSError, match=r"could not be written .*there is no earlier one"):
        writer.save_checkpoint(content(7.0), tmp_path / LAST)  # or here, if the thread was quick
        preemption._saved(Trainer())  # type: ignore[arg-type]
