"""How a run ends: with a validation, a record of who stopped it, and finished only when all is written."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from evaluation.callbacks import FeatureProbe
from runtime import main
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.resume import Killed

RUN = [
    *("--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--run_dir", "run"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_train_batches", "2", "--trainer.log_every_n_steps", "1"),
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def options(**values: Any) -> list[str]:
    """``--trainer.X v`` for each."""
    return [word for name, value in values.items() for word in (f"--trainer.{name}", str(value))]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ``max_time`` the first step takes an hour."""
    original = Timer.on_train_batch_end

    def on_train_batch_end(self: Any, *args: Any) -> None:
        self._offset = 3600
        original(self, *args)

    monkeypatch.setattr(Timer, "on_train_batch_end", on_train_batch_end)


@pytest.mark.parametrize(
    ("limits", "step"),
    [
        (options(max_epochs=3, check_val_every_n_epoch=10), 6),
        (options(max_steps=3, check_val_every_n_epoch=10), 3),  # inside an epoch
        (options(max_epochs=2, check_val_every_n_epoch="null", val_check_interval=100), 4),
        (options(max_time="00:00:30:00", check_val_every_n_epoch=10), 1),
    ],
    ids=["epochs", "steps", "validation by steps", "time"],
)
def test_a_run_is_validated_at_its_end(limits: list[str], step: int, slow: None) -> None:
    assert train.main([*RUN, *limits, "--evaluate", "false"]) == 0
    events = EventAccumulator("run")
    events.Reload()
    assert [event.step + 1 for event in events.Scalars("val/linear_top1")] == [step]
    assert "views" in events.Tags()["images"]
    assert read_checkpoint("run/checkpoints/best.ckpt")["global_step"] == step


EARLY = [
    *options(max_epochs=9, check_val_every_n_epoch=4, num_sanity_val_steps=0),
    *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"),
    *("--trainer.callbacks.mode=max", "--trainer.callbacks.patience=1"),
    "--trainer.callbacks.check_on_train_epoch_end=true",
]


