"""Search for settings: any number of workers share one study in a folder, without a database.

    python cluster/sweep.py cluster/sweep.yaml --study DIR --config configs/digits/simclr.yaml
    python cluster/sweep.py cluster/sweep.yaml --study DIR --sampler random --trials 50 --config ...

Start the same command as often as there are devices, on machines that share DIR; under SLURM as the array
that cluster/slurm.sbatch shows. Each trial is a run of train.py in DIR/trial-NNNN with its log beside it.
What is compared is the last value of ``--metric`` in the run's TensorBoard events, which comes from the
validation split; the test split is not touched. A trial that was stopped is taken up again in its folder by
the next free worker. Optuna comes with ``pip install -e '.[sweep]'``.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.errors import ConfigError

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it runs from a clone without installing

from evaluation.comparison import find_runs, table
from evaluation.tables import counted, print_table
from runtime.messages import ROOT
from runtime.signals import requeue, slurm_job
from runtime.strict_yaml import read_yaml

#: Exit statuses of train.py when it was asked to stop and has saved.
STOPPED = (130, 143)


def read_space(path: Path, sampler: str) -> dict[str, Any]:
    """The space of ``path``: option -> list of values, or {low, high[, log][, step]}.

    Raises:
        ConfigError: not such a file, or a range for a grid.
    """
    try:
        space = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read as YAML ({why}): expected lines such as model.temperature: [0.1, 0.2]"
        ) from None
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"{path}: expected lines such as model.temperature: [0.1, 0.2]")
    for name, values in space.items():
        is_range = isinstance(values, dict) and {"low", "high"} <= set(values) <= {
            "low",
            "high",
            "log",
            "step",
        }
        if not is_range and not (isinstance(values, list) and values):
            raise ConfigError(
                f"{path}: {name}: expected a list of values or {{low, high[, log][, step]}}, got {values!r}"
            )
        if is_range and sampler == "grid":
            raise ConfigError(f"{path}: {name}: a grid takes a list of values, got {values!r}")
        ends = (values["low"], values["high"]) if is_range else (0, 1)
        if not all(isinstance(end, (int, float)) for end in ends):
            raise ConfigError(
                f"{path}: {name}: expected numbers such as 0.0001 or 1e-4 for low and high, got {values!r}"
            )
        if ends[0] >= ends[1] or (is_range and values.get("log") and ends[0] <= 0):
            raise ConfigError(f"{path}: {name}: expected low < high, and low > 0 with log, got {values!r}")
    return space


def suggest(trial: Trial, name: str, values: Any) -> Any:
    """The trial's value of one option."""
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, **values)


