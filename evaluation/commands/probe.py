"""Measure a trained method: ``python eval.py probe RUN``, or shorter ``python eval.py RUN``."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from datamodules.errors import ConfigError
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_place
from evaluation.report import evaluate, named_probes
from evaluation.tables import print_report
from runtime.files import write_json


class ProbeCommand(Command):
    """probe RUN: accuracy on the test split beside a random encoder and the raw input; the default."""

    reads_data = True

    def add_options(self, parser: ArgumentParser) -> None:
        known = ", ".join(probe.name for probe in named_probes(None))
        parser.add_argument("--probes", metavar="NAMES", help=f"comma-separated, of {known} (default: all)")
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=Path,
            help="where to write (default: results.json in the run folder)",
        )

    def run(self, run: TrainedRun, given: Namespace) -> int:
        names = None
        if given.probes is not None:
            names = [name.strip() for name in given.probes.split(",")]
        named_probes(names)
        target = given.output or run.folder / f"results{run.suffix}.json"
        check_place(target, ".json")
        if target.exists() and not is_results(target):
            raise ConfigError(f"--output {target} exists and is not a results.json: choose another name")
        where = str(run.checkpoint)
        report = evaluate(run.module, run.random_init(), run.data, where, names, run.device, run.seed)
        report |= run.origin
        print_report(report)
        told = "replaced" if target.exists() else "written"
        write_json(target, report)
        say(f"{told}: {target}")
        return 1 if report["failed"] else 0


def is_results(path: Path) -> bool:
    """Is this a file that ``evaluate`` made, of any version?"""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"method", "protocol", "results"} <= content.keys()
