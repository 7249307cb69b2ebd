"""Did pre-training help? Accuracies by number of labels, beside training from scratch."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.checks import check_at_least, check_positive
from datamodules.errors import ConfigError
from evaluation.accuracy import top1
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import write_image
from evaluation.curves import Lines, draw_lines
from evaluation.duplicates import NEAR, count_duplicates
from evaluation.features import embed_split
from evaluation.kept import origin_of
from evaluation.label_budgets import (
    BUDGETS,
    PROTOCOL,
    Budget,
    draw,
    draw_seed,
    linear_score,
    train_classifier,
    verdict,
)
from evaluation.tables import counted, print_table, spread
from runtime.files import write_json

PAUSE = 30  # seconds between two lines of progress
Task = tuple[str, Budget, int]  # row, column, number of the draw

ROWS = ("scratch", "frozen random", "raw input", "frozen pre-trained", "fine-tuned")


class LabelsCommand(Command):
    """labels RUN: did pre-training help? Accuracies by number of labels beside training from scratch."""

    reads_data = True
    options: ClassVar = {
        "--draws": {
            "type": "int",
            "default": 3,
            "help": "random choices of labels, each with its seed (default: 3)",
        },
        "--lr": {"type": "float", "default": 1e-3, "help": "peak rate of training (default: 0.001)"},
    }
    overwrite = True
    continues = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        """``labels.json`` is written after each score, so that the same command continues an interrupted
        one.
        """
        check_at_least(1, **{"--draws": given.draws})
        check_positive(**{"--lr": given.lr})
        name = type(run.data).__name__
        run.data.setup("test")
        if run.data.num_classes is None:
            raise ConfigError(f"labels needs data with labels, but {name} has none: give --data NAME")
        target = run.folder / f"labels{run.suffix}.json"
        chosen = {"data": name, "draws": given.draws, "lr": given.lr}
        settings = {**chosen, "measured_on": origin_of(run.module, run.data)}
        report = _begin(target, settings, given.overwrite)
        if "duplicates" not in report:
            report["duplicates"] = _duplicates(run)
        say(_about_duplicates(report["duplicates"]))
        tasks = _Tasks(run, given.lr)
        left = list(tasks.missing(report, given.draws))
        for row, budget, number in _tracked(left):
            start = time.perf_counter()
            score = tasks.score(row, budget, number)
            report["scores"].setdefault(row, {}).setdefault(budget.name, []).append(score)
            seconds = report["seconds"].setdefault(row, {})
            seconds[budget.name] = seconds.get(budget.name, 0.0) + time.perf_counter() - start
            write_json(target, report)
        report |= {"labels": tasks.counts, "verdict": verdict(report["scores"], tasks.counts)}
        write_json(target, report)
        show(report)
        say(f"written: {target}")
        say(write_image(target.with_suffix(".png"), _figure(report)))
        return 0


def _tracked(tasks: list[Task]) -> Iterator[Task]:
    """The tasks, with a progress bar; where there is no terminal, with a line every ``PAUSE`` seconds."""
    if Console().is_terminal:
        yield from track(tasks, "labels", disable=not tasks, transient=True)
        return
    start = told = time.monotonic()
    for done, (row, budget, number) in enumerate(tasks, 1):
        yield row, budget, number
        now = time.monotonic()
        if now - told >= PAUSE:
            told, last = now, f"{row}, {budget.name}, draw {number + 1}"
            say(f"labels: {done} of {len(tasks)} scores after {now - start:.0f} s; the last: {last}")


def _begin(target: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The scores of an earlier start with the same settings and protocol, or an empty report."""
    new = {"settings": settings, "protocol": PROTOCOL, "scores": {}, "seconds": {}}
    if target.exists() and not overwrite:
        try:
            found = json.loads(target.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if not isinstance(found, dict) or any(found.get(k) != new[k] for k in ("settings", "protocol")):
            raise ConfigError(
                f"{target} contains results of other settings, weights or files, or of another version: give "
                "--overwrite to replace it, or those settings"
            )
        return found
    return new


def _duplicates(run: TrainedRun) -> dict[str, int]:
    seen = run.pretraining_data()
    seen.prepare_data()
    seen.setup("test")
    return count_duplicates(seen, run.data)


def _about_duplicates(found: dict[str, int]) -> str:
    exact = f"{found['exact']} are among {found['train']} pre-training samples"
    near = f"{found['near']} nearly (cosine of the raw input above {NEAR})"
    warning = ": their labels are new, but not the samples" if found["near"] else ""
    return f"of {found['test']} test samples {exact}, {near}{warning}"


class _Tasks:
    """The scores of the table, each computed separately; features are extracted once. If two columns have the
    same draws, as 1 per class and 1 % on Digits, the second one costs nothing.
    """

    def __init__(self, run: TrainedRun, lr: float) -> None:
        self.run, self.lr, self.classes = run, lr, run.data.num_classes or 0
        self.random = run.random_init().to(run.device).eval()
        encoders: dict[str, Callable[[Tensor], Tensor]] = {
            "frozen random": self.random.embed,
            "frozen pre-trained": run.module.embed,
            "raw input": run.data.baselines()["raw_input"]
            if "raw_input" in run.data.baselines()
            else _tfidf(run),
        }
        self.done: dict[tuple[str, int, bytes], float] = {}
        self.features: dict[str, dict[str, Tensor]] = {}
        self.labels: dict[str, Tensor] = {}
        for split in ("bank", "val", "test"):
            self.features[split], self.labels[split] = embed_split(encoders, run.data, split, run.device)
        drawn = {budget: draw(self.labels["bank"].cpu(), budget, 0) for budget in BUDGETS}
        self.budgets = [budget for budget, rows in drawn.items() if rows is not None]
        for budget in [budget for budget, rows in drawn.items() if rows is None]:
            say(f"left out: {budget.name}: a class has too few labeled training samples")
        self.counts = {b.name: len(rows) for b, rows in drawn.items() if rows is not None}

    def missing(self, report: dict[str, Any], draws: int) -> Iterator[Task]:
        """The scores that are not in the report yet."""
        for budget in self.budgets:
            for row in ROWS:
                done = len(report["scores"].get(row, {}).get(budget.name, []))
                yield from ((row, budget, number) for number in range(done, draws))

    def score(self, row: str, budget: Budget, number: int) -> float:
        """Top-1 on test."""
        seed = draw_seed(self.run.seed, number)
        rows = draw(self.labels["bank"].cpu(), budget, seed)
        assert rows is not None
        own = 0 if row in self.features["bank"] else seed  # a probe has none, and 100 % one draw
        key = (row, own, rows.numpy().tobytes())
        if key not in self.done:
            self.done[key] = self._score(row, rows, seed)
        return self.done[key]

    def _score(self, row: str, rows: Tensor, seed: int) -> float:
        run = self.run
        if row in self.features["bank"]:
            pairs = {s: (self.features[s][row], self.labels[s]) for s in ("val", "test")}
            known = {s: (h[y >= 0], y[y >= 0]) for s, (h, y) in pairs.items()}
            at = rows.to(run.device)
            train = (self.features["bank"][row][at], self.labels["bank"][at])
            return linear_score(train, known["val"], known["test"], self.classes)
        start = run.module if row == "fine-tuned" else run.random_init(seed)
        labels = self.labels["bank"].cpu()[rows]
        scores = train_classifier(start, run.data, rows, labels, self.classes, self.lr, seed, run.device)
        found, test = embed_split({"": scores}, run.data, "test", run.device)
        return top1(found[""][test >= 0].argmax(1), test[test >= 0])


def _tfidf(run: TrainedRun) -> Callable[[Tensor], Tensor]:
    """The last baseline of the data, which replaces the raw input for text."""
    return list(run.data.baselines().values())[-1]


def show(report: dict[str, Any]) -> None:
    """Print the table and the verdict below it."""
    labels = (f"{name}\n{counted(count, 'label')}" for name, count in report["labels"].items())
    headings = ["", *labels, "seconds"]
    rows = []
    for row in ROWS:
        cells = [spread(report["scores"][row][name]) for name in report["labels"]]
        rows.append([row, *cells, f"{sum(report['seconds'][row].values()):.0f}"])
    settings = report["settings"]
    draws = counted(settings["draws"], "draw")
    print_table(f"{settings['data']}: top-1 on the test split, {draws}", headings, rows)
    say(report["verdict"])


def _figure(report: dict[str, Any]) -> Any:
    lines: Lines = {}
    for row in ROWS:
        points = {report["labels"][name]: mean(values) for name, values in report["scores"][row].items()}
        lines[row] = [(float(torch.tensor(n).log10()), score) for n, score in sorted(points.items())]
    return draw_lines([("top-1 by the logarithm (base 10) of the number of labels", lines)])
