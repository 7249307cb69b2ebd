"""A monitored metric that is never logged ends a run before its first step, not after its first epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from datamodules.errors import ConfigError
from evaluation.callbacks import CollapseMetrics, FeatureProbe, OnlineLinearProbe
from runtime.messages import ROOT
from runtime.monitors import check_monitors
from tests.conftest import build

RUN = [
    *("--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--run_dir", "run"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--evaluate", "false"),
    *("--trainer.limit_train_batches", "2", "--trainer.max_epochs", "2"),
]
LOGGED = ["collapsed", "feature_std", "knn_top1", "linear_top1", "loss", "rankme", "uniformity"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def check(config: str, *callbacks: Callback, **attributes: Any) -> None:
    module, data = build(config)
    for name, value in attributes.items():
        setattr(data, name, value)
    check_monitors([FeatureProbe(), CollapseMetrics(), *callbacks], module, data)


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_an_unknown_metric_is_refused_before_anything_is_written(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor=val/linear_top5"]
    assert train.main([*RUN, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    val = ["alignment", *LOGGED[:3], "linear_top1", "loss", "rankme", "uniformity"]
    known = ["train/loss", *(f"val/{term}" for term in val)]
    assert lines == [
        f"error: trainer.callbacks: {name} monitors 'val/linear_top5', which this run does not log (did you "
        f"mean 'val/linear_top1'?); known: {', '.join(known)}"
    ]
    assert not Path("run/config.yaml").exists()


def test_what_is_known_is_logged() -> None:
    """Nothing that is let pass is missing later, and nothing that is logged is refused."""
    options = ["--trainer.callbacks+=OnlineLinearProbe", "--trainer.log_every_n_steps", "1"]
    config = "configs/text/bert.yaml"
    assert (
        train.main([*RUN, "--config", str(ROOT / config), *options, "--trainer.limit_val_batches", "2"]) == 0
    )
    events = EventAccumulator("run")
    events.Reload()
    only_logged = ("train/lr", "train/grad_norm")
    tags = [
        tag
        for tag in events.Tags()["scalars"]
        if tag.startswith(("train/", "val/")) and tag not in only_logged
    ]
    assert len(tags) > 8
    check(config, *(EarlyStopping(tag) for tag in tags))


@pytest.mark.parametrize(
    ("config", "monitor"),
    [
        ("configs/digits/vicreg.yaml", "val/variance"),
        ("configs/digits/vicreg.yaml", "train/variance"),
        ("configs/text/gpt.yaml", "val/bits_per_character"),
        ("configs/digits/gan.yaml", "train/generator"),
    ],
)
def test_terms_of_the_method_are_known(config: str, monitor: str) -> None:
    check(config, EarlyStopping(monitor), ModelCheckpoint(monitor=monitor), ModelCheckpoint(monitor="step"))


@pytest.mark.parametrize(
    ("config", "monitor"),
    [
        ("configs/digits/vicreg.yaml", "val/varianc"),
        ("configs/digits/vicreg.yaml", "train/online_top1"),  # without that probe
        ("configs/text/gpt.yaml", "val/accuracy"),
        ("configs/digits/simclr.yaml", "val_loss"),
    ],
)
def test_other_names_are_refused(config: str, monitor: str) -> None:
    with pytest.raises(ConfigError, match=f"monitors '{monitor}', which this run does not log"):
        check(config, EarlyStopping(monitor))
    check(config, EarlyStopping(monitor, strict=False))  # which waits for it


def test_probes_log_nothing_of_data_without_labels() -> None:
    check("configs/digits/simclr.yaml", OnlineLinearProbe(), EarlyStopping("train/online_top1"))
    for monitor in ("val/linear_top1", "train/online_top1"):
        with pytest.raises(ConfigError, match=f"monitors '{monitor}'"):
            check("configs/digits/simclr.yaml", OnlineLinearProbe(), EarlyStopping(monitor), num_classes=None)


class Mine(Callback):
    """A callback of a user's own: it may log anything."""


def test_a_users_own_callback_may_log_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """If it does not, the run ends in one line where Lightning finds out."""
    check("configs/digits/simclr.yaml", Mine(), EarlyStopping("val/mine"))
    options = ["--trainer.callbacks", "[tests.test_monitors.Mine]", "--trust_config_classes", "tests"]
    options += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/mine"]
    assert train.main([*RUN, *options, "--trainer.check_val_every_n_epoch", "1"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    expected = (
        "error: trainer.callbacks: EarlyStopping monitors 'val/mine', which has not been logged; logged: "
    )
    assert line.startswith(expected)
    assert sorted(line.removeprefix(expected).split(", "))[-3:] == [
        "val/loss",
        "val/rankme",
        "val/uniformity",
    ]