@pytest.mark.parametrize(
    ("limits", "step"),
    [
        (options(max_steps=3, check_val_every_n_epoch=10), 3),
        pytest.param(options(max_time="00:00:30:00", check_val_every_n_epoch=10), 1, marks=pytest.mark.slow),
        pytest.param(options(max_steps=4, check_val_every_n_epoch=1), 4, marks=pytest.mark.slow),
        pytest.param(EARLY, 4, marks=pytest.mark.slow),
    ],
    ids=["steps", "time", "steps of whole epochs", "early stopping"],
)
def test_an_interrupted_validation_at_the_end_is_repeated(
    limits: list[str],
    step: int,
    slow: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where no step is left to train: by the next start, which ends as an undisturbed run does."""
    command = [*RUN, *limits, "--evaluate", "false"]
    original, told = SimCLR.validation_step, []

    def validation_step(self: Any, *args: Any) -> Any:
        if self.global_step == step and not told:
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "validation_step", validation_step)
        assert train.main(command) == 143
    last = Path("run/checkpoints/last.ckpt")
    assert read_checkpoint(last)["global_step"] == step
    assert train.main(command) == 0
    events = EventAccumulator("run")
    events.Reload()
    assert [event.step + 1 for event in events.Scalars("val/linear_top1")][-1] == step
    content = read_checkpoint(last)
    assert content["global_step"] == step
    assert train.main([*command, "--run_dir", "undisturbed"]) == 0
    other = read_checkpoint("undisturbed/checkpoints/last.ckpt")
    assert content["callbacks"]["Ending"] == other["callbacks"]["Ending"]
    for one, two in zip(content["state_dict"].values(), other["state_dict"].values(), strict=True):
        assert torch.equal(one, two)
    best = [
        read_checkpoint(f"{name}/checkpoints/best.ckpt")["global_step"] for name in ("run", "undisturbed")
    ]
    assert best[0] == best[1]
    capsys.readouterr()
    assert train.main(command) == 0
    assert capsys.readouterr().out.startswith("run is finished: ")


def test_an_interval_beyond_the_epoch_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*RUN, *options(max_epochs=1, val_check_interval=3)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --trainer.val_check_interval 3 is more than the 2 batches of an epoch: give 2 or less, "
        "--trainer.check_val_every_n_epoch N to validate after whole epochs, or "
        "--trainer.check_val_every_n_epoch null to count batches over epochs"
    )
    assert not Path("run").exists()


def test_a_run_of_limited_time_is_finished(slow: None, capsys: pytest.CaptureFixture[str]) -> None:
    limits = [*options(max_time="00:00:30:00"), "--evaluate", "false"]
    assert train.main([*RUN, *limits]) == 0
    assert "stopped early in step 1 (time limit reached)\n" in capsys.readouterr().out
    assert train.main([*RUN, *limits]) == 0
    expected = "run is finished: 1 epochs, 1 steps, stopped early (time limit reached). "
    assert capsys.readouterr().out.splitlines()[-1] == expected + "Results: run/results.json"


STOPPING = [
    *options(max_epochs=9, check_val_every_n_epoch=1, num_sanity_val_steps=0),
    "--trainer.callbacks+=EarlyStopping",
    *("--trainer.callbacks.monitor=val/linear_top1", "--trainer.callbacks.mode=max"),
    "--trainer.callbacks.patience=2",
]


def worse_each_time(self: Any, trainer: Any, module: Any) -> None:
    module.log("val/linear_top1", 1 / (1 + trainer.current_epoch))


def test_a_run_stopped_by_early_stopping_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was killed in its evaluation: the next start evaluates, and trains no more."""
    why = (
        "EarlyStopping: Monitored metric val/linear_top1 did not improve in the last 2 records. "
        "Best score: 1.000"
    )
    if not hasattr(EarlyStopping("x"), "stopping_reason_message"):  # lightning 2.5
        why = "EarlyStopping: val/linear_top1 did not improve in 2 checks"
    monkeypatch.setattr(FeatureProbe, "on_validation_epoch_end", worse_each_time)
    with monkeypatch.context() as patch:
        patch.setattr(main, "evaluate", None)  # fails
        with pytest.raises(TypeError):
            train.main([*RUN, *STOPPING])
    assert f"stopped early in step 6 ({why})\n" in capsys.readouterr().out
    assert train.main([*RUN, *STOPPING]) == 0
    out = capsys.readouterr().out
    assert "resuming after epoch 3, step 6\n" in out and f"stopped early in step 6 ({why})\n" in out
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 6
    assert train.main([*RUN, *STOPPING]) == 0
    expected = f"run is finished: 3 epochs, 6 steps, stopped early ({why}). Results: run/results.json"
    assert capsys.readouterr().out.splitlines() == [expected]


def test_a_run_stopped_by_a_training_metric_is_validated_in_its_last_epoch() -> None:
    """Such a metric is known at the end of the epoch, after the moment at which Lightning validates."""
    limits = options(max_epochs=9, check_val_every_n_epoch=4, num_sanity_val_steps=0)
    early = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
    early += ["--trainer.callbacks.mode=max", "--trainer.callbacks.patience=2", "--evaluate", "false"]
    early.append("--trainer.callbacks.check_on_train_epoch_end=true")
    assert train.main([*RUN, *limits, *early]) == 0
    content = read_checkpoint("run/checkpoints/last.ckpt")
    step = content["global_step"]
    assert step < 18 and content["callbacks"]["Ending"]["stopped"] is not None
    events = EventAccumulator("run")
    events.Reload()
    for name in ("val/linear_top1", "train/loss"):  # also the epoch's own values are still logged
        assert events.Scalars(name)[-1].step + 1 == step, name
    assert read_checkpoint("run/checkpoints/best.ckpt")["global_step"] == step


def test_early_stopping_waits_for_the_least_number_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureProbe, "on_validation_epoch_end", worse_each_time)
    least = ["--trainer.min_epochs", "5", "--evaluate", "false"]
    assert train.main([*RUN, *STOPPING, *least]) == 0
    content = read_checkpoint("run/checkpoints/last.ckpt")
    assert content["epoch"] == 4 and content["callbacks"]["Ending"]["stopped"] is not None


def test_a_run_without_its_hyper_parameters_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """``results.json`` is what finishes a run, so it is written last."""
    limits = options(max_epochs=1)

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(main, "log_results", killed)
        with pytest.raises(Killed):
            train.main([*RUN, *limits])
    assert not Path("run/results.json").exists()
    assert train.main([*RUN, *limits]) == 0
    assert json.loads(Path("run/results.json").read_text())["method"] == "SimCLR"
    events = EventAccumulator("run")
    events.Reload()
    assert any("hparams" in tag for tag in events.summary_metadata)
