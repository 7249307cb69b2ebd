"""Faults of what a run resumes from: damaged and foreign checkpoints, changed options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import DataFileError
from runtime.checkpoints import load_module, read_checkpoint
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.faults.bench import Bench, row


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
    bench.refused(*byol, because="contains a run of SimCLR, not of BYOL")
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
    bench.refused(because="projector.0.weight was (128, 127), is (128, 128)")


@row(30, "checkpoint with weights only")
def _(bench: Bench) -> None:
    content = half_done(bench)
    content.pop("optimizer_states")
    torch.save(content, bench.last)
    bench.refused(because="contains only weights and cannot be resumed")


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
