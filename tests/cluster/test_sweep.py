"""The sweep: what it tries, what it compares, and that a worker that is stopped or killed loses nothing.

The runs are those of a stand-in for ``train.py`` that writes a curve; with ``-m slow`` two workers share real
runs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from datamodules.errors import ConfigError

pytest.importorskip("optuna", reason="pip install -e '.[sweep]'")
from optuna.trial import TrialState
from torch.utils.tensorboard import SummaryWriter

from cluster import sweep
from runtime.messages import ROOT

CONFIG = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
GRID = {"model.temperature": [0.1, 0.2, 0.5], "model.projector_out": [32, 64]}
RANGES = {
    "model.temperature": {"low": 0.1, "high": 1.0},
    "model.projector_out": {"low": 16, "high": 64},
    "model.optimizer.init_args.lr": {"low": 0.0001, "high": 0.1, "log": True},
}


class Child:
    """A run: its last validation tells its temperature. ``fate`` may end it otherwise."""

    started: ClassVar[list[list[str]]] = []
    fate: ClassVar[Any] = staticmethod(lambda child: 0)

    def __init__(self, command: list[str], **_: Any) -> None:
        self.options = dict(
            word.removeprefix("--").split("=", 1) for word in command if word.startswith("--") and "=" in word
        )
        self.run, self.signals = Path(self.options["run_dir"]), []
        Child.started.append(command)

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self) -> int:
        if status := Child.fate(self):
            return status
        with SummaryWriter(str(self.run)) as writer:
            for step in (1, 2):
                writer.add_scalar("val/linear_top1", step * float(self.options["model.temperature"]), step)
        return 0


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No scheduler, unchanged signal handlers, and no real runs."""
    handlers = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    for name in [n for n in os.environ if n.startswith(("SLURM_", "JOB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sweep.subprocess, "Popen", Child)
    Child.started, Child.fate = [], staticmethod(lambda child: 0)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def call(folder: Path, space: dict[str, Any] = GRID, *options: str, sampler: str = "grid") -> int:
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return sweep.main(
        [
            str(folder / "space.yaml"),
            "--study",
            str(folder / "study"),
            "--sampler",
            sampler,
            *CONFIG,
            *options,
        ]
    )


def trials(folder: Path, *states: TrialState) -> list[Any]:
    backend = sweep.JournalFileBackend(str(folder / "study" / "journal.log"))
    study = sweep.optuna.load_study(study_name="sweep", storage=sweep.JournalStorage(backend))
    return study.get_trials(states=states or None)


# ---- what is tried -----------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path) == 0
    tried = [(t.params["model.temperature"], t.params["model.projector_out"]) for t in trials(tmp_path)]
    assert sorted(tried) == [(t, p) for t in (0.1, 0.2, 0.5) for p in (32, 64)] and len(Child.started) == 6
    assert Child.started[0][:4] == [sys.executable, str(ROOT / "train.py"), *CONFIG]
    assert Child.started[0][4:6] == ["--model.temperature=0.1", "--model.projector_out=32"]
    assert Child.started[0][-1] == "--evaluate=false"  # the test split stays untouched
    out = capsys.readouterr().out
    assert re.search(
        r"^best so far: .*trial-000[45]  val/linear_top1 1\.0000 ", out, flags=re.M
    )  # the LAST value, at step 2
    assert (
        call(tmp_path) == 0 and len(Child.started) == 6
    )  # a second worker finds nothing left, and says the same
    assert "best so far" in capsys.readouterr().out


def test_a_report_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, {"model.temperature": [0.1, 0.2]}) == 0
    started = len(Child.started)
    capsys.readouterr()
    assert call(tmp_path, {"model.temperature": [0.1, 0.2]}, "--report") == 0
    assert len(Child.started) == started == 2 and "best so far: " in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    assert call(tmp_path / "new", {"model.temperature": [0.1]}, "--report") == 1 and len(Child.started) == 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_samplers_stay_in_their_ranges_and_end_at_the_number(tmp_path: Path, sampler: str) -> None:
    assert call(tmp_path, RANGES, "--trials", "5", sampler=sampler) == 0
    found = [t.params for t in trials(tmp_path, TrialState.COMPLETE)]
    assert len(found) == 5 == len({p["model.temperature"] for p in found})
    assert all(
        0.1 <= p["model.temperature"] <= 1 and 1e-4 <= p["model.optimizer.init_args.lr"] <= 0.1 for p in found
    )
    assert all(
        isinstance(p["model.projector_out"], int) and 16 <= p["model.projector_out"] <= 64 for p in found
    )
    assert call(tmp_path, RANGES, "--trials", "7", sampler=sampler) == 0  # more are asked for later
    assert len(trials(tmp_path)) == 7


def test_minimize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, {"model.temperature": [0.5, 0.1, 0.2]}, "--direction", "minimize") == 0
    assert "best so far: " in (out := capsys.readouterr().out) and '{"model.temperature": 0.1}' in out


def test_values_reach_the_command_line_as_yaml_has_them() -> None:
    values = {"a": None, "b": True, "c": [1, 2], "d": "cosine", "e": 1e-5}
    assert sweep.as_options(values) == ["--a=null", "--b=true", "--c=[1, 2]", "--d=cosine", "--e=1e-05"]


def test_a_run_that_fails_is_no_result_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Child.fate = staticmethod(lambda child: 2 if child.options["model.temperature"] == "0.1" else 0)
    assert call(tmp_path, {"model.temperature": [0.1, 0.2]}) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"trial-0000  failed \(exit status 2, see .*trial-0000\.log\)  model\.temperature=0\.1", out
    )
    assert [t.state for t in trials(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]
    Child.fate = staticmethod(lambda child: -9)
    assert call(tmp_path, {"model.temperature": [0.3]}, "--study", str(tmp_path / "other")) == 1
    assert "no trial of" in capsys.readouterr().err


def test_a_run_without_the_metric_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, {"model.temperature": [0.1]}, "--metric", "val/knn_top1") == 1
    assert "no val/knn_top1 was logged" in capsys.readouterr().out


