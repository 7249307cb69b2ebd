"""Every method on the embedded digits: test accuracies of frozen features, mean and spread over seeds.

    python benchmarks/digits.py [--methods simclr moco] [--seeds 0 1 2] [--json FILE]
    python benchmarks/digits.py --methods lejepa vicreg --views 4

Runs ``python train.py --config configs/digits/<method>.yaml --seed_everything S`` for each method and seed,
each in a process and a run folder of its own, and prints the rows of the results table from their
``results.json``: mean ± standard deviation over seeds. The row ``gain`` is the mean difference from the same
seed's untrained network ± its standard error; a gain below two standard errors is marked as not shown.
Nothing is chosen here: the configs' settings were chosen on the validation split, and each test number is
counted once per seed.

``--views N`` takes N views of each image, all by the recipe of the config's first view, and trains for 2 / N
of the epochs: as many encoded views in N / 2 times fewer steps. For methods that take any number of views.
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
METRICS = {"linear_top1": "linear", "knn_top1": "kNN", "fewshot_top1": "5-shot"}
ENCODERS = ("pretrained", "random_init", "raw_input")


def several_views(config: Path, count: int) -> dict[str, Any]:
    """Changes of a config with two views: ``count`` of its first recipe, 2 / ``count`` of the epochs."""
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    view = given["data"]["init_args"]["views"]["init_args"].get("view1")
    if view is None:
        sys.exit(f"--views: expected a config with view1, such as lejepa, got {config.stem}")
    crops = {
        "global_view1": view,
        "global_view2": view,
        "local_view": view,
        "num_local": 0,
        "num_global": count,
    }
    return {
        "data": {"init_args": {"views": {"class_path": "MultiCrop", "init_args": crops}}},
        "trainer": {"max_epochs": round(given["trainer"]["max_epochs"] * 2 / count)},
    }


def train(
    method: str, seed: int, folder: Path, views: int | None = None
) -> tuple[dict[str, dict[str, float]], float]:
    """One run: its results by encoder, and the seconds of the whole process."""
    run = folder / f"{method}-{seed}"
    config = ROOT / "configs" / "digits" / f"{method}.yaml"
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run_dir", str(run)]
    if views is not None:
        changed = folder / f"{method}-views.yaml"
        changed.write_text(yaml.safe_dump(several_views(config, views)), encoding="utf-8")
        command += ["--config", str(changed)]
    command += ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads((run / "results.json").read_text())["results"], time.perf_counter() - start


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def gain(values: list[float]) -> str:
    """Mean ± standard error of differences, which need two seeds or more."""
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} ± {error:.1f}" + ("" if abs(mean) > 2 * error else " (not shown)")


def rows(method: str, runs: list[tuple[dict[str, dict[str, float]], float]]) -> list[str]:
    """The table's rows of a method: each encoder, then what training added."""
    seconds, table = f"{statistics.median(t for _, t in runs):.0f}", []
    for encoder in ENCODERS:
        cells = [spread([100 * results[encoder][key] for results, _ in runs]) for key in METRICS]
        first = encoder == "pretrained"
        table.append(" | ".join(["", method if first else "", encoder, *cells, seconds if first else ""]))
    trained, untrained = ENCODERS[:2]
    cells = [gain([100 * (r[trained][key] - r[untrained][key]) for r, _ in runs]) for key in METRICS]
    return [f"{row} |".strip() for row in [*table, " | ".join(["", "", "gain", *cells, ""])]]


def main() -> None:
    known = sorted(p.stem for p in (ROOT / "configs" / "digits").glob("*.yaml"))
    known.remove("finetune")  # learns from the labels
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=known, choices=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--views", type=int, metavar="N", help="of each image (default: as in the config)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    args = parser.parse_args()
    numbers: dict[str, dict[str, object]] = {}
    print(
        f"{len(args.seeds)} seeds, mean ± standard deviation in points; {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print("| method | encoder | " + " | ".join(METRICS.values()) + " | seconds |")
    print("|---|---|" + "---|" * (len(METRICS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            runs = [train(method, seed, Path(folder), args.views) for seed in args.seeds]
            numbers[method] = {
                "seeds": args.seeds,
                "seconds": [t for _, t in runs],
                "results": [r for r, _ in runs],
            }
            print("\n".join(rows(method, runs)), flush=True)
            if args.json:
                args.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
