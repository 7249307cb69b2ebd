"""Accuracy for the same seconds: every joint-embedding method on one data set, encoder and time budget.

    python benchmarks/same_time.py --data DIR [--methods simclr vicreg ...] [--seconds 300] [--images 10000]
                                   [--results FILE]

Trains each method of ``configs/digits`` for the same wall time on images of 32 pixels in folders
(``datamodules/images/folder.py``), with one small convolutional encoder, one batch size and the views of
SimCLR for small images; methods with several views get as many of them as their config for Digits has. The
learning rate decays over the steps that fit: they are estimated from a short run of the same method, whose
time is not counted. One line of JSON a run goes to FILE; runs that are there are not repeated, so an
interrupted benchmark continues. The table at the end is made from all lines of FILE with the same settings.

Seconds are wall time: compare methods within a table only, made on a machine without other work. ``load``
shows how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
METHODS = (
    "barlow_twins byol dino emp_ssl fast_siam lejepa moco moco_v3 nnclr simclr simdino simsiam swav vicreg "
    "visreg"
)
METRICS = {"linear_top1": "linear", "knn_top1": "kNN", "fewshot_top1": "5-shot"}
SETTINGS = ("data", "images", "seconds", "batch")
VIEW = {
    "class_path": "View",
    "init_args": {
        "size": 32,
        "crop_scale": [0.2, 1.0],
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "grayscale_p": 0.2,
    },
}
CALIBRATION = 30  # steps of the run that a method's speed is estimated from


def config_of(method: str, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """The method's config for Digits, on other data: encoder, views, batch and steps are the benchmark's."""
    config = yaml.safe_load((ROOT / "configs" / "digits" / f"{method}.yaml").read_text())
    options = config["model"]["init_args"]
    options["encoder"] = {"class_path": "ConvEncoder", "init_args": {"channels": [64, 128, 256]}}
    epochs = steps * args.batch / args.images
    options["warmup_epochs"] = 0.1 * epochs
    if "queue_size" in options:
        options["queue_size"] = 16 * args.batch
    views = config["data"]["init_args"]["views"]["init_args"]
    more = views.get("num_local", 0)
    crops: dict[str, Any] = {
        "global_view1": VIEW,
        "global_view2": VIEW,
        "local_view": VIEW,
        "num_local": more,
    }
    data = {"root": str(args.data), "image_size": 32, "batch_size": args.batch}
    config["data"] = {
        "class_path": "ImageFolder",
        "init_args": {**data, "views": {"class_path": "MultiCrop", "init_args": crops}},
    }
    config["trainer"] = {
        "max_epochs": -1,
        "max_steps": steps,
        "limit_train_batches": args.images // args.batch,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
    }
    return config


def run(method: str, args: argparse.Namespace, steps: int, seed: int, folder: Path) -> tuple[float, Path]:
    """A run of ``train.py``: seconds between its first and its last step, and its folder."""
    config = folder / f"{method}-{steps}.yaml"
    config.write_text(yaml.safe_dump(config_of(method, args, steps)))
    out = folder / f"{method}-{steps}-{seed}"
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run_dir", str(out)]
    start = time.perf_counter()
    done = subprocess.run([*command, "--seed_everything", str(seed)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, out


def measure(method: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One line of the results: as many steps as fit into the budget, by the speed of two short runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, _ = run(method, args, CALIBRATION, seed, folder)
        longer, _ = run(method, args, 3 * CALIBRATION, seed, folder)
        each = max(1e-4, (longer - short) / (2 * CALIBRATION))  # start and evaluation cancel
        steps = max(CALIBRATION, int(args.seconds / each))
        total, out = run(method, args, steps, seed, folder)
        results = json.loads((out / "results.json").read_text())["results"]
    line = {"method": method, "seed": seed, "steps": steps, "ms_per_step": round(1000 * each, 1)}
    line |= {"data": args.data.name, "images": args.images, "seconds": args.seconds, "batch": args.batch}
    line |= {"process_seconds": round(total, 1), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    return line | {"results": results}


def table(lines: list[dict[str, Any]]) -> str:
    """Rows by linear accuracy, the best first; the untrained network and the raw input at the end."""
    rows = []
    for method in sorted({line["method"] for line in lines}):
        runs = [line for line in lines if line["method"] == method]
        cells = [[100 * line["results"]["pretrained"][key] for line in runs] for key in METRICS]
        steps = statistics.median(line["steps"] for line in runs)
        rows.append((statistics.mean(cells[0]), method, len(runs), steps, cells))
    text = [
        "| method | seeds | steps | " + " | ".join(METRICS.values()) + " |",
        "|---" * (3 + len(METRICS)) + "|",
    ]
    for _, method, seeds, steps, cells in sorted(rows, reverse=True):
        text.append(f"| {method} | {seeds} | {steps:.0f} | " + " | ".join(map(spread, cells)) + " |")
    for encoder in ("random_init", "raw_input"):
        cells = [[100 * line["results"][encoder][key] for line in lines] for key in METRICS]
        text.append(f"| {encoder} | | | " + " | ".join(map(spread, cells)) + " |")
    return "\n".join(text)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with train/<class> and test/<class>"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS.split())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for each run")
    parser.add_argument("--images", type=int, default=10_000, help="of the training split in an epoch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "same_time.jsonl")
    args = parser.parse_args()
    mine = {"data": args.data.name, "images": args.images, "seconds": args.seconds, "batch": args.batch}

    def known() -> list[dict[str, Any]]:
        text = args.results.read_text() if args.results.is_file() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if all(line[key] == mine[key] for key in SETTINGS)]

    for seed in args.seeds:
        for method in args.methods:
            if any((line["method"], line["seed"]) == (method, seed) for line in known()):
                continue
            line = measure(method, args, seed)
            with args.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    if found := known():
        print(table(found))


if __name__ == "__main__":
    main()
