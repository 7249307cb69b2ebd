"""The report: frozen features next to their baselines.

The pre-trained encoder, the same network with random weights, and the data's baselines (the input itself, a
bag of words) see the same clean samples. Every choice is made on ``val``, a part of the training data;
``test`` is used once.

Measurements are in ``evaluation/probes`` (of features with labels) and ``evaluation/measures`` (all others).
One that fails does not affect the others and is named in the report.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.checks import check_one_of
from datamodules.splits import Split
from evaluation.attempts import Attempts
from evaluation.extraction import SPLITS, Extraction
from evaluation.features import Means, known_labels, names_of_classes
from evaluation.kept import Kept, origin_of
from evaluation.layers import layer_encoders
from evaluation.measures import measures
from evaluation.measures.base import Measure
from evaluation.probes import probes as known_probes
from evaluation.probes.base import FeatureScore, Labeled
from runtime.discovery import first_paragraph
from sslmodules.base import SSLModule

SCHEMA = 2
"""Version of ``results.json``. 1 (not written) had no ``majority_share``, ``left_out``, ``failed`` and
``collapse``, no macro and top-5 accuracies, and in early runs other ``OLD_KEYS``.
"""

OLD_KEYS = {"standardise": "standardize"}
"""Keys of the protocol in early runs, and their present names."""

ADDED = ("sgd_probe", "head_linear", "head_mlp", "head_attentive")
"""Results of probes with a command of their own, which later results of the same weights keep."""


def read_results(path: Path) -> dict[str, Any]:
    """A report written by any version of ``evaluate``; empty if there is none or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and {"method", "protocol", "results"} <= content.keys()
    parts = [content[key] for key in ("protocol", "results", *ADDED) if key in content] if known else [None]
    if not all(isinstance(part, dict) for part in parts):
        return {}
    protocol = {OLD_KEYS.get(key, key): value for key, value in content["protocol"].items()}
    return content | {"protocol": protocol}


def evaluate(
    module: SSLModule,
    random_init: SSLModule,
    data: SSLDataModule,
    checkpoint: str,
    probes: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    also: Iterable[str] = (),
    layers: str | None = None,
    means: Means = Means(),  # noqa: B008  it holds nothing that changes
    kept: Path | None = None,
) -> dict[str, Any]:
    """The complete report of a trained method on a data set.

    Args:
        module: with trained weights.
        random_init: the same method with random weights.
        data: ``prepare_data`` and ``setup`` are called here.
        checkpoint: source of the weights, for the report.
        probes: names of probes; None = the default ones. Data without labels has none.
        device: where features are computed and probes fitted.
        seed: seed of the few-shot draws: the run's.
        also: names of optional measures to include.
        layers: blocks of the trained encoder to probe too, see ``layer_encoders``.
        means: processes (rank 0 calls this function, the others ``assist``), precision, and storage for
            features too large for memory.
        kept: stores finished parts, so that an interrupted evaluation can continue; the caller removes the
            file once the report is written. None = nothing is stored.

    Returns:
        The content of ``results.json``: method, data, checkpoint, protocol, results by encoder, a section for
        each measure that applies, and, with reasons, what was ``left_out`` and what ``failed``.

    Raises:
        ConfigError: an unknown probe or measure.
    """
    chosen, chosen_measures = named_probes(probes), named_measures(also)
    device = torch.device(device)
    was_training = module.training
    inside = {} if layers is None else layer_encoders(module, layers, data.padding)
    attempts = Attempts()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "method": type(module).__name__,
        "data": type(data).__name__,
        "checkpoint": checkpoint,
        "protocol": {
            "features": f"{type(module).__name__}.embed of the clean input, eval mode, frozen",
            "random_init": "the same network with random weights",
            **({"layers": "mean over positions or tokens of a block's output"} if inside else {}),
            "selection_split": "val",
            "reported_split": "test",
            "seed": seed,
        },
        "results": {},
        "left_out": {},
        "failed": attempts.failed,
    }
    origin = {} if kept is None else _origin(module, data, chosen, seed, means, layers)
    with means.team.leading():
        extraction = Extraction(module, random_init, data, device, means, attempts, inside)
        if data.num_classes is not None:
            with attempts.of("probes"):
                _probe(report, chosen, extraction, Kept(kept, origin))
    for name, measure in chosen_measures.items():
        with attempts.of(name):
            if measure.applies(module, data):
                report[name] = measure.measure(module, data, device)
            elif measure.by_name:
                report["left_out"][name] = f"not for {report['method']} on {report['data']}"
    module.train(was_training)
    return report


def assist(
    module: SSLModule, random_init: SSLModule, data: SSLDataModule, device: torch.device, means: Means
) -> None:
    """Called on the other ranks while rank 0 is in ``evaluate``: compute their share of the features."""
    Extraction(module, random_init, data, device, means, Attempts()).follow()


