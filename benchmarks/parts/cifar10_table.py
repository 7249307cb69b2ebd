"""The Markdown table of benchmarks/cifar10.py, made from its lines of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.parts.pages import mean_and_deviation

METRICS = {
    "knn10": "kNN 10",
    "knn200": "kNN 200",
    "knn20": "kNN 20",
    "linear": "linear",
    "fewshot5": "5-shot",
}
GROUPS = ("data", "method", "batch", "epochs", "precision", "compile", "device", "lr")
SETTINGS = ("data", "method", "batch", "epochs", "precision", "device", "seeds")
COSTS = ("images/s", "s/epoch", "minutes", "views", "wait", "GiB")


def table(lines: Iterable[str]) -> str:
    """Markdown from the lines of results: one row per data, method, batch, epochs, precision, device and
    learning rate, if it is not the config's. The newest line of each seed counts. An accuracy that no line
    has gets no column.
    """
    runs: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        key = tuple(row.get(k) for k in GROUPS)
        runs.setdefault(key, {})[row["seed"]] = row
    every = [row for by_seed in runs.values() for row in by_seed.values()]
    metrics = {metric: title for metric, title in METRICS.items() if any(metric in row for row in every)}
    head = [*SETTINGS, *metrics.values(), *COSTS]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (data, method, batch, epochs, precision, compiled, device, lr), by_seed in sorted(
        runs.items(), key=lambda kv: str(kv[0])
    ):
        rows = list(by_seed.values())
        name = method if lr is None else f"{method}, lr {lr}"
        cells = [data, name, batch, epochs, f"{precision}{', compiled' if compiled else ''}", device]
        cells.append(", ".join(map(str, sorted(by_seed))))
        cells += [mean_and_deviation([100 * row[m] for row in rows if m in row]) for m in metrics]
        cells += costs(rows)
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def costs(rows: list[dict[str, Any]]) -> list[str]:
    """The cells of ``COSTS``: medians over the seeds, empty for what was not measured."""
    formats = {
        "images_per_s": "{:.0f}",
        "seconds_per_epoch": "{:.2f}",
        "training_minutes": "{:.1f}",
        "views_share": "{:.1%}",
        "data_wait_share": "{:.1%}",
        "peak_memory_gib": "{:.1f}",
    }
    cells = []
    for name, form in formats.items():
        values = [row[name] for row in rows if row[name] is not None]
        cells.append(form.format(statistics.median(values)) if values else "")
    return cells
