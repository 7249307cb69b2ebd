"""Measures a trained method: ``python eval.py probe RUN``, or shorter ``python eval.py RUN``."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import ConfigError
from evaluation.accuracy import ACCURACIES
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_place
from evaluation.features import Means
from evaluation.kept import NAME as KEPT
from evaluation.kept import checksum
from evaluation.report import evaluate, named_measures, named_probes
from evaluation.sgd_probe import check_data, train_and_count
from evaluation.tables import print_accuracies, print_report
from runtime.files import write_json


class ProbeCommand(Command):
    """probe RUN: accuracy on the test split beside a random encoder and the raw input; the default."""

    reads_data = True
    takes_several = True
    options: ClassVar = {
        "--probes": {"metavar": "NAMES", "help": "comma-separated (default: {probes}); also {more_probes}"},
        "--layers": {
            "metavar": "NAMES",
            "help": "also probe blocks of the encoder: all, or numbers from 1 and last4, "
            "the last four concatenated",
        },
        "--protocol": {
            "choices": ("features", "sgd"),
            "default": "features",
            "help": "features: probes of frozen features (default); sgd: linear heads trained by SGD on "
            "random crops, added to existing results as sgd_probe",
        },
        "--measures": {"metavar": "NAMES", "help": "also measure these; any of {measures}"},
        "--output": {
            "metavar": "FILE",
            "type": "path",
            "help": "where to write (default: results.json in the run folder)",
        },
    }

    def run(self, run: TrainedRun, given: Namespace) -> int:
        if given.protocol == "sgd":
            return _add_sgd_probe(run, given, _target(run, given))
        return 1 if self._measure(run, given)["failed"] else 0

    def run_several(self, runs: list[TrainedRun], given: Namespace) -> int:
        """Print the tables of each data set, then one with a row for each data set and encoder."""
        if given.output is not None:
            raise ConfigError(f"--output names one file, but --data is given {len(runs)} times: leave it out")
        if given.protocol == "sgd":
            return max(self.run(run, given) for run in runs)
        reports = {run.suffix.removeprefix("-"): self._measure(run, given) for run in runs}
        print_accuracies(reports)
        return 1 if any(report["failed"] for report in reports.values()) else 0

    def _measure(self, run: TrainedRun, given: Namespace) -> dict[str, Any]:
        names, also = _names(given.probes), _names(given.measures) or []
        named_probes(names)
        named_measures(also)
        target = _target(run, given)
        report = evaluate(
            run.module,
            run.random_init(),
            run.data,
            str(run.checkpoint),
            names,
            run.device,
            run.seed,
            also,
            given.layers,
            Means(precision=run.precision, folder=run.folder),
            kept := run.folder / f"{KEPT}{run.suffix}.json",
        )
        report |= run.origin
        earlier = read_results(target).get("sgd_probe", {})
        if earlier.get("weights") == checksum(run.module):
            report["sgd_probe"] = earlier
        print_report(report)
        told = "replaced" if target.exists() else "written"
        write_json(target, report)
        kept.unlink(missing_ok=True)
        say(f"{told}: {target}")
        return report


def _target(run: TrainedRun, given: Namespace) -> Path:
    """Where to write the results."""
    target: Path = given.output or run.folder / f"results{run.suffix}.json"
    check_place(target, ".json")
    if target.exists() and not read_results(target):
        raise ConfigError(f"--output {target} exists and is not a results.json: choose another name")
    return target


def _add_sgd_probe(run: TrainedRun, given: Namespace, target: Path) -> int:
    """Train and evaluate the SGD probe, possibly in several processes; rank 0 writes."""
    if given.probes or given.measures or given.layers:
        raise ConfigError("--protocol sgd does not use --probes, --measures or --layers: leave them out")
    data, report = check_data(run.data), read_results(target)
    if not report:
        raise ConfigError(
            f"--protocol sgd adds to {target}, which is missing: run eval.py probe without it first"
        )
    file = run.folder / f".sgd_probe{run.suffix}.ckpt"
    means = Means(precision=run.precision, folder=run.folder)
    scores = train_and_count(run.module, data, run.device, means, file, run.seed)
    if scores is not None:
        write_json(target, report | {"sgd_probe": scores})
        file.unlink(missing_ok=True)
        shown = ", ".join(
            f"{ACCURACIES[key]} {value:.3f}" for key, value in scores.items() if key in ACCURACIES
        )
        say(f"SGD probe on test: {shown}, with a rate of {scores['lr']:g} for 256 samples, chosen on val")
        say(f"added to {target}: sgd_probe")
    return 0


def _names(given: str | None) -> list[str] | None:
    """The names in a comma-separated list; None if the option is not given."""
    return None if given is None else [name.strip() for name in given.split(",")]


def read_results(path: Path) -> dict[str, Any]:
    """A report written by any version of ``evaluate``; empty if there is none or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and {"method", "protocol", "results"} <= content.keys()
    return content if known else {}