# ---- stopped, killed, several workers ----------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_told_to_stop_leaves_its_run_to_the_next(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number == signal.SIGUSR1:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen: list[list[int]] = []

    def stopped(child: Child) -> int:
        if len(Child.started) != 2:
            return 0
        os.kill(os.getpid(), number)
        seen.append(child.signals)
        return 130 if number == signal.SIGINT else 143

    Child.fate = staticmethod(stopped)
    assert call(tmp_path) == (130 if number == signal.SIGINT else 143)
    assert len(Child.started) == 2
    assert seen == [[] if number == signal.SIGINT else [number]]  # the terminal gives Ctrl-C to both
    assert call(tmp_path, GRID, "--worker", "another") == 0
    assert len(Child.started) == 7
    again = [command for command in Child.started if command[-2] == Child.started[1][-2]]
    assert len(again) == 2 and again[0] == again[1]  # the same values in the same folder
    done = trials(tmp_path, TrialState.COMPLETE)
    assert len({tuple(t.params.values()) for t in done}) == len(done) == 6


def test_a_signal_before_there_is_a_run_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Child):
        def __init__(self, command: list[str], **options: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(command, **options)

    monkeypatch.setattr(sweep.subprocess, "Popen", Late)
    Child.fate = staticmethod(lambda child: 143 if child.signals == [signal.SIGTERM] else 0)
    assert call(tmp_path) == 143 and len(Child.started) == 1


def test_slurm_between_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run goes on, the run itself asks SLURM; between two, the worker has to."""
    asked: list[int] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(sweep, "requeue", lambda: asked.append(1))

    def fate(child: Child) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        return 0  # it had just ended

    Child.fate = staticmethod(fate)
    assert call(tmp_path) == 143 and asked == [1] and len(Child.started) == 1
    assert [t.state for t in trials(tmp_path)].count(TrialState.COMPLETE) == 1


def test_sigusr1_without_slurm_only_saves(tmp_path: Path) -> None:
    def fate(child: Child) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        return 0 if child.signals == [signal.SIGUSR1] else 1

    Child.fate = staticmethod(fate)
    assert call(tmp_path) == 0 and len(trials(tmp_path, TrialState.COMPLETE)) == 6


def test_a_killed_worker_takes_up_its_own_run_and_nobody_elses(tmp_path: Path) -> None:
    def killed(child: Child) -> int:
        raise KeyboardInterrupt  # nothing of the worker's own runs after a SIGKILL either

    Child.fate = staticmethod(killed)
    for worker in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path, GRID, "--worker", worker)
    Child.fate = staticmethod(lambda child: 0)
    assert call(tmp_path, GRID, "--worker", "a") == 0
    folders = [command[-2] for command in Child.started]
    assert (
        folders.count(folders[0]) == 2 and folders.count(folders[1]) == 1
    )  # b may still be at work on its own
    assert len(trials(tmp_path, TrialState.COMPLETE)) == 5
    assert call(tmp_path, GRID, "--worker", "b") == 0
    assert len(trials(tmp_path, TrialState.COMPLETE)) == 6


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "trial-0001/../../x", "", ["trial-0001"]])
def test_a_journal_does_not_say_where_runs_go(
    name: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise whoever can write to it could make a run write to any folder."""
    assert call(tmp_path, GRID, "--trials", "1") == 0
    storage = sweep.JournalStorage(sweep.JournalFileBackend(str(tmp_path / "study" / "journal.log")))
    study = sweep.optuna.load_study(study_name="sweep", storage=storage)
    study.enqueue_trial({"model.temperature": 0.1, "model.projector_out": 32}, user_attrs={"run": name})
    Child.started = []
    capsys.readouterr()
    assert call(tmp_path, GRID, "--trials", "2") == 2
    assert Child.started == []
    assert capsys.readouterr().err == (
        f"error: --study {tmp_path / 'study'}: trial 6 names the run {str(name)!r}, expected one such as "
        "trial-0000: the journal was changed; begin a new study\n"
    )


def test_names_of_workers_survive_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(os.getpid()) in sweep.worker_name()
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert sweep.worker_name() == "3"
    for name, value in {"JOB_ID": "12", "ARRAY_JOB_ID": "10", "ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert sweep.worker_name() == "10_2"


# ---- one line for what cannot work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected lines such as"),
        ("a: [1", "cannot be read as YAML"),
        ("model.temperature: 0.1", "model.temperature: expected a list of values or {low, high"),
        ("model.temperature: {low: 0.1}", "expected a list of values or {low, high"),
        ("model.temperature: {low: 0.1, high: 1, by: 2}", "expected a list of values or {low, high"),
        ("model.temperature: {low: 0.1, high: 1}", "a grid takes a list of values"),
    ],
)
def test_a_space_that_cannot_be_read(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(text)
    command = [str(tmp_path / "space.yaml"), "--study", str(tmp_path / "study"), "--sampler", "grid", *CONFIG]
    assert sweep.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error and "space.yaml" in error
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{low: small, high: 1e-2, log: true}", "expected numbers such as 0.0001 or 1e-4"),
        ("{low: 2, high: 1}", "expected low < high"),
        ("{low: 0, high: 1, log: true}", "low > 0 with log"),
    ],
)
def test_a_range_that_is_none(tmp_path: Path, values: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(f"model.temperature: {values}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        sweep.read_space(tmp_path / "space.yaml", "tpe")


def test_what_train_refuses_begins_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, {"model.temprature": [0.1]}) == 2
    assert "did you mean 'temperature'?" in capsys.readouterr().err
    assert call(tmp_path, GRID, "--trainer.max_epoch", "3") == 2
    assert "max_epochs" in capsys.readouterr().err
    assert call(tmp_path, GRID, "--metric", "test/linear_top1") == 2
    assert "never on test" in capsys.readouterr().err
    assert not (tmp_path / "study").exists() and not Child.started


def test_another_sweep_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, {"model.temperature": [0.1]}) == 0
    assert call(tmp_path, {"model.temperature": [0.2]}) == 2
    assert "holds another sweep (space: " in capsys.readouterr().err
    assert call(tmp_path, {"model.temperature": [0.1]}, "--trainer.max_epochs", "3") == 2
    assert "holds another sweep (options: " in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert call(tmp_path, {"model.temperature": [0.1]}, "--study", str(tmp_path / "file")) == 2
    assert "file cannot be made" in capsys.readouterr().err


