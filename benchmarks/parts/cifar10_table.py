"""The Markdown table of benchmarks/cifar10.py, made from its lines of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

METRICS = {"knn200": "kNN 200", "knn20": "kNN 20", "linear": "linear", "fewshot5": "5-shot"}
SETTINGS = ("data", "method", "batch", "epochs", "precision", "device", "seeds")
COSTS = ("images/s", "s/epoch", "minutes", "views", "wait", "GiB")


def table(lines: Iterable[str]) -> str:
    """Markdown from the lines of results: one row per data, method, batch, epochs, precision and device. The
    newest line of each seed counts.
    """
    runs: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        key = tuple(row[k] for k in ("data", "method", "batch", "epochs", "precision", "compile", "device"))
        runs.setdefault(key, {})[row["seed"]] = row
    head = [*SETTINGS, *METRICS.values(), *COSTS]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (data, method, batch, epochs, precision, compiled, device), by_seed in sorted(
        runs.items(), key=lambda kv: str(kv[0])
    ):
        rows = list(by_seed.values())
        cells = [data, method, batch, epochs, f"{precision}{', compiled' if compiled else ''}", device]
        cells.append(", ".join(map(str, sorted(by_seed))))
        cells += [accuracy([100 * r[metric] for r in rows]) for metric in METRICS]
        cells += costs(rows)
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def accuracy(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds, in percent."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


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