def _origin(
    module: SSLModule,
    data: SSLDataModule,
    probes: list[FeatureScore],
    seed: int,
    means: Means,
    layers: str | None,
) -> dict[str, Any]:
    """Identifies what a stored part of a report was measured on."""
    return {
        "schema": SCHEMA,
        **origin_of(module, data),
        "probes": [probe.name for probe in probes],
        "seed": seed,
        "precision": means.precision,
        "layers": layers,
    }


def named_probes(names: Iterable[str] | None) -> list[FeatureScore]:
    """The probes with these names, in the order of the table; None = the default ones.

    Raises:
        ConfigError: there is no such probe.
    """
    known = known_probes()
    names = [n for n, probe in known.items() if not probe.by_name] if names is None else list(names)
    for name in names:
        check_one_of(tuple(known), probes=name)
    return [probe for name, probe in known.items() if name in names]


def named_measures(names: Iterable[str]) -> dict[str, Measure]:
    """The default measures, and the optional ones with these names.

    Raises:
        ConfigError: there is no such measure.
    """
    names = list(names)
    known = measures()
    for name in names:
        check_one_of(tuple(n for n, measure in known.items() if measure.by_name), measures=name)
    return {name: m for name, m in known.items() if not m.by_name or name in names}


def obstacles(
    probes: Iterable[FeatureScore], labels: dict[Split, Tensor], data: SSLDataModule
) -> dict[str, str]:
    """Why probes cannot run with these labels (N,) of each split, by the probe's name."""
    empty = [split for split, values in labels.items() if len(values) == 0]
    if empty:
        return {probe.name: f"no sample of the split {empty[0]} has a label" for probe in probes}
    names = names_of_classes(data)
    found = {probe.name: probe.obstacle(labels["bank"], names) for probe in probes}
    return {name: reason for name, reason in found.items() if reason}


def foreseen_obstacles(data: SSLDataModule) -> dict[str, str]:
    """As ``obstacles`` for all probes, before training: from the labels alone, without reading samples."""
    if data.num_classes is None:
        return {}
    labels = {split: known_labels(data, split) for split in SPLITS}
    listed = {split: values for split, values in labels.items() if values is not None}
    return obstacles(named_probes(None), listed, data) if "bank" in listed else {}


def is_complete(results: Path) -> bool:
    """Whether a ``results.json`` of any version exists in which nothing failed."""
    try:
        return not json.loads(results.read_text(encoding="utf-8")).get("failed")
    except (OSError, ValueError, AttributeError):
        return False


def _probe(report: dict[str, Any], probes: list[FeatureScore], extraction: Extraction, kept: Kept) -> None:
    """Add the accuracies of every encoder and baseline to the report, with their protocol."""
    baselines = {name: first_paragraph(inspect.getdoc(f)) for name, f in extraction.baselines.items()}
    report["protocol"] |= baselines
    if extraction.many:
        report["protocol"]["precision"] = extraction.means.precision
    report |= kept.take()
    for group in extraction.groups:
        todo = [name for name in group if name not in report["results"]]
        splits = extraction.features(todo) if todo else {}
        for encoder in list(splits.get("test", {})):
            # removed here, so that the features of one encoder are freed before the next ones are computed
            _measure_encoder(report, probes, extraction, encoder, {s: splits[s].pop(encoder) for s in SPLITS})
            kept.put(_complete(report))


def _measure_encoder(
    report: dict[str, Any],
    probes: list[FeatureScore],
    extraction: Extraction,
    encoder: str,
    splits: dict[Split, Labeled],
) -> None:
    """Add a row of accuracies; before the first, also the values common to all rows."""
    protocol, data = report["protocol"], extraction.data
    if "samples" not in protocol:
        labels = {split: of_split for split, (_, of_split) in splits.items()}
        protocol["samples"] = {split: len(values) for split, values in labels.items()}
        report["left_out"] = obstacles(probes, labels, data)
        if len(labels["test"]):
            report["majority_share"] = int(labels["test"].bincount().max()) / len(labels["test"])
        for probe in probes:
            if probe.name not in report["left_out"]:
                protocol |= probe.protocol(len(labels["bank"]))
    row = report["results"].setdefault(encoder, {})
    for probe in probes:
        if probe.name in report["left_out"]:
            continue
        probe.team = extraction.means.team
        with extraction.attempts.of(f"{probe.name} of {encoder}"):
            scores, settings = probe.score(
                splits["bank"], splits["val"], splits["test"], data.num_classes or 0, protocol["seed"]
            )
            row |= scores
            for key, value in settings.items():
                protocol.setdefault(f"{key}_by_encoder", {})[encoder] = value
                if encoder == "pretrained":
                    protocol[key] = value


def _complete(report: dict[str, Any]) -> dict[str, Any]:
    """The parts of a report that need not be measured again: encoders without a failed probe."""
    failed = {part.rpartition(" of ")[2] for part in report["failed"]}
    results = {encoder: row for encoder, row in report["results"].items() if encoder not in failed}
    same = ("protocol", "left_out", "majority_share")
    return {"results": results} | {key: report[key] for key in same if key in report}
