"""Measure a trained method: ``python eval.py probe RUN``, or shorter ``python eval.py RUN``."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import ConfigError
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_place
from evaluation.features import Means
from evaluation.kept import NAME as KEPT
from evaluation.report import evaluate, named_measures, named_probes
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
            "help": "blocks of the encoder that are probed too: all, or numbers from 1 on and last4, "
            "the last four side by side",
        },
        "--measures": {"metavar": "NAMES", "help": "measured besides, of {measures}"},
        "--output": {
            "metavar": "FILE",
            "type": "path",
            "help": "where to write (default: results.json in the run folder)",
        },
    }

    def run(self, run: TrainedRun, given: Namespace) -> int:
        return 1 if self._measure(run, given)["failed"] else 0

    def run_several(self, runs: list[TrainedRun], given: Namespace) -> int:
        """A table with a row for each data set and encoder follows those of each data set."""
        if given.output is not None:
            raise ConfigError(f"--output names one file, and --data is given {len(runs)} times: leave it out")
        reports = {run.suffix.removeprefix("-"): self._measure(run, given) for run in runs}
        print_accuracies(reports)
        return 1 if any(report["failed"] for report in reports.values()) else 0

    def _measure(self, run: TrainedRun, given: Namespace) -> dict[str, Any]:
        names, also = _names(given.probes), _names(given.measures) or []
        named_probes(names)
        named_measures(also)
        target = given.output or run.folder / f"results{run.suffix}.json"
        check_place(target, ".json")
        if target.exists() and not is_results(target):
            raise ConfigError(f"--output {target} exists and is not a results.json: choose another name")
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
        print_report(report)
        told = "replaced" if target.exists() else "written"
        write_json(target, report)
        kept.unlink(missing_ok=True)
        say(f"{told}: {target}")
        return report


def _names(given: str | None) -> list[str] | None:
    """The names in a comma-separated list; None where the option is not given."""
    return None if given is None else [name.strip() for name in given.split(",")]


def is_results(path: Path) -> bool:
    """Is this a file that ``evaluate`` made, of any version?"""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"method", "protocol", "results"} <= content.keys()
