"""Prints the report as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.measures import measures
from evaluation.probes import probes

FILE_WIDTH = 160
"""Width in columns if the output is not a terminal, so that tables in a log are not squeezed into 80."""


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print accuracies by encoder, other measures, and what was left out or failed; default: to stdout."""
    if console is None:
        console = Console(soft_wrap=True)
        console.width = console.width if console.is_terminal else FILE_WIDTH
    if any(report["results"].values()):
        title = f"{report['method']} on {report['data']}: accuracy on the test split"
        console.print(_table(title, *_accuracies(report["results"])))
        console.print(f"the most common class has {report['majority_share']:.1%} of the test split")
    elif not (report["left_out"] or report["failed"]):
        console.print(f"{report['data']} has no labels: no probes.")
    for name, measure in measures().items():
        if name in report:
            title, cells = measure.table(report[name])
            console.print(_table(title, list(cells), [list(cells.values())]))
    for heading in ("left_out", "failed"):
        for name, reason in report[heading].items():
            console.print(f"{heading.replace('_', ' ')}: {name}: {reason}", markup=False, highlight=False)


def print_accuracies(reports: dict[str, dict[str, Any]]) -> None:
    """Print several reports in one table: a row for each name and encoder."""
    rows = {f"{name}: {encoder}": row for name, r in reports.items() for encoder, row in r["results"].items()}
    print_table("accuracy on the test split", *_accuracies(rows))


def _accuracies(rows: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a row for each encoder, a column for each number of each probe."""
    columns = {
        f"{probe.name}_{metric}": f"{probe.heading}\n{text}"
        for probe in probes().values()
        for metric, text in probe.metrics.items()
    }
    shown = [key for key in columns if any(key in row for row in rows.values())]
    cells = [
        [encoder, *(f"{row[key]:.3f}" if key in row else "-" for key in shown)]
        for encoder, row in rows.items()
    ]
    return ["encoder", *(columns[key] for key in shown)], cells


def counted(number: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def print_table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    """Print a table, as wide as needed if the output is not a terminal."""
    console = Console(soft_wrap=True)
    console.width = console.width if console.is_terminal else max(FILE_WIDTH, 30 * len(headings))
    console.print(_table(title, headings, rows))


def _table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for i, heading in enumerate(headings):
        names = i == 0 and any(not row[0][:1].isdigit() for row in rows)
        table.add_column(heading, justify="left" if names else "right")
    for row in rows:
        table.add_row(*row)
    return table


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of at least one score, to three digits; a single one has no deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
