"""Every method on the embedded digits: test accuracies of frozen features, mean and spread over seeds.

    python benchmarks/digits.py [--methods simclr moco] [--seeds 0 1 2] [--json FILE]

Runs ``python train.py --config configs/digits/<method>.yaml --seed_everything S`` for each method and seed,
each in a process and a run folder of its own, and prints the rows of the README's table from their
``results.json``. Nothing is chosen here: the configs' settings were chosen on the validation split, and each
test number is counted once per seed.
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

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"linear_top1": "linear", "knn_top1": "kNN", "fewshot_top1": "5-shot"}
ENCODERS = ("pretrained", "random_init", "raw_input")


def train(method: str, seed: int, folder: Path) -> tuple[dict[str, dict[str, float]], float]:
    """One run: its results by encoder, and the seconds of the whole process."""
    run = folder / f"{method}-{seed}"
    config = ROOT / "configs" / "digits" / f"{method}.yaml"
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run_dir", str(run)]
    command += ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads((run / "results.json").read_text())["results"], time.perf_counter() - start


def main() -> None:
    known = sorted(p.stem for p in (ROOT / "configs" / "digits").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=known, choices=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
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
            runs = [train(method, seed, Path(folder)) for seed in args.seeds]
            seconds = statistics.median(t for _, t in runs)
            numbers[method] = {
                "seeds": args.seeds,
                "seconds": [t for _, t in runs],
                "results": [r for r, _ in runs],
            }
            for encoder in ENCODERS:
                cells = []
                for key in METRICS:
                    values = [100 * results[encoder][key] for results, _ in runs]
                    spread = statistics.stdev(values) if len(values) > 1 else 0.0
                    cells.append(f"{statistics.mean(values):.1f} +- {spread:.1f}")
                label, taken = (method, f"{seconds:.0f}") if encoder == "pretrained" else ("", "")
                print(f"| {label} | {encoder} | " + " | ".join(cells) + f" | {taken} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
