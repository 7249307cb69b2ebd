"""The report: frozen features next to their baselines.

The same clean samples are seen by the pre-trained encoder, by the same network with random weights, and by
the baselines of the data (the input itself, a bag of words). Everything chosen is chosen on ``val``, a piece
of the training data; ``test`` is only counted.

What is measured is in ``evaluation/probes`` (of features with labels) and ``evaluation/measures`` (the
rest). One that cannot run leaves the others alone and is named in the report.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.checks import check_one_of
from datamodules.splits import Split
from evaluation.attempts import Attempts
from evaluation.features import extract_features, known_labels, names_of_classes
from evaluation.measures import measures
from evaluation.measures.base import Measure
from evaluation.probes import probes as known_probes
from evaluation.probes.base import FeatureScore, Labeled
from runtime.discovery import first_paragraph
from sslmodules.base import SSLModule

SCHEMA = 2
"""Version of ``results.json``. 1 (not written) had no ``majority_share``, ``left_out``, ``failed`` and
``collapse``, no macro and top-5 accuracies, and in early runs ``standardise`` for ``standardize``.
"""

Encode = Callable[[Tensor], Tensor]
"""Standardized clean ``input`` (B, ...) to features (B, D)."""

SPLITS: tuple[Split, ...] = ("bank", "val", "test")


def evaluate(
    module: SSLModule,
    random_init: SSLModule,
    data: SSLDataModule,
    checkpoint: str,
    probes: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """The whole report of a trained method on a data set.

    Args:
        module: with trained weights.
        random_init: the same method with random weights.
        data: ``prepare_data`` and ``setup`` are called here.
        checkpoint: where the weights come from, for the report.
        probes: names of probes; None = all that need not be named. Data without labels has none.
        device: where features are computed and probes fitted.
        seed: of the few-shot draws: the run's.
        also: names of measures that are made only where they are named.

    Returns:
        What ``results.json`` holds: method, data, checkpoint, protocol, results by encoder, a section for
        each measure that applies, and by name what was ``left_out`` and what ``failed``, with the reason.

    Raises:
        ConfigError: an unknown probe or measure.
    """
    chosen, chosen_measures = named_probes(probes), named_measures(also)
    device = torch.device(device)
    data.prepare_data()
    data.setup("test")
    was_training = module.training
    trained, untrained = (m.to(device).eval() for m in (module, random_init))
    attempts = Attempts()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "method": type(module).__name__,
        "data": type(data).__name__,
        "checkpoint": checkpoint,
        "protocol": {
            "features": f"{type(module).__name__}.embed of the clean input, eval mode, frozen",
            "random_init": "the same network with random weights",
            "selection_split": "val",
            "reported_split": "test",
            "seed": seed,
        },
        "results": {},
        "left_out": {},
        "failed": attempts.failed,
    }
    if data.num_classes is not None:
        with attempts.of("probes"):
            encoders: dict[str, Encode] = {"pretrained": trained.embed, "random_init": untrained.embed}
            _probe(report, chosen, encoders, data, device, attempts)
    for name, measure in chosen_measures.items():
        with attempts.of(name):
            if measure.applies(trained, data):
                report[name] = measure.measure(trained, data, device)
    module.train(was_training)
    return report


def named_probes(names: Iterable[str] | None) -> list[FeatureScore]:
    """The probes called so, in the order of the table; None = all that need not be named.

    Raises:
        ConfigError: there is no such probe.
    """
    known = known_probes()
    names = [n for n, probe in known.items() if not probe.by_name] if names is None else list(names)
    for name in names:
        check_one_of(tuple(known), probes=name)
    return [probe for name, probe in known.items() if name in names]


def named_measures(names: Iterable[str]) -> dict[str, Measure]:
    """By name those that are always made, and those of the others that are called so.

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
    """By the probe's name, why it cannot run on samples with these labels (N,) of each split."""
    empty = [split for split, values in labels.items() if len(values) == 0]
    if empty:
        return {probe.name: f"no sample of the split {empty[0]} has a label" for probe in probes}
    names = names_of_classes(data)
    found = {probe.name: probe.obstacle(labels["bank"], names) for probe in probes}
    return {name: reason for name, reason in found.items() if reason}


def foreseen_obstacles(data: SSLDataModule) -> dict[str, str]:
    """As ``obstacles`` of all probes, before training: from the labels alone, without reading a sample."""
    if data.num_classes is None:
        return {}
    labels = {split: known_labels(data, split) for split in SPLITS}
    listed = {split: values for split, values in labels.items() if values is not None}
    return obstacles(named_probes(None), listed, data) if "bank" in listed else {}


def is_complete(results: Path) -> bool:
    """Does a ``results.json`` exist, of any version, in which nothing failed?"""
    try:
        return not json.loads(results.read_text(encoding="utf-8")).get("failed")
    except (OSError, ValueError, AttributeError):
        return False


def _probe(
    report: dict[str, Any],
    probes: list[FeatureScore],
    encoders: dict[str, Encode],
    data: SSLDataModule,
    device: torch.device,
    attempts: Attempts,
) -> None:
    """Add the accuracies of every encoder and baseline to the report, and the protocol that they need."""
    protocol, seed = report["protocol"], report["protocol"]["seed"]
    with attempts.of("baselines"):
        baselines = data.baselines()
        encoders = {**encoders, **baselines}
        protocol |= {name: first_paragraph(inspect.getdoc(f)) for name, f in baselines.items()}
    splits = _features(encoders, data, device, attempts)
    if not splits["test"]:
        return
    labels: dict[Split, Tensor] = {split: next(iter(found.values()))[1] for split, found in splits.items()}
    protocol["samples"] = {split: len(values) for split, values in labels.items()}
    report["left_out"] = obstacles(probes, labels, data)
    if len(labels["test"]):
        report["majority_share"] = int(labels["test"].bincount().max()) / len(labels["test"])
    runnable = [probe for probe in probes if probe.name not in report["left_out"]]
    for probe in runnable:
        protocol |= probe.protocol(len(labels["bank"]))
    for encoder in splits["test"]:
        train, val, test = (splits[split][encoder] for split in SPLITS)
        row = report["results"].setdefault(encoder, {})
        for probe in runnable:
            with attempts.of(f"{probe.name} of {encoder}"):
                scores, settings = probe.score(train, val, test, data.num_classes or 0, seed)
                row |= scores
                for key, value in settings.items():
                    protocol.setdefault(f"{key}_by_encoder", {})[encoder] = value
                    if encoder == "pretrained":
                        protocol[key] = value


def _features(
    encoders: dict[str, Encode],
    data: SSLDataModule,
    device: torch.device,
    attempts: Attempts,
) -> dict[Split, dict[str, Labeled]]:
    """Features of every split and encoder, without the encoders that failed on the way."""
    broken: set[str] = set()

    def guarded(name: str) -> Encode:
        def encode(x: Tensor) -> Tensor:
            with attempts.of(f"features of {name}"):
                if name not in broken:
                    return encoders[name](x)
            broken.add(name)
            return torch.zeros(len(x), 1, device=device)

        return encode

    found = {s: extract_features({n: guarded(n) for n in encoders}, data, s, device) for s in SPLITS}
    return {s: {n: pair for n, pair in rows.items() if n not in broken} for s, rows in found.items()}
