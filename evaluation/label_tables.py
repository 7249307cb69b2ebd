"""Tables of ``eval.py labels``, averaged over the runs of each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.errors import ConfigError
from evaluation.comparison import Run, Table, by_setting, read_json
from evaluation.tables import spread

FILE = "labels.json"


def labels_table(runs: list[Run]) -> Table:
    """A row for each setting and row of its table; mean and standard deviation over draws of all seeds.

    Raises:
        ConfigError: no run has finished ``eval.py labels``, or some have other settings or another protocol.
    """
    reports = {str(run.path): report for run in runs if (report := _finished(run.path))}
    if not reports:
        raise ConfigError(f"no run has a finished {FILE}: python eval.py labels RUN writes it")
    _check_protocols(reports)
    budgets = list(dict.fromkeys(name for report in reports.values() for name in report["labels"]))
    rows = []
    for group in by_setting(runs):
        measured = [reports[str(run.path)] for run in group if str(run.path) in reports]
        for row in measured[0]["scores"] if measured else ():
            own = [report["scores"].get(row, {}) for report in measured]
            pooled = [[score for scores in own for score in scores.get(budget, ())] for budget in budgets]
            cells = [spread(scores) if scores else "-" for scores in pooled]
            seeds = f" ({len(measured)} seeds)" if len(measured) > 1 else ""
            rows.append([f"{group[0].path}{seeds}", row, *cells])
    return ["run", "", *budgets], rows


def without_labels(runs: list[Run]) -> list[str]:
    """A line for each run whose table is missing or unfinished."""
    return [f"note: {run.path} has no finished {FILE}: left out" for run in runs if not _finished(run.path)]


def _finished(folder: Path) -> dict[str, Any]:
    """The report of ``eval.py labels``; empty if there is none, it is damaged, or not at its end."""
    report = read_json(folder / FILE)
    parts = [report.get(name) for name in ("labels", "scores", "settings", "protocol")]
    if "verdict" not in report or not all(isinstance(part, dict) for part in parts):
        return {}
    rows = report["scores"].values()
    whole = all(isinstance(row, dict) and all(map(_are_scores, row.values())) for row in rows)
    return report if whole else {}


def _are_scores(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)


def _check_protocols(reports: dict[str, dict[str, Any]]) -> None:
    first, *others = ((path, _conditions(report)) for path, report in reports.items())
    for path, conditions in others:
        for name in dict.fromkeys([*first[1], *conditions]):
            values = [json.dumps(found.get(name)) for found in (first[1], conditions)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"{name} of {FILE} is {values[0]} in {first[0]} and {values[1]} in {path}: repeat one of "
                    "them with eval.py labels --overwrite, or leave it out"
                )


def _conditions(report: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for an average."""
    return {name: report["settings"].get(name) for name in ("data", "lr")} | report["protocol"]
