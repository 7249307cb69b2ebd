"""Writes features, labels and file names of every split to one npz file."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, ClassVar

import numpy as np

from datamodules.splits import Split
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import check_target, write_arrays
from evaluation.features import embed_split
from runtime.optional import offers

SPLITS: tuple[tuple[Split, str], ...] = (("bank", "train"), ("val", "val"), ("test", "test"))


class FeaturesCommand(Command):
    """features RUN FILE.npz: features, labels and file names of the train, val and test samples."""

    reads_data = True
    options: ClassVar = {"file": {"metavar": "FILE.npz", "type": "path", "help": "what to write"}}
    overwrite = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        check_target(given.file, ".npz", given.overwrite, option="FILE.npz")
        arrays = feature_arrays(run)
        told = write_arrays(given.file, str(run.checkpoint), arrays)
        sizes = ", ".join(f"{(arrays['split'] == name).sum()} {name}" for _, name in SPLITS)
        say(f"{told}  features {arrays['features'].shape} float32: {sizes}")
        return 0


def feature_arrays(run: TrainedRun) -> dict[str, np.ndarray]:
    """The frozen features of all training, validation and test samples.

    Returns:
        Arrays with a row per sample: ``features`` (N, D) float32, ``labels`` (N,) int64 (-1 = unknown),
        ``split`` (N,) "train" (the probes' bank: the labeled training samples), "val" or "test", ``index``
        (N,) int64 within the split, ``files`` (N,) if the data has them, and ``class_names``.
    """
    data = run.data
    parts: dict[str, list[Any]] = {name: [] for name in ("features", "labels", "split", "index", "files")}
    for split, name in SPLITS:
        features, labels = embed_split({"": run.module.embed}, data, split, run.device)
        parts["features"].append(features[""].cpu().numpy())
        parts["labels"].append(labels.cpu().numpy())
        parts["split"].append(np.full(len(labels), name))
        parts["index"].append(np.arange(len(labels)))
        if offers(data, "files") and not data.synthetic:
            parts["files"].append(np.array(data.files(split)))
    arrays = {name: np.concatenate(rows) for name, rows in parts.items() if rows}
    arrays["class_names"] = np.array(data.class_names, dtype=str)
    return arrays
