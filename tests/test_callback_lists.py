"""The callbacks of a run: what is listed is added, one of the same class replaces, each can be turned off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import LightningModule, Trainer

import train
from evaluation.callbacks import FeatureProbe
from runtime.callback_lists import EVERY_RUN, from_command_line, merge, turned_off
from runtime.callbacks import ProgressBar
from runtime.command_line import SSLCommandLine
from runtime.messages import ROOT
from runtime.saving import BestCheckpoint

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--run_dir", "run"]
QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--evaluate", "false"),
]
PROJECT = ["FeatureProbe", "CollapseMetrics", "ImageGrid", "Continuations", "Spectrograms"]
LAST = ["Ending", "BestCheckpoint", "LastCheckpoint", "Preemption"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def config(name: str, *callbacks: Any, key: str = "callbacks") -> list[str]:
    """A file that lists them, as arguments."""
    Path(name).write_text(json.dumps({"trainer": {key: list(callbacks)}}))
    return ["--config", name]


def names(*options: str) -> list[str]:
    return [type(c).__name__ for c in SSLCommandLine([*DIGITS, *options]).trainer.callbacks]


def error_of(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert train.main([*DIGITS, *QUICK, *options]) == 2
    assert not Path("run").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    return lines[0]


def test_what_is_listed_is_added() -> None:
    """By files, with either key, and by the command line."""
    files = [
        *config("a.yaml", "OnlineLinearProbe"),
        *config("b.yaml", "LearningRateMonitor", key="callbacks+"),
    ]
    line = ["--trainer.callbacks", "[DeviceStatsMonitor]", "--trainer.callbacks+=Timer"]
    added = ["OnlineLinearProbe", "LearningRateMonitor", "DeviceStatsMonitor", "Timer"]
    assert names(*files, *line) == [*PROJECT, *added, "Throughput", "FiniteLoss", "ProgressBar", *LAST]
    assert names("--trainer.callbacks", "null") == [
        *PROJECT,
        "Throughput",
        "FiniteLoss",
        "ProgressBar",
        *LAST,
    ]


def test_one_of_the_same_class_replaces() -> None:
    """The project's and an earlier file's, by whatever name; the run's own, too."""
    files = [
        *config("a.yaml", {"class_path": "FeatureProbe", "init_args": {"knn_k": 5}}, "Timer"),
        *config("b.yaml", {"class_path": "evaluation.callbacks.FeatureProbe", "init_args": {"l2": 0.5}}),
    ]
    line = ["--trainer.callbacks+=FiniteLoss", "--trainer.callbacks.max_skipped=3"]
    line += ["--trainer.callbacks+=BestCheckpoint", "--trainer.callbacks.monitor=val/knn_top1"]
    line += ["--trainer.callbacks.mode=max", "--trainer.callbacks+=TQDMProgressBar"]
    callbacks = {type(c).__name__: c for c in SSLCommandLine([*DIGITS, *files, *line]).trainer.callbacks}
    expected = [*PROJECT[1:], "Timer", "FeatureProbe", "FiniteLoss", "TQDMProgressBar", "Throughput", *LAST]
    assert list(callbacks) == expected
    assert (callbacks["FeatureProbe"].knn_k, callbacks["FeatureProbe"].l2) == (20, 0.5)
    assert callbacks["FiniteLoss"].max_skipped == 3
    assert callbacks["BestCheckpoint"].monitor == "val/knn_top1"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(c, marks=[pytest.mark.slow] if i % 3 else [])
        for i, c in enumerate([*PROJECT, *EVERY_RUN])
    ],
)
def test_each_of_the_projects_can_be_turned_off(name: str) -> None:
    everything = [*PROJECT, "Throughput", "FiniteLoss", "ProgressBar", *LAST]
    assert names("--disable_callbacks", name) == [other for other in everything if other != name]


def test_several_are_turned_off_in_a_file_or_with_commas() -> None:
    Path("off.yaml").write_text("disable_callbacks: [ImageGrid, CollapseMetrics]\n")
    for options in (["--config", "off.yaml"], ["--disable_callbacks", "ImageGrid,CollapseMetrics"]):
        assert names(*options)[:4] == ["FeatureProbe", "Continuations", "Spectrograms", "Throughput"]


