"""SimCLR's training step on one GPU beside lightly's pipeline, beside its own ceiling, and beside the GPU's.

    pip install -e '.[bench]'
    python benchmarks/peers.py --rounds 3 --json peers.json

The variants are those of benchmarks/train.py (whose docstring lists what is made equal), here with ResNet-18,
bf16 and as many worker processes for lightly as the machine has cores:

- ours: what ``python train.py`` runs, callbacks and TensorBoard log included.
- ceiling: the same with views that were made before and lie on the device: all that a data path can reach.
- bare: a hand-written loop over those views.
- lightly: its SimCLRTransform in a DataLoader, its loss and head, in the loop of its example.
- ours, compiled: "ours" with ``--compile true`` (``--compile``; the compilation is in the warm-up epoch).

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
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import (
    device_name,
    interleave,
    not_run,
    ratios,
    summary,
    wall_seconds,
    write_json,
)
from benchmarks.parts.simclr import (
    SIZE,
    ArrayImages,
    PremadeViews,
    bare,
    build_encoder,
    in_trainer,
    lightly,
    make_views,
)
from benchmarks.parts.training import silence
from datamodules.base import SSLDataModule
from datamodules.transforms.recipes import SimCLRViews
from runtime.environment import describe_environment


def matrix_ceiling(device: torch.device, size: int, repeats: int = 10) -> float:
    """Floating-point operations per second of a large product in bfloat16, on random numbers: zeros are
    faster.
    """
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [wall_seconds(lambda: torch.mm(a, b), device) for _ in range(repeats + 3)]
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
        values = ratios(seconds[slower], seconds[faster])
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


def describe(args: argparse.Namespace, name: str, versions: dict[str, str]) -> None:
    """Print what is compared, and on what."""
    print(
        f"{name}; {os.cpu_count()} cores; ResNet-18 (CIFAR), bf16-mixed, batch {args.batch} x 2 views, "
        f"{args.rounds} rounds"
    )
    print(", ".join(f"{k} {versions[k]}" for k in versions if k in ("torch", "lightning", "lightly")))


def print_rates(
    seconds: dict[str, list[float]], args: argparse.Namespace, flop: float, ceiling: float
) -> None:
    """Images per second, and the share of the matrix ceiling.

    Args:
        seconds: of an epoch, by variant and round.
        flop: floating-point operations of an image.
        ceiling: floating-point operations per second.
    """
    print(
        f"\nmatrix ceiling {ceiling / 1e12:.0f} TFLOP/s; {flop / 1e9:.2f} GFLOP an image (two views, "
        "both passes)"
    )
    print(f"\n{'':24}{'images/s':>10}{'min':>9}{'max':>9}{'ms/step':>9}{'share of the matrix ceiling':>29}")
    images = args.images // args.batch * args.batch
    for variant, values in seconds.items():
        rates = sorted(images / s for s in values)
        rate = statistics.median(rates)
        share = f"{rate * flop / ceiling:.1%}"
        print(
            f"{variant:24}{rate:10.0f}{rates[0]:9.0f}{rates[-1]:9.0f}"
            f"{1000 * args.batch / rate:9.2f}{share:>29}"
        )


def print_ratios(rows: list[dict[str, Any]]) -> None:
    print()
    for row in rows:
        target = ""
        if row["at_least"] is not None:
            verdict = "PASS" if row["median"] >= row["at_least"] else "MISS"
            target = f"   {verdict} (target {row['at_least']:g})"
        print(f"{row['name']:44}{row['median']:8.2f}   {row['min']:.2f} .. {row['max']:.2f}{target}")


def main() -> int:
    args = parse_arguments()
    args.encoder, args.precision = "resnet18", "bf16-mixed"
    if args.device == "cuda" and not torch.cuda.is_available():
        return not_run("not run: no GPU (--device cpu tries the script out, its numbers mean nothing)")
    environment = describe_environment()
    try:
        environment["versions"]["lightly"] = importlib.metadata.version("lightly")
    except importlib.metadata.PackageNotFoundError:
        return not_run("not run: lightly is not installed: pip install -e '.[bench]'")
    silence()
    torch.backends.cudnn.benchmark = True  # for every variant: the shapes never change
    torch.manual_seed(0)
    device = torch.device(args.device)
    name = device_name(device, "CPU: a trial of the script, no measurement")
    describe(args, name, environment["versions"])
    flop, ceiling = operations_per_image(args, device), matrix_ceiling(device, args.matrix)
    images = np.random.default_rng(0).integers(0, 256, (args.images, SIZE, SIZE, 3), dtype=np.uint8)
    seconds = interleave(variants(images, args, device), args.rounds, progress=True)
    print_rates(seconds, args, flop, ceiling)
    rows = compare(seconds)
    print_ratios(rows)
    report = {
        "device": name,
        "environment": environment,
        "matrix_ceiling_flops": ceiling,
        "flop_per_image": flop,
        "seconds": seconds,
        "ratios": rows,
    }
    write_json(args, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
