"""Measures a trained method: ``python eval.py probe RUN``, or shorter ``python eval.py RUN``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

from datamodules.checks import check_one_of
from datamodules.errors import ConfigError
from evaluation.accuracy import ACCURACIES
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_place
from evaluation.features import Means
from evaluation.head_probe import FEATURES, check_labels, head_scores, protocol
from evaluation.kept import NAME as KEPT
from evaluation.kept import checksum
from evaluation.report import ADDED, evaluate, named_measures, named_probes, read_results
from evaluation.sgd_probe import check_data, train_and_count
from evaluation.tables import print_accuracies, print_report
from runtime.files import write_json
from sslmodules.networks.classifier import Head


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
        "--head": {
            "help": "train a head on frozen features: linear, mlp, or attentive, which sees all tokens or "
            "positions; added to existing results as head_linear, head_mlp or head_attentive",
        },
        "--measures": {"metavar": "NAMES", "help": "also measure these; any of {measures}"},
        "--output": {
            "metavar": "FILE",
            "type": "path",
            "help": "where to write (default: results.json in the run folder)",
        },
    }
    continues = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        if given.protocol == "sgd" or given.head:
            return _add(run, given)
        return 1 if self._measure(run, given)["failed"] else 0

    def run_several(self, runs: list[TrainedRun], given: Namespace) -> int:
        """Print the tables of each data set, then one with a row for each data set and encoder."""
        if given.output is not None:
            raise ConfigError(f"--output names one file, but --data is given {len(runs)} times: leave it out")
        if given.protocol == "sgd" or given.head:
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
        earlier, weights = read_results(target), checksum(run.module)
        report |= {k: earlier[k] for k in ADDED if earlier.get(k, {}).get("weights") == weights}
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


def _add(run: TrainedRun, given: Namespace) -> int:
    """Train heads on the frozen encoder and add their scores to the results that are there."""
    option = f"--head {given.head}" if given.head else "--protocol sgd"
    if given.probes or given.measures or given.layers:
        raise ConfigError(f"{option} does not use --probes, --measures or --layers: leave them out")
    if given.head and given.protocol == "sgd":
        raise ConfigError(f"{option} and --protocol sgd are two probes: give one of them")
    target = _target(run, given)
    if given.head:
        check_one_of(tuple(FEATURES), **{"--head": given.head})
        check_labels(run.data)
    else:
        check_data(run.data)
    if not read_results(target):
        raise ConfigError(f"{option} adds to {target}, which is missing: run eval.py probe without it first")
    return _add_head(run, given.head, target) if given.head else _add_sgd_probe(run, target)


def _add_head(run: TrainedRun, kind: Head, target: Path) -> int:
    """For the trained encoder, and for the one with random weights."""
    run.data.prepare_data()
    run.data.setup("test")
    means = Means(precision=run.precision, folder=run.folder)
    key, found = f"head_{kind}", dict[str, Any]()
    encoders = {"pretrained": run.module, "random_init": run.random_init().to(run.device).eval()}
    for name, module in encoders.items():
        found[name] = head_scores(kind, module, run.data, run.device, means, run.seed)
        say(f"{kind} head on test, {name}: {_shown(found[name])}, with a rate of {found[name]['lr']:g}")
    found |= {"protocol": protocol(kind, found["pretrained"]["samples"], run.seed)}
    write_json(target, read_results(target) | {key: found | {"weights": checksum(run.module)}})
    say(f"added to {target}: {key}")
    return 0


def _add_sgd_probe(run: TrainedRun, target: Path) -> int:
    """Several processes may be in here, of which rank 0 writes."""
    file = run.folder / f".sgd_probe{run.suffix}.ckpt"
    means = Means(precision=run.precision, folder=run.folder)
    scores = train_and_count(run.module, check_data(run.data), run.device, means, file, run.seed)
    if scores is not None:
        write_json(target, read_results(target) | {"sgd_probe": scores})
        file.unlink(missing_ok=True)
        rate = f"with a rate of {scores['lr']:g} for 256 samples, chosen on val"
        say(f"SGD probe on test: {_shown(scores)}, {rate}")
        say(f"added to {target}: sgd_probe")
    return 0


def _shown(scores: dict[str, Any]) -> str:
    return ", ".join(f"{ACCURACIES[key]} {value:.3f}" for key, value in scores.items() if key in ACCURACIES)


def _names(given: str | None) -> list[str] | None:
    """The names in a comma-separated list; None if the option is not given."""
    return None if given is None else [name.strip() for name in given.split(",")]
