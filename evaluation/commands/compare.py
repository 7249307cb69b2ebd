"""Compares runs: the options in which they differ, their scores, time and hardware."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from typing import ClassVar

from datamodules.errors import ConfigError
from evaluation.commands.base import FolderCommand, say
from evaluation.commands.outputs import check_target, write_image, write_text
from evaluation.comparison import Run, Table, as_markdown, find_runs, protocols, table
from evaluation.curves import Lines, draw_lines
from evaluation.label_tables import labels_table, without_labels
from evaluation.tables import counted, print_table

ENDINGS = (".md", ".csv")


class CompareCommand(FolderCommand):
    """compare RUNS: a table of runs, with the options in which they differ, scores, time and hardware."""

    options: ClassVar = {
        "runs": {"metavar": "RUN", "nargs": "+", "help": "run folders, or patterns such as 'runs/*'"},
        "--sort": {"metavar": "COLUMN", "help": "put the largest value of this column first"},
        "--columns": {"metavar": "A,B", "help": "only these columns (default: all)"},
        "--labels": {"action": "store_true", "help": "instead, the tables of labels, averaged over seeds"},
        "--plot": {"metavar": "FILE.png", "type": "path", "help": "curves over steps and over time"},
        "--metric": {"metavar": "NAME", "help": "the metric to plot (default: val/linear_top1)"},
    }
    output = "the terminal; a .md or .csv file"
    overwrite = True

    def run_on(self, given: Namespace) -> int:
        if given.output is not None:
            if given.output.suffix not in ENDINGS:
                raise ConfigError(f"--output {given.output}: expected a name that ends in .md or .csv")
            check_target(given.output, given.output.suffix, given.overwrite)
        if given.plot is not None:
            check_target(given.plot, ".png", given.overwrite, option="--plot")
        elif given.metric is not None:
            raise ConfigError("--metric is what --plot draws: give --plot FILE.png, or leave it out")
        runs, notes = find_runs(given.runs)
        if given.labels:
            found, lines = _labels(runs, given), without_labels(runs)
        else:
            columns = None if given.columns is None else [name.strip() for name in given.columns.split(",")]
            found, lines = table(runs, given.sort, columns), [*notes, *protocols(runs)]
        panels = None if given.plot is None else _panels(runs, given.metric or "val/linear_top1")
        for line in lines:
            say(line)
        print_table(counted(len(runs), "run"), *found)
        if given.output is not None:
            text = as_markdown(found) if given.output.suffix == ".md" else as_csv(*found)
            say(write_text(given.output, text))
        if panels is not None:
            say(write_image(given.plot, draw_lines(panels)))
        return 0


def _labels(runs: list[Run], given: Namespace) -> Table:
    for name in ("sort", "columns"):
        if getattr(given, name) is not None:
            raise ConfigError(f"--{name} is not for --labels: leave one of them out")
    return labels_table(runs)


def as_csv(headings: list[str], rows: list[list[str]]) -> str:
    """Comma-separated values, quoted where needed."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headings, *rows])
    return buffer.getvalue().rstrip("\n")


def _panels(runs: list[Run], metric: str) -> list[tuple[str, Lines]]:
    """The metric over optimizer steps, and over minutes."""
    curves = {str(run.path): run.curves[metric] for run in runs if metric in run.curves}
    if not curves:
        known = sorted({name for run in runs for name in run.curves})
        raise ConfigError(f"--metric {metric}: no run has logged it; they have {', '.join(known) or 'none'}")
    by_step: Lines = {name: [(float(p.step), p.value) for p in points] for name, points in curves.items()}
    by_time: Lines = {name: [(p.seconds / 60, p.value) for p in points] for name, points in curves.items()}
    return [(f"{metric} by optimizer step", by_step), (f"{metric} by minutes", by_time)]
