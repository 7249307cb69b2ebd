"""SimCLR's training step on one GPU beside lightly's pipeline, beside its own ceiling, and beside the GPU's.

    pip install -e '.[bench]'
    python benchmarks/peers.py --rounds 3 --json peers.json

The variants are those of benchmarks/train.py (its text says what is made equal), here with ResNet-18, bf16
and as many worker processes for lightly as the machine has cores:

- ours: what ``python train.py`` runs, callbacks and TensorBoard log included.
- ceiling: the same with views that were made before and lie on the device: all that a data path can reach.
- bare: a hand-written loop over those views.
- lightly: its SimCLRTransform in a DataLoader, its loss and head, in the loop of its example.
- ours, compiled: "ours" with ``torch.compile`` on the encoder (``--compile``; the compilation is in the
  warm-up epoch).

They take turns within a round; an epoch warms up, the next one counts. Ratios within a round, then median and
range. The GPU's matrix ceiling is the median of ten products of two random bf16 matrices of 8192 x 8192. The
share of it that a variant reaches counts the floating-point operations of forward and backward pass as
torch's FlopCounterMode does, for two views an image.

Exit status: 0 measured, whether targets are met or not; 2 bad arguments; 3 not run (no GPU, or lightly is
missing).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it runs from a clone without installing

from benchmarks.train import (
    NOT_RUN,
    SIZE,
    ArrayImages,
    PremadeViews,
    bare,
    build_encoder,
    in_trainer,
    lightly,
    make_views,
    measure,
    summary,
    synchronize,
)
from datamodules.base import SSLDataModule
from datamodules.transforms.recipes import SimCLRViews
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework


def matrix_ceiling(device: torch.device, size: int, repeats: int = 10) -> float:
    """Floating-point operations per second of a large product in bfloat16, on random numbers: zeros are
    faster.
    """
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def operations_per_image(args: argparse.Namespace, device: torch.device) -> float:
    """Of the encoder's forward and backward pass over the two views of an image."""
    encoder = build_encoder(args).to(device)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.randn(2, 3, SIZE, SIZE, device=device)).sum().backward()
    return float(counter.get_total_flops())


def variants(
    images: np.ndarray, args: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], float]]:
    """By name what runs a warm-up epoch and a counted one, and returns the seconds of the latter."""
    batches = make_views(images, args, device)

    def data() -> SSLDataModule:
        return ArrayImages(images, views=SimCLRViews(SIZE), batch_size=args.batch)

    found = {
        "ours": in_trainer(data, args),
        "ceiling": in_trainer(lambda: PremadeViews(batches, batch_size=args.batch), args),
        "bare": bare(batches, args, device),
        f"lightly, {args.workers} workers": lightly(images, args.workers, args, device),
    }
    if args.compile:
        found["ours, compiled"] = in_trainer(data, args, compiled=True)
    return found


def compare(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Ratios by round, with their targets."""
    peer = next(name for name in seconds if name.startswith("lightly"))
    pairs = [
        (f"ours / {peer}", peer, "ours", 3.0),
        ("ours / ceiling", "ceiling", "ours", 0.85),
        ("ceiling / bare", "bare", "ceiling", None),
    ]
    if "ours, compiled" in seconds:
        pairs.append(("compiled / not compiled", "ours", "ours, compiled", None))
    rows = []
    for name, slower, faster, target in pairs:
        values = [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
        rows.append({"name": f"images/s, {name}", "values": values, "at_least": target, **summary(values)})
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_480, help="of an epoch; 20480 = 40 steps of 512")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="of lightly's DataLoader (default: cores)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="cpu only tries the script out"
    )
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices of the ceiling")
    parser.add_argument("--compile", action="store_true", help="also measure the compiled encoder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args()
    for name, least in (("rounds", 1), ("batch", 2), ("workers", 0), ("images", args.batch), ("matrix", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


def main() -> int:
    args = parse_arguments()
    args.encoder, args.precision = "resnet18", "bf16-mixed"
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "not run: no GPU (--device cpu tries the script out, its numbers mean nothing)", file=sys.stderr
        )
        return NOT_RUN
    environment = describe_environment()
    try:
        environment["versions"]["lightly"] = importlib.metadata.version("lightly")
    except importlib.metadata.PackageNotFoundError:
        print("not run: lightly is not installed: pip install -e '.[bench]'", file=sys.stderr)
        return NOT_RUN
    silence_framework()
    logging.getLogger("lightning.pytorch").setLevel(
        logging.WARNING
    )  # two lines about devices from every Trainer
    torch.backends.cudnn.benchmark = True  # for every variant: the shapes never change
    torch.manual_seed(0)
    device = torch.device(args.device)
    name = (
        torch.cuda.get_device_name(device)
        if args.device == "cuda"
        else "CPU: a trial of the script, no measurement"
    )
    print(
        f"{name}; {os.cpu_count()} cores; ResNet-18 (CIFAR), bf16-mixed, batch {args.batch} x 2 views, "
        f"{args.rounds} rounds"
    )
    print(
        ", ".join(
            f"{k} {v}" for k, v in environment["versions"].items() if k in ("torch", "lightning", "lightly")
        )
    )

    operations, ceiling = operations_per_image(args, device), matrix_ceiling(device, args.matrix)
    images = np.random.default_rng(0).integers(0, 256, (args.images, SIZE, SIZE, 3), dtype=np.uint8)
    seconds = measure(variants(images, args, device), args.rounds)

    steps = args.images // args.batch
    print(
        f"\nmatrix ceiling {ceiling / 1e12:.0f} TFLOP/s; {operations / 1e9:.2f} GFLOP an image (two views, "
        "both passes)"
    )
    print(f"\n{'':24}{'images/s':>10}{'min':>9}{'max':>9}{'ms/step':>9}{'share of the matrix ceiling':>29}")
    for variant, values in seconds.items():
        rates = sorted(steps * args.batch / s for s in values)
        rate = statistics.median(rates)
        share = f"{rate * operations / ceiling:.1%}"
        print(
            f"{variant:24}{rate:10.0f}{rates[0]:9.0f}{rates[-1]:9.0f}"
            f"{1000 * args.batch / rate:9.2f}{share:>29}"
        )
    print()
    rows = compare(seconds)
    for row in rows:
        target = (
            ""
            if row["at_least"] is None
            else f"   {'PASS' if row['median'] >= row['at_least'] else 'MISS'} (target {row['at_least']:g})"
        )
        print(f"{row['name']:44}{row['median']:8.2f}   {row['min']:.2f} .. {row['max']:.2f}{target}")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        report = {
            "settings": settings,
            "device": name,
            "environment": environment,
            "matrix_ceiling_flops": ceiling,
            "flop_per_image": operations,
            "seconds": seconds,
            "ratios": rows,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
