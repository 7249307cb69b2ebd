"""Runs on MNIST that a benchmark trains or is given."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.parts.rounds import refuse
from runtime.checkpoints import load_module
from sslmodules.base import SSLModule

ROOT = Path(__file__).resolve().parents[2]


def train(config: str, root: str, seed: int, folder: Path, *options: str) -> float:
    """Train one run and return the seconds of the whole command."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / config), "--data.root", root]
    command += [*options, "--seed_everything", str(seed), "--run_dir", str(folder), "--evaluate", "false"]
    command += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        refuse(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def checkpoint(run: str) -> Path:
    return Path(run) / "checkpoints" / "last.ckpt" if Path(run).is_dir() else Path(run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``runs`` reads, and ``--json``."""
    parser.add_argument("--root", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--run", nargs="+", default=[], help="measure these runs instead of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")


def runs(
    args: argparse.Namespace, config: str, *options: str
) -> Iterator[tuple[str, SSLModule, float | None]]:
    """The runs of ``--run``, or else one per seed, trained in a temporary folder.

    Yields:
        Name of the run, its method, and the seconds of its training if it was trained here.
    """
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    for run in args.run:
        yield run, load_module(checkpoint(run)), None
    if args.run:
        return
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            folder = Path(temporary) / f"seed{seed}"
            seconds = train(config, args.root, seed, folder, *options)
            yield f"seed {seed}", load_module(checkpoint(str(folder))), seconds


def trained_in(seconds: float | None) -> str:
    return "" if seconds is None else f"; trained in {seconds:.0f} s"


def over_runs(values: Sequence[float], unit: str = "") -> str:
    """Mean +- standard deviation of two runs or more."""
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}{unit} over {len(values)} runs"
