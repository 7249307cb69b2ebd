"""A table of runs: the options in which they differ, and their results."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml

from datamodules.errors import ConfigError
from evaluation.curves import Curves, read_curves
from evaluation.probes import probes
from evaluation.report import ADDED, read_results
from evaluation.tables import spread

#: Options for hardware, logging and saving, which do not distinguish runs.
PASSED_OVER = (
    *("trainer.callbacks", "trainer.logger", "trainer.accelerator", "trainer.enable_", "trainer.profiler"),
    *("data.root", "data.num_workers", "data.download", "data.vocabulary"),
    *("run_dir", "evaluate", "disable_callbacks", "save_"),
)
SEED = "seed_everything"
NOT_SETTINGS = ("features", "seed", "layers", "random_init")
"""Keys of a protocol that name the method and the seed, or describe rows other than ``pretrained``."""


@dataclass
class Run:
    """The files of a run.

    Attributes:
        path: its folder.
        options: options in its config.yaml, by short dotted names.
        results: content of results.json; empty without one.
        curves: metrics in its TensorBoard events.
        hardware: GPU, or CPU.
    """

    path: Path
    options: dict[str, Any]
    results: dict[str, Any]
    curves: Curves
    hardware: str

    def tested(self) -> dict[str, float]:
        """Top-1 on test by probe: the report's, the method's own ``classifier``, and those of ``ADDED``."""
        row = self.results.get("results", {}).get("pretrained", {})
        found = {k.removesuffix("_top1"): v for k, v in row.items() if k.endswith("_top1")}
        if "classifier" in self.results:
            found["classifier"] = self.results["classifier"]["top1"]
        added = {name: self.results[name] for name in ADDED if name in self.results}
        return found | {name: part.get("pretrained", part)["top1"] for name, part in added.items()}

    def protocol(self, probe: str) -> dict[str, Any]:
        """How a score of ``tested`` was measured: what all probes share, and the probe's own settings.

        Without choices made on val, other probes and baselines, and the method's name.
        """
        given = (self.results[probe] if probe in ADDED else self.results).get("protocol", {})
        chosen = {key.removesuffix("_by_encoder") for key in given if key.endswith("_by_encoder")}
        left_out = {*chosen, *(f"{key}_by_encoder" for key in chosen), *NOT_SETTINGS}
        if probe not in ADDED:
            settings = {name: {*known.protocol(1)} for name, known in probes().items()}
            others = set().union(*settings.values()) - settings.get(probe, set())
            left_out |= {*self.results["results"], *others}
        return {"data": self.results.get("data"), **{k: v for k, v in given.items() if k not in left_out}}

    def numbers(self) -> dict[str, float]:
        """Scores by column: last validation values, test scores of results.json, and minutes."""
        found = {
            name: points[-1].value
            for name, points in self.curves.items()
            if name.startswith("val/") and name.endswith(("top1", "/loss"))
        }
        found |= {f"test/{probe}_top1": score for probe, score in self.tested().items()}
        last = max((points[-1].seconds for points in self.curves.values()), default=None)
        return found if last is None else {**found, "minutes": last / 60}


# ---- reading -----------------------------------------------------------------------------------------------


def find_runs(names: Iterable[str]) -> tuple[list[Run], list[str]]:
    """Runs in folders and patterns, including those below other folders; and a line for each without results.

    A results.json that is damaged, or something else, counts as none.

    Raises:
        ConfigError: a name that is neither a run nor contains one.
    """
    folders: dict[Path, None] = {}
    for name in names:
        places = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found = [folder for place in places for folder in _runs_in(Path(place))]
        if not found:
            raise ConfigError(
                f"{name}: contains no run (no folder with a config.yaml of train.py): expected run folders, "
                "or a pattern such as 'runs/*'"
            )
        folders |= dict.fromkeys(found)
    runs = [read_run(folder) for folder in folders]
    return runs, [_without_results(run.path) for run in runs if not run.results]


def _without_results(run: Path) -> str:
    if (run / "results.json").exists():
        return f"note: {run}/results.json was not written by this project, or is damaged: left out"
    return f"note: {run} has no results.json: not evaluated"


def _runs_in(place: Path) -> list[Path]:
    if (place / "config.yaml").is_file():
        return [place]
    return sorted(file.parent for file in place.glob("**/config.yaml")) if place.is_dir() else []


def read_run(folder: Path) -> Run:
    """Read a run; raise ConfigError if its config.yaml is not that of a run."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        options = dict(_flat({key: config[key] for key in config}))
        method = options["model"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        raise ConfigError(f"{folder}/config.yaml was not written by train.py") from None
    assert method
    hardware = read_json(folder / "environment.json").get("hardware", {})
    where = ", ".join(hardware.get("gpus") or []) or hardware.get("cpu", "unknown")
    return Run(folder, options, read_results(folder / "results.json"), read_curves(folder), where)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing, damaged or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """``model``: SimCLR, ``model.temperature``: 0.2, ..."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if key == "class_path":
                yield prefix, str(value).rpartition(".")[2]
            elif key == "init_args":
                yield from _flat(value, prefix)
            else:
                yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        yield prefix, json.dumps(node)
    else:
        yield prefix, node


# ---- the table ---------------------------------------------------------------------------------------------

Table = tuple[list[str], list[list[str]]]
"""Headings, and rows of cells."""


class Scores(NamedTuple):
    """The scores of a row in a column.

    Attributes:
        values: of the seeds that have one.
        seeds: number of seeds of the row.
    """

    values: list[float]
    seeds: int


def differing(runs: list[Run]) -> list[str]:
    """Names of the options in which the runs differ, the seed last.

    An option that only some runs have counts if it differs between those.
    """
    names = dict.fromkeys(name for run in runs for name in run.options if not name.startswith(PASSED_OVER))
    found = [n for n in names if len({str(run.options[n]) for run in runs if n in run.options}) > 1]
    return sorted(found, key=lambda name: name == SEED)


def protocols(runs: list[Run]) -> list[str]:
    """One line for each protocol setting in which scores of runs on the same data differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for probe, same in _by_probe_and_data(runs):
        for key in dict.fromkeys(key for run in same for key in run.protocol(probe)):
            values: dict[str, Path] = {}
            for run in same:
                values.setdefault(json.dumps(run.protocol(probe).get(key)), run.path)
            if len(values) > 1:
                both = "; ".join(f"{value} in {path}" for value, path in values.items())
                found.setdefault((key, both), []).append(probe)
    return [
        f"note: {key} in the protocol of {', '.join(of)} differs ({both}): do not compare these scores"
        for (key, both), of in found.items()
    ]


def _by_probe_and_data(runs: list[Run]) -> Iterable[tuple[str, list[Run]]]:
    """Each probe with the runs that have its score, those on one data set at a time."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for probe in run.tested():
            found.setdefault((probe, str(run.results.get("data"))), []).append(run)
    return [(probe, same) for (probe, _), same in found.items()]


def by_setting(runs: list[Run]) -> list[list[Run]]:
    """Runs that differ only in the seed, on the same hardware, together; a repeated seed is kept apart."""
    groups: dict[str, list[Run]] = {}
    repeats: Counter[str] = Counter()
    for run in runs:
        setting = {name: value for name, value in run.options.items() if not name.startswith(PASSED_OVER)}
        seeded = json.dumps([setting, run.hardware], default=str, sort_keys=True)
        repeats[seeded] += 1
        key = [setting | {SEED: None}, repeats[seeded], run.hardware]
        groups.setdefault(json.dumps(key, default=str, sort_keys=True), []).append(run)
    return list(groups.values())


def table(
    runs: list[Run], sort: str | None = None, columns: list[str] | None = None, label: str = "run"
) -> Table:
    """A row for each setting; runs that differ only in the seed share one, with mean and standard deviation.
    Two runs with the same seed do not.

    Test scores measured by different protocols have separate columns. If only some seeds of a row have a
    score, their number is in the cell.

    Args:
        sort: column to sort by, largest value first.
        columns: columns to show; None = all.
        label: heading of the first column.

    Raises:
        ConfigError: there is no such column.
    """
    options = differing(runs)
    groups = by_setting(runs)
    merged = any(len(group) > 1 for group in groups)
    options = [name for name in options if name != SEED] if merged else options
    endings = _protocol_names(runs)
    hardware = len({run.hardware for run in runs}) > 1
    rows: list[dict[str, Any]] = []
    for group in groups:
        row: dict[str, Any] = {
            label: str(group[0].path) + (f" ({len(group)} seeds)" if len(group) > 1 else "")
        }
        row |= {name: group[0].options.get(name) for name in options}
        for run in group:
            for name, value in run.numbers().items():
                shown = name + endings.get((name, run.path), "")
                row.setdefault(shown, Scores([], len(group))).values.append(value)
        row |= {"hardware": group[0].hardware} if hardware else {}
        rows.append(row)
    headings = list(dict.fromkeys(name for row in rows for name in row))
    headings.sort(
        key=lambda n: (n == "hardware", n == "minutes", n.startswith("test/"), n.startswith("val/"))
    )
    for name in [*(columns or []), *([sort] if sort else [])]:
        if name not in headings:
            raise ConfigError(f"there is no column {name}: expected one of {', '.join(headings)}")
    if sort is not None:
        rows.sort(key=_sorting(sort))
    headings = headings if columns is None else [label, *(c for c in columns if c != label)]
    return headings, [[_cell(row.get(name)) for name in headings] for row in rows]


def _sorting(column: str) -> Callable[[dict[str, Any]], Any]:
    def key(row: dict[str, Any]) -> Any:
        value = row.get(column)
        if isinstance(value, Scores):
            return (0, -mean(value.values), "")
        if isinstance(value, (int, float)):
            return (0, -float(value), "")
        return (1, 0.0, str(value))

    return key


def _protocol_names(runs: list[Run]) -> dict[tuple[str, Path], str]:
    """Endings of columns of test scores, by column and run: a letter for each of several protocols."""
    names: dict[tuple[str, Path], str] = {}
    for probe, same in _by_probe_and_data(runs):
        texts = [json.dumps(run.protocol(probe), sort_keys=True) for run in same]
        kinds = list(dict.fromkeys(texts))
        if len(kinds) > 1:
            for run, text in zip(same, texts, strict=True):
                names[f"test/{probe}_top1", run.path] = f" [{chr(ord('A') + kinds.index(text))}]"
    return names


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, Scores):
        return f"{value:g}" if isinstance(value, float) else str(value)
    some = f" ({len(value.values)} of {value.seeds})" if len(value.values) < value.seeds else ""
    return spread(value.values) + some


def as_markdown(found: Table) -> str:
    """A table in GitHub's Markdown."""
    headings, rows = found
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