def as_options(values: dict[str, Any]) -> list[str]:
    """Values as train.py's options, words as they are and all else as YAML has it."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    ]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One worker at a time: what it reads of the study stays true while it decides."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Worker:
    """One of the processes that work on a study.

    Args:
        args: of the command line.
        options: for train.py, the same in all trials.
    """

    def __init__(self, args: argparse.Namespace, options: list[str]) -> None:
        self.args, self.options, self.folder = args, options, args.study
        self.space = read_space(args.space, args.sampler)
        self.child: subprocess.Popen[bytes] | None = None
        self.told_to_stop = 0  # by this signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self.receive)
        from runtime.command_line import CheckedCommandLine  # with torch: a signal in these seconds is heard

        first = {
            name: values[0] if isinstance(values, list) else values["low"]
            for name, values in self.space.items()
        }
        CheckedCommandLine([*options, *as_options(first)])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--study {self.folder} cannot be made ({error.strerror}): expected a folder"
            ) from None
        with alone(self.folder):
            self.study = self.open_study()
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                if trial.user_attrs.get("worker") == args.worker:  # it was killed
                    self.set_aside(trial)

    def open_study(self) -> optuna.Study:
        args, grid = self.args, self.args.sampler == "grid"
        settings = {
            "space": self.space,
            "options": self.options,
            "metric": args.metric,
            "sampler": args.sampler,
        }
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.folder / "journal.log"))),
            study_name="sweep",
            direction=args.direction,
            sampler=optuna.samplers.TPESampler(multivariate=True)
            if args.sampler == "tpe"
            else optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        if not study.user_attrs:
            for name, value in settings.items():
                study.set_user_attr(name, value)
            if grid:
                for values in itertools.product(*self.space.values()):
                    study.enqueue_trial(dict(zip(self.space, values, strict=True)))
        for name, value in settings.items():
            if study.user_attrs.get(name) != value:
                raise ConfigError(
                    f"--study {self.folder} holds another sweep ({name}: {study.user_attrs.get(name)} "
                    f"there, {value} now): "
                    "repeat its command, or choose another folder"
                )
        return study

    def receive(self, number: int, _: Any) -> None:
        """Pass a signal on to the run. Not Ctrl-C: the terminal gives it to both, and a second one means at
        once.
        """
        if number in (signal.SIGINT, signal.SIGTERM) or "SLURM_JOB_ID" in os.environ:
            self.told_to_stop = number
        if self.child is not None and number != signal.SIGINT:
            self.child.send_signal(number)

    def set_aside(self, trial: Trial | FrozenTrial) -> None:
        """End a trial that was stopped, and queue its values for whoever is free, to go on in the same
        folder.
        """
        attributes = {"run": trial.user_attrs["run"]} if "run" in trial.user_attrs else {}
        self.study.enqueue_trial(trial.params, user_attrs=attributes)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def run_of(self, trial: Trial | FrozenTrial) -> Path:
        """The folder of a trial's run. The journal names it, and whoever writes there could name any other.

        Raises:
            ConfigError: it is not one that ``take`` gives.
        """
        name = str(trial.user_attrs["run"])
        if not re.fullmatch(r"trial-\d{4,}", name):
            raise ConfigError(
                f"--study {self.folder}: trial {trial.number} names the run {name!r}, expected one such as "
                "trial-0000: the journal was changed; begin a new study"
            )
        return self.folder / name

    def take(self) -> Trial | None:
        """The next trial, or None if the study has all that were asked for."""
        with alone(self.folder):
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(t.state == TrialState.WAITING for t in trials)
            taken = len(
                {str(t.user_attrs.get("run")) for t in trials if t.state != TrialState.WAITING}
            )  # set aside: the same run
            if not waiting and (self.args.sampler == "grid" or taken >= self.args.trials):
                return None
            trial = self.study.ask()
            trial.set_user_attr("worker", self.args.worker)
            if "run" not in trial.user_attrs:
                trial.set_user_attr("run", f"trial-{trial.number:04d}")
            for name, values in self.space.items():
                suggest(trial, name, values)
            return trial

    def work(self) -> int:
        """Runs trials until none is left or a signal asks to stop; returns the exit status."""
        while not self.told_to_stop and (trial := self.take()) is not None:
            status = self.train(trial)
            if status in STOPPED or (status and self.told_to_stop):
                with alone(self.folder):
                    self.set_aside(trial)
                return status
            self.tell(trial, status)
        if not self.told_to_stop:
            return self.report()
        if self.told_to_stop in (
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):  # between two trials: a run would have done this itself
            requeue()
        return 130 if self.told_to_stop == signal.SIGINT else 143

    def train(self, trial: Trial) -> int:
        """Run a trial; returns the exit status of train.py."""
        run = self.run_of(trial)
        own = [*as_options(trial.params), f"--run_dir={run}", "--evaluate=false"]
        with Path(f"{run}.log").open("ab") as log:
            command = [sys.executable, str(ROOT / "train.py"), *self.options, *own]
            self.child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            if self.told_to_stop:  # before there was a run to tell
                self.child.send_signal(self.told_to_stop)
            status = self.child.wait()
        self.child = None
        return status if status >= 0 else 128 - status

    def tell(self, trial: Trial, status: int) -> None:
        """Enter the trial's score into the study, or that it has none."""
        run = self.run_of(trial)
        value = last_value(run, self.args.metric) if status == 0 else None
        settings = " ".join(f"{name}={value}" for name, value in trial.params.items())
        if value is None:
            reason = (
                f"exit status {status}"
                if status
                else f"no {self.args.metric} was logged: validate in the last epoch"
            )
            print(f"{run.name}  failed ({reason}, see {run}.log)  {settings}", flush=True)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            print(f"{run.name}  {self.args.metric} {value:.4f}  {settings}", flush=True)
            self.study.tell(trial, value)

    def report(self) -> int:
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            print(f"error: no trial of {self.folder} came to an end: see the logs there", file=sys.stderr)
            return 1
        best = self.study.best_trial
        run = self.run_of(best)
        if any(self.folder.glob("*/config.yaml")):
            runs, _ = find_runs([str(self.folder)])
            headings, _ = table(runs)
            sort = self.args.metric if self.args.metric in headings else None
            print_table(counted(len(runs), "run"), *table(runs, sort))
        print(f"best so far: {run}  {self.args.metric} {best.value:.4f}  {json.dumps(best.params)}")
        print(f"on the test split, once: python eval.py {run}")
        return 0


def last_value(run: Path, metric: str) -> float | None:
    """The last value of a TensorBoard curve, over all restarts of the run; None if there is no such curve."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    if metric not in events.Tags()["scalars"]:
        return None
    return max(events.Scalars(metric), key=lambda event: (event.step, event.wall_time)).value


def worker_name() -> str:
    """The same after a restart where the scheduler gives a name, so that what the worker left behind is taken
    up again.
    """
    if "SLURM_JOB_ID" in os.environ:
        return slurm_job()
    if "JOB_COMPLETION_INDEX" in os.environ:  # of a Kubernetes Job
        return os.environ["JOB_COMPLETION_INDEX"]
    return f"{socket.gethostname()}-{os.getpid()}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sweep.py", allow_abbrev=False, epilog="All other options are train.py's."
    )
    parser.add_argument("space", type=Path, help="YAML file of what is varied, see cluster/sweep.yaml")
    parser.add_argument(
        "--study", type=Path, required=True, help="folder of the study, the same for all workers"
    )
    parser.add_argument(
        "--sampler", choices=("tpe", "random", "grid"), default="tpe", help="default tpe (Bayesian)"
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="of all workers together; a grid has its own number"
    )
    parser.add_argument(
        "--metric", default="val/linear_top1", help="a TensorBoard tag; default val/linear_top1"
    )
    parser.add_argument("--direction", choices=("maximize", "minimize"), default="maximize")
    parser.add_argument(
        "--worker", default=worker_name(), help="who this is; its name takes up what it left behind"
    )
    parser.add_argument("--report", action="store_true", help="show what the study has so far; start nothing")
    args, options = parser.parse_known_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if args.metric.startswith("test/"):
            raise ConfigError(
                f"--metric {args.metric}: settings are chosen on the validation split, never on test"
            )
        if os.environ.get("SLURM_NTASKS", "1") != "1":
            raise ConfigError(
                f"a worker is one task, and this SLURM job has {os.environ['SLURM_NTASKS']}: give "
                "sbatch --array=0-7 --ntasks-per-node=1 --gpus-per-node=1 for eight workers"
            )
        worker = Worker(args, options)
        return worker.report() if args.report else worker.work()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
