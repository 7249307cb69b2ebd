"""Stopped inside an epoch and resumed, every method ends as if nothing had been: bit for bit, through
``train.main``.

Compared are the samples, labels and views of each batch, each loss, and at the end weights and buffers
(teacher, queue, center, prototypes), optimizer, schedule, the online probe with its optimizer, and every
logged curve.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import Digits
from evaluation.callbacks import FeatureProbe
from runtime.messages import ROOT
from tests.conftest import CONFIGS, EMBEDDED
from tests.pair import said, start, wait
from tests.resume import STOP_AT, Killed, best, check, run, three_runs

#: Every method has a config here: tests/test_contract.py sees to it.
NO_DOWNLOAD = [config for config in CONFIGS if config.split("/")[1] in EMBEDDED]
QUICK = "configs/digits/moco.yaml"  # a teacher, a queue, and a schedule
each = pytest.mark.parametrize(
    "config", [c if c == QUICK else pytest.param(c, marks=pytest.mark.slow) for c in NO_DOWNLOAD]
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_RUN_DIR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(ROOT)


@each
def test_exact(config: str, tmp_path: Path) -> None:
    check(three_runs(config, tmp_path, []), tmp_path, stopped_after=STOP_AT)


@pytest.mark.slow
@pytest.mark.parametrize("config", NO_DOWNLOAD)
def test_exact_with_two_workers(config: str, tmp_path: Path) -> None:
    """They have fetched ahead when the run is stopped: what they hold is fetched again."""
    check(three_runs(config, tmp_path, ["--data.num_workers", "2"]), tmp_path, stopped_after=STOP_AT)


@pytest.mark.slow
@pytest.mark.parametrize("config", NO_DOWNLOAD)
def test_exact_with_accumulated_gradients(config: str, tmp_path: Path) -> None:
    """Asked between the two batches of a step, the run makes the step first: gradients are in no
    checkpoint.
    """
    options = ["--trainer.accumulate_grad_batches", "2"]
    if config.endswith("gan.yaml"):
        assert (
            run(config, tmp_path / "run", options)[0] == 2
        )  # it has two optimizers, and Lightning cannot accumulate then
        return
    check(three_runs(config, tmp_path, options), tmp_path, stopped_after=STOP_AT + 1)


@pytest.fixture(scope="module")
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All asked configs in one pair of processes: starting a pair for each would take most of the time."""
    items = [i for i in request.session.items if i.name.startswith("test_exact_in_two_processes")]
    asked = list(dict.fromkeys(i.callspec.params["config"] for i in items))  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("pairs")
    wait(
        start([[sys.executable, "-m", "tests.resume", str(folder), *asked]] * 2, folder, ROOT),
        60 + 60 * len(asked),
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", NO_DOWNLOAD)
def test_exact_in_two_processes(config: str, pairs: Path) -> None:
    """One of the two gets the signal, and both stop after the next batch."""
    place = pairs / config.replace("/", "_")
    for rank in range(2):
        file = place / f"seen.{rank}.pt"
        assert file.is_file(), said(pairs)[-3000:]
        check(torch.load(file, weights_only=True), place, stopped_after=STOP_AT + 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Options and folder of a run of three epochs, each with a worse score than the one before."""
    options = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "1"]
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureProbe, "on_validation_epoch_end", worse_each_time)
        assert run(QUICK, folder, options)[0] == 0
    return options, folder


def worse_each_time(self: Any, trainer: Any, module: Any) -> None:
    module.log("val/linear_top1", 1 / (1 + trainer.current_epoch))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_best_epoch_is_not_forgotten(
    epoch: int, undisturbed: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch is the best. A run that is killed in any of them still has its weights at the end,
    also if its folder has moved meanwhile.
    """
    monkeypatch.setattr(FeatureProbe, "on_validation_epoch_end", worse_each_time)
    options, folder = undisturbed
    with pytest.raises(Killed):
        run(QUICK, tmp_path / "run", options, killed_in=epoch)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert run(QUICK, moved, options)[0] == 0
    assert best(moved) == best(folder) and best(folder)[0] == 1


# ---- what would not be exact -------------------------------------------------------------------------------


def modified(folder: Path) -> dict[Path, int]:
    """When each file was last written; but for the lock, which names its last holder."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


def test_another_batch_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order of samples would change within the run. The folder is unchanged, and continues with what it
    began with.
    """
    assert run(QUICK, tmp_path / "run", [], stop=True)[0] == 143
    before = modified(tmp_path / "run")
    for option, expected, value in (
        ("--data.batch_size", "data.init_args.batch_size: 16 there, 8 now", "8"),
        ("--trainer.devices", "trainer.devices: 'auto' there, '2' now", "2"),
        ("--trainer.accumulate_grad_batches", "trainer.accumulate_grad_batches: 1 there, 2 now", "2"),
    ):
        capsys.readouterr()
        assert run(QUICK, tmp_path / "run", [option, value])[0] == 2
        assert expected in capsys.readouterr().err
    assert modified(tmp_path / "run") == before


def test_another_number_of_processes_is_refused() -> None:
    """Also if the configuration does not show it: `devices: auto` on a machine of another size."""
    data = Digits(batch_size=16)
    data.load_state_dict({"batch_size": 16, "world_size": 1})
    with pytest.raises(
        ValueError, match="written with batch_size 16 on 4 processes, now it is 16 on 1: the order of samples"
    ):
        data.load_state_dict({"batch_size": 16, "world_size": 4})