def test_several_tasks_of_a_job_are_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert call(tmp_path) == 2
    assert "this SLURM job has 8: give sbatch --array=0-7" in capsys.readouterr().err


def test_the_shown_space_is_one() -> None:
    space = sweep.read_space(ROOT / "cluster" / "sweep.yaml", "tpe")
    first = {k: v[0] if isinstance(v, list) else v["low"] for k, v in space.items()}
    from runtime.command_line import CheckedCommandLine

    CheckedCommandLine([*CONFIG, *sweep.as_options(first)])


# ---- for real ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_share_real_runs_and_one_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "space.yaml").write_text("model.temperature: [0.1, 0.2, 0.5]\n")
    (tmp_path / "quick.yaml").write_text(
        "trainer: {accelerator: cpu, max_epochs: 6, check_val_every_n_epoch: 6, enable_progress_bar: false}\n"
    )
    options = ["--study", "study", "--sampler", "grid", *CONFIG, "--config", "quick.yaml"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "PL_"))} | {
        "PYTHONPATH": str(ROOT)
    }
    env["OMP_NUM_THREADS"] = "1"

    def worker() -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "cluster" / "sweep.py"), "space.yaml", *options]
        return subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    one = worker()
    from tests.cluster.slurm import wait_for

    first = tmp_path / "study" / "trial-0000" / "checkpoints" / "last.ckpt"
    wait_for("the first run", first.is_file, 120, lambda: str(one.poll()))
    two = worker()
    one.send_signal(signal.SIGTERM)
    told = [one.communicate(timeout=180)[0], two.communicate(timeout=180)[0]]
    assert (one.returncode, two.returncode) == (143, 0), told
    done = trials(tmp_path, TrialState.COMPLETE)
    assert sorted(t.params["model.temperature"] for t in done) == [0.1, 0.2, 0.5]
    log = (tmp_path / "study" / "trial-0000.log").read_text()
    assert "asked to end" in log and "resuming after epoch" in log
    assert not list((tmp_path / "study").rglob("results.json"))
