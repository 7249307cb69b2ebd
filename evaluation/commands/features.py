"""Features, labels and file names of every split as one npz file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import SSLDataModule
from datamodules.splits import Split
from evaluation.commands.outputs import check_target, write_arrays
from runtime.optional import offers
from sslmodules import SSLModule

SPLITS: tuple[tuple[Split, str], ...] = (("bank", "train"), ("val", "val"), ("test", "test"))


# ---- features ----------------------------------------------------------------------------------------------


@torch.no_grad()
def export_features(
    module: SSLModule, data: SSLDataModule, output: Path, checkpoint: str, device: torch.device
) -> Iterator[str]:
    """Write the frozen features of all labeled training, validation and test samples of a data set.

    Arrays, a row per sample: ``features`` (N, D) float32, ``labels`` (N,) int64 (-1 = unknown), ``split``
    (N,) "train", "val" or "test", ``index`` (N,) int64 within the split and, for data that offers them,
    ``files`` (N,) the paths. Also ``class_names``.

    Args:
        module: in eval mode.
        data: any data set that fits the encoder; "train" is its bank, the labeled training data as probes see
            it.
        output: an npz file.
        checkpoint: where the weights come from, noted in the file.
        device: where to compute.

    Yields:
        Lines for the terminal.
    """
    check_target(output, ".npz", "--features")
    data.prepare_data()
    data.setup("test")
    module.to(device)
    parts: dict[str, list[Any]] = {name: [] for name in ("features", "labels", "split", "index", "files")}
    for split, name in SPLITS:
        count = 0
        for raw in data.eval_dataloader(data.dataset(split)):
            x = data.transform({"input": raw["input"].to(device)}, None)["input"]
            parts["features"].append(module.embed(x).flatten(1).float().cpu().numpy())
            parts["labels"].append(raw["label"].numpy())
            count += len(x)
        parts["split"].append(np.full(count, name))
        parts["index"].append(np.arange(count))
        if offers(data, "files") and not data.synthetic:
            parts["files"].append(np.array(data.files(split)))
    arrays = {name: np.concatenate(rows) for name, rows in parts.items() if rows}
    arrays["class_names"] = np.array(data.class_names, dtype=str)
    sizes = ", ".join(f"{len(rows)} {name}" for rows, (_, name) in zip(parts["split"], SPLITS, strict=True))
    yield f"{write_arrays(output, checkpoint, arrays)}  features {arrays['features'].shape} float32: {sizes}"
