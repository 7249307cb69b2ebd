"""How long a checkpoint takes to be written and to be read: what SIGTERM and SIGKILL have to be apart.

    python benchmarks/save.py --folder DIR [--models resnet50 vit_base_patch16_224] [--rounds 5]

Writes a checkpoint of the size of a model with two more tensors for each of its weights (Adam's moments), as
``train.py`` does: beside the target, synchronized with the disk, renamed. DIR should lie where runs do. A
method's projector adds to the model, a teacher is a second model. Sizes take turns within each round; medians
and ranges are printed. The file has been written a moment ago, so reading is from memory: a lower bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, median_and_range
from runtime.checkpoints import AtomicCheckpointIO, read_checkpoint


def checkpoint_of(model: str) -> dict[str, Any]:
    """Random tensors of the shapes of a timm model, three times."""
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in timm.create_model(model, num_classes=0).state_dict().items()
        }
    weights, first, second = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3))
    moments = {i: {"exp_avg": first[name], "exp_avg_sq": second[name]} for i, name in enumerate(shapes)}
    return {"state_dict": weights, "optimizer_states": [{"state": moments}]}


def save_and_read(content: dict[str, Any], path: Path) -> tuple[float, float]:
    """Seconds of writing a checkpoint, and of reading it back."""
    start = time.perf_counter()
    AtomicCheckpointIO().save_checkpoint(content, path)
    written = time.perf_counter()
    read_checkpoint(path)
    return written - start, time.perf_counter() - written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the checkpoints are written, and removed again"
    )
    parser.add_argument(
        "--models", nargs="+", default=["resnet50", "vit_base_patch16_224", "vit_large_patch16_224"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    contents = {model: checkpoint_of(model) for model in args.models}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        paths = {model: Path(folder) / f"{model}.ckpt" for model in contents}
        runs = {model: partial(save_and_read, contents[model], path) for model, path in paths.items()}
        seconds = interleave(runs, args.rounds)
        megabytes = {model: path.stat().st_size / 1e6 for model, path in paths.items()}
    print("| model | MB | save, seconds | read and check, seconds | MB/s written |")
    print("|---|---|---|---|---|")
    for model, times in seconds.items():
        saving, reading = zip(*times, strict=True)
        speed = megabytes[model] / statistics.median(saving)
        print(
            f"| {model} | {megabytes[model]:.0f} | {median_and_range(saving, 2)} | "
            f"{median_and_range(reading, 2)} | {speed:.0f} |"
        )


if __name__ == "__main__":
    main()
