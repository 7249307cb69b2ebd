"""A loss or gradient that is NaN or infinite: one line, and no spoilt weights or checkpoints
by it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import train
from datamodules.errors import ConfigError
from runtime import callbacks as monitoring
from runtime.callbacks import FiniteLoss
from runtime.checkpoints import load_module, read_checkpoint
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.conftest import build, trainer_for

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--trainer.max_epochs", "3"]
DIGITS += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def poison(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> dict[str, Any]:
    """Make SimCLR's loss, or only its gradient, not finite at the given step; returns what the weights were
    before it.
    """
    original = SimCLR.losses
    before: dict[str, Any] = {}

    def losses(self: Any, batch: Any) -> dict[str, Tensor]:
        terms = original(self, batch)
        if self.training and self.global_step + 1 == step:
            before["module"] = self
            before["weights"] = {k: v.clone() for k, v in self.state_dict().items()}
            bad = next(p for p in self.parameters() if p.requires_grad).flatten()[0]
            if how == "gradient":  # the square root of 0 has an infinite slope; 0 times infinity is NaN
                terms["loss"] = terms["loss"] + ((bad - bad).square().sum().sqrt())
            else:
                terms["loss"] = terms["loss"] * float(how)
        return terms

    monkeypatch.setattr(SimCLR, "losses", losses)
    return before


def assert_untouched(before: dict[str, Any]) -> None:
    """The weights are those of before the step; running statistics of batch norm have seen its batch."""
    after = before["module"].state_dict()
    assert all(
        torch.equal(after[name], before["weights"][name]) for name, _ in before["module"].named_parameters()
    )


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the second epoch of four steps: one line, status 2, and the checkpoint of the first epoch."""
    before = poison(monkeypatch, step=6, how="nan")
    assert train.main([*DIGITS, "--run_dir", "run", "--trainer.limit_val_batches", "0"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and error.startswith("error: the loss is nan in step 6 (epoch 2): ")
    assert re.search(r"learning rate 0\.00\d+, gradient norm nan \([\d.]+ in the step before\)", error)
    assert "run/checkpoints/last.ckpt is from an earlier step" in error
    assert_untouched(before)
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 4
    assert all(v.isfinite().all() for v in load_module("run/checkpoints/last.ckpt").state_dict().values())


def fit(folder: Path, *more: Any, **options: Any) -> Any:
    """Three epochs of four steps, with the project's checkpoint of every epoch."""
    module, data = build("configs/digits/simclr.yaml", "--data.batch_size", "128")
    checkpoint = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks = [FiniteLoss(folder / "last.ckpt"), *more, checkpoint]
    defaults = {"max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": callbacks}
    trainer = trainer_for(folder, **{**defaults, **options})
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize(
    ("how", "what"), [("inf", "loss is inf"), ("gradient", r"loss is finite \(.+\) but its gradient is not")]
)
def test_infinity_and_a_gradient_alone(
    how: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = poison(monkeypatch, step=1, how=how)
    with pytest.raises(
        ConfigError, match=rf"the {what} in step 1 \(epoch 1\): .*no checkpoint has been written yet"
    ):
        fit(tmp_path)
    assert_untouched(before)


class Event:
    """Stands for a copy that is under way. On a CUDA device it has happened by the time that it was waited
    for.
    """

    def __init__(self, values: Tensor) -> None:
        self.host, self.values = torch.full_like(values, 1.0), values.clone()

    def synchronize(self) -> None:
        self.host.copy_(self.values)


@pytest.fixture
def delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: numbers that are looked at without waiting for their event look finite, whatever they
    are.
    """

    def to_host(values: Tensor) -> tuple[Tensor, Any]:
        event = Event(values)
        return event.host, event

    monkeypatch.setattr(monitoring, "_to_host", to_host)


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_on_cuda_it_is_seen_one_step_later(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    poison(monkeypatch, 6, how)
    steps: list[int] = []
    original = SimCLR.on_train_batch_start
    monkeypatch.setattr(
        SimCLR,
        "on_train_batch_start",
        lambda self, *a: (steps.append(self.global_step + 1), original(self, *a))[1],
    )
    with pytest.raises(
        ConfigError, match=r"in step 6 \(epoch 2\).*gradient norm nan \([\d.]+ in the step before\)"
    ):
        fit(tmp_path)
    assert steps[-1] == 7
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("how", ["nan", "gradient"])
@pytest.mark.parametrize("kind", ["epoch", "validation", "step", "weights"])
def test_no_checkpoint_is_written_of_a_step_that_nobody_has_looked_at(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last step of the second epoch: its numbers are still on their way when the epoch's checkpoint is
    due.
    """
    poison(monkeypatch, 8, how)
    more, options = [], {}
    if kind == "validation":
        options = {"limit_val_batches": 1}
        more = [
            ModelCheckpoint(
                tmp_path, "val", mode="max", save_on_train_epoch_end=False, save_weights_only=True
            )
        ]
    if kind == "weights":
        more = [
            ModelCheckpoint(
                tmp_path, "weights", mode="max", save_on_train_epoch_end=True, save_weights_only=True
            )
        ]
    if kind == "step":
        more = [ModelCheckpoint(tmp_path, "step", every_n_train_steps=1, enable_version_counter=False)]
    with pytest.raises(ConfigError, match="in step 8 "):
        fit(tmp_path, *more, **options)
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == (1 if kind == "epoch" else 2)
    for path in checkpoints:
        content = read_checkpoint(path)
        assert content["global_step"] == (7 if path.stem == "step" else 4)
        assert all(v.isfinite().all() for v in content["state_dict"].values())


def test_one_bad_batch_of_several_that_are_accumulated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    original = SimCLR.losses

    def losses(self: Any, batch: Any) -> dict[str, Tensor]:
        calls.append(1)
        return {"loss": original(self, batch)["loss"] * (float("nan") if len(calls) == 3 else 1.0)}

    monkeypatch.setattr(SimCLR, "losses", losses)
    with pytest.raises(ConfigError, match=r"the loss is nan in step 2 \(epoch 1\)"):
        fit(tmp_path, accumulate_grad_batches=2)
    assert len(calls) == 4  # all of the step, so that the processes of a run stop at the same one


def test_nothing_changes_in_a_run_that_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = fit(tmp_path / "a").lightning_module.state_dict()
    monkeypatch.setattr(FiniteLoss, "on_before_backward", lambda *a: None)
    without = fit(tmp_path / "b").lightning_module.state_dict()
    assert all(torch.equal(with_it[k], without[k]) for k in with_it)


def test_infinite_gradients_are_the_gradient_scalers_matter(tmp_path: Path) -> None:
    """With 16-mixed it skips such steps and lowers its scale; a loss that is NaN is an error there too."""
    stopped = FiniteLoss(tmp_path / "last.ckpt")
    trainer = type(
        "Trainer", (), {"precision_plugin": type("Plugin", (), {"scaler": object()}), "loggers": []}
    )()
    for values, fine in (([1.0, float("inf")], True), ([float("nan"), 1.0], False)):
        reading = monitoring._Reading(1, 1, 0, 0.1, torch.tensor(values), None)
        if fine:
            stopped._look(reading, trainer)
        else:
            with pytest.raises(ConfigError, match="the loss is nan"):
                stopped._look(reading, trainer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = torch.nn.Linear(8, 8, device="cuda")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    watch = FiniteLoss(tmp_path / "last.ckpt")
    of_trainer = {"precision_plugin": None, "global_step": 0, "current_epoch": 0, "optimizers": [optimizer]}
    trainer: Any = type("Trainer", (), {**of_trainer, "log_every_n_steps": 50})()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            trainer.global_step = step
            watch.on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
            loss = module(torch.ones(2, 8, device="cuda")).square().sum()
            optimizer.zero_grad()
            loss.backward()
            watch.on_before_backward(trainer, None, loss * (float("nan") if step == 2 else 1.0))  # type: ignore[arg-type]
            if step == 3:
                with pytest.raises(ConfigError, match="in step 3 "):
                    watch.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
            else:
                watch.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