def test_a_saved_config_lists_each_callback_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Given as ``--config`` it makes the same run, and goes on with the run that wrote it."""
    probe = {"class_path": "FeatureProbe", "init_args": {"knn_k": 5}}
    options = [*config("a.yaml", probe, "OnlineLinearProbe"), "--disable_callbacks", "ImageGrid"]
    assert train.main([*DIGITS, *QUICK, *options]) == 0
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    listed = [callback["class_path"] for callback in saved["trainer"]["callbacks"]]
    assert listed == ["CollapseMetrics", "Continuations", "Spectrograms", "FeatureProbe", "OnlineLinearProbe"]
    assert train.main(["--config", "run/config.yaml", "--run_dir", "again"]) == 0
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == saved
    capsys.readouterr()
    assert train.main(["--config", "run/config.yaml", "--run_dir", "run"]) == 0
    assert capsys.readouterr().out.startswith("run is finished: 2 epochs, 2 steps.")
    with pytest.raises(SystemExit):
        train.main(["--config", "run/config.yaml", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    # what is turned off is still shown, beside the switch
    assert [c["class_path"].rsplit(".")[-1] for c in shown["trainer"]["callbacks"]] == ["ImageGrid", *listed]


def test_a_second_checkpoint_works_beside_the_runs_own() -> None:
    plain = {"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": 1, "save_top_k": -1}}
    chosen = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/knn_top1", "filename": "knn"}}
    options = [*config("a.yaml", plain, chosen), "--trainer.check_val_every_n_epoch", "1"]
    assert train.main([*DIGITS, *QUICK, *options]) == 0
    found = {path.name for path in Path("run/checkpoints").iterdir()}
    assert found == {
        *("epoch=0-step=1.ckpt", "epoch=1-step=2.ckpt", "knn.ckpt"),
        *("best.ckpt", "last.ckpt", "previous.ckpt"),
    }


def test_without_its_probe_the_best_checkpoint_has_the_lowest_loss() -> None:
    options = ["--disable_callbacks", "FeatureProbe"]
    [best] = [
        c for c in SSLCommandLine([*DIGITS, *options]).trainer.callbacks if isinstance(c, BestCheckpoint)
    ]
    assert (best.monitor, best.mode) == ("val/loss", "min")
    assert train.main([*DIGITS, *QUICK, *options]) == 0
    assert Path("run/checkpoints/best.ckpt").is_file()


def test_the_best_checkpoint_waits_for_a_probe_that_passes_validations_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning would end the run at the first validation, where the probe logs nothing."""
    probe = ["--trainer.callbacks+=FeatureProbe", "--trainer.callbacks.every_n_validations=2"]
    assert train.main([*DIGITS, *QUICK, *probe, "--trainer.check_val_every_n_epoch", "1"]) == 0
    assert Path("run/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--disable_callbacks", "Imagegrid"],
            "error: --disable_callbacks Imagegrid (did you mean 'ImageGrid'?): expected one of "
            "FeatureProbe, CollapseMetrics, ImageGrid, Continuations, Spectrograms, Throughput, FiniteLoss, "
            "ProgressBar, BestCheckpoint, LastCheckpoint, Preemption",
        ),
        (
            ["--trainer.callbacks.knn_k=7"],
            "error: --trainer.callbacks.knn_k: give the callback first: --trainer.callbacks+=NAME "
            "--trainer.callbacks.knn_k=7",
        ),
        (
            ["--trainer.callbacks+=FeatureProbe", "--trainer.callbacks.knn_kk=7"],
            "error: --trainer.callbacks.knn_kk: FeatureProbe has no option 'knn_kk' (did you mean 'knn_k'?)",
        ),
        (
            ["--trainer.callbacks", "[{init_args: {knn_k: 7}}]"],
            "error: trainer.callbacks: expected a list of names or of mappings with class_path, got "
            "{'init_args': {'knn_k': 7}}",
        ),
        (
            ["--trainer.callbacks", "[Timer"],
            "error: --trainer.callbacks: '[Timer' is neither the name of a class nor YAML",
        ),
        (
            ["--trainer.callbacks", "[Timer, Timer]"],
            "error: trainer.callbacks: Timer is listed twice with the same settings (Timer): expected one, "
            "or several that differ in what they monitor",
        ),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *options) == line


def test_from_command_line() -> None:
    args = ["--model", "X", "--trainer.callbacks+", "A", "--trainer.callbacks.init_args.k", "1"]
    args += ["--trainer.callbacks=[B, {class_path: C, init_args: {n: 2}}]", "--trainer.callbacks.d.hours=3"]
    args += ["--trainer.max_epochs=1", "--trainer.callbacks.help"]
    specs, rest = from_command_line(args)
    assert specs == [
        {"class_path": "A", "init_args": {"k": "1"}},
        {"class_path": "B"},
        {"class_path": "C", "init_args": {"n": 2, "d": {"hours": "3"}}},
    ]
    assert rest == ["--model", "X", "--trainer.max_epochs=1", "--trainer.callbacks.help"]


def test_merge() -> None:
    a, b, other = {"class_path": "A", "init_args": {}}, {"class_path": "B"}, {"class_path": "A"}
    layers = [{"trainer": {"callbacks": [a, b]}}, {}, {"trainer": None}, {"trainer": {"callbacks": None}}]
    assert merge(layers) == [a, b]
    assert merge([*layers, {"trainer": {"callbacks+": [other, a]}}]) == [b, other, a]
    assert turned_off(None) == set() and turned_off(" ImageGrid, Throughput") == {"ImageGrid", "Throughput"}
    assert FeatureProbe.__name__ in turned_off(["evaluation.callbacks.FeatureProbe"])


@pytest.mark.parametrize(("epochs", "expected"), [(60, "Epoch 60/60"), (-1, "Epoch 60")])
def test_the_progress_bar_counts_epochs_from_one(epochs: int, expected: str) -> None:
    bar = ProgressBar()
    bar.setup(Trainer(max_epochs=epochs, logger=False, accelerator="cpu"), LightningModule(), "fit")
    assert bar._get_train_description(59).strip() == expected
