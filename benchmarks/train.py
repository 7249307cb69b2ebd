"""Epochs of SimCLR on 32-pixel images: this project's own train path beside a bare loop and lightly's
example.

    pip install -e '.[bench]'
    python benchmarks/train.py --rounds 5 --json train.json

The images are random uint8 arrays of CIFAR-10's shape; their content does not matter to the clock. The
variants:

- ours: what ``python train.py`` runs. ``SSLCommandLine`` builds method and Trainer with the default callbacks
  and the TensorBoard log in a temporary run folder; the data are a CIFAR10 of ``--images`` samples in memory
  with ``SimCLRViews(32)``. Validation, checkpoints and the progress bar are off.
- bare: a hand-written torch loop over pre-made views that lie on the device, with the network, loss and
  optimizer of "ours" and nothing else: no data, schedule or log. The floor.
- lightning: "ours" fed with the same pre-made views: what the framework, the callbacks and the base class
  cost.
- lightly, workers 0 and 2: the loop of lightly's examples/pytorch/simclr.py (plain torch, without any
  framework's cost) with its SimCLRTransform, NTXentLoss and SimCLRProjectionHead, in a DataLoader with
  drop_last and shuffle.

Made equal for everybody: batch size, precision, threads of the main process, the encoder's class, a projector
of the same widths with batch norm after both layers, temperature 0.5, AdamW, and the CIFAR recipe: crop (.08,
1), flip .5, color jitter (.4, .4, .4, .1) with p .8, grayscale .2, no blur, CIFAR-10's mean and standard
deviation. In lightly's favor: its images are PIL images in a list, where its example makes them from an array
every time; its workers are kept from epoch to epoch, their start is not charged, and they come on top of
``--threads``; on CUDA it copies from pinned memory without waiting.

The variants take turns within a round. In each turn one epoch warms up and the next one counts, from the end
of the one to the end of the other, so that whatever happens between epochs is in it. Ratios are taken within
a round, then their median and range over the rounds. The targets are for the conv net on CPU; elsewhere the
ratios are printed without a verdict. The possible lead over lightly depends on the network: a data path
that cost nothing would be as fast as "bare", so lightly/bare is printed as the limit.

Exit status: 0 measured, whether targets are met or not; 2 bad arguments; 3 not run (no GPU, or lightly is
missing).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, not_run, summary, write_json
from benchmarks.parts.simclr import (
    SIZE,
    ArrayImages,
    PremadeViews,
    Variant,
    bare,
    in_trainer,
    lightly,
    make_views,
)
from benchmarks.parts.training import silence
from datamodules.transforms.recipes import SimCLRViews
from runtime.environment import describe_environment

PEER_WORKERS = (0, 2)


def compare(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The ratios, each with its values by round, its unit and its target."""
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    rows: list[dict[str, Any]] = [
        {
            "name": f"ours is faster than {peer}",
            "values": [r[peer] / r["ours"] for r in rounds],
            "unit": "x",
            "at_least": 3.0,
        }
        for peer in seconds
        if peer.startswith("lightly")
    ]
    rows += [
        {
            "name": "data + framework share of ours, 1 - bare/ours",
            "values": [100 * (1 - r["bare"] / r["ours"]) for r in rounds],
            "unit": "%",
            "at_most": 30.0,
        },
        {
            "name": "framework overhead, lightning/bare - 1",
            "values": [100 * (r["lightning"] / r["bare"] - 1) for r in rounds],
            "unit": "%",
            "at_most": 5.0,
        },
        {
            "name": "data share of ours, 1 - lightning/ours",
            "values": [100 * (1 - r["lightning"] / r["ours"]) for r in rounds],
            "unit": "%",
        },
    ]
    rows += [
        {
            "name": f"{peer}/bare: all that is to be gained",
            "values": [r[peer] / r["bare"] for r in rounds],
            "unit": "x",
        }
        for peer in seconds
        if peer.startswith("lightly")
    ]
    return [{**row, **summary(row["values"])} for row in rows]


def verdict(row: dict[str, Any]) -> str:
    """PASS or MISS by the median; empty where there is no target."""
    if "at_least" in row:
        verdict = "PASS" if row["median"] >= row["at_least"] else "MISS"
        return f"{verdict} (target >= {row['at_least']:g} {row['unit']})"
    if "at_most" in row:
        verdict = "PASS" if row["median"] <= row["at_most"] else "MISS"
        return f"{verdict} (target <= {row['at_most']:g} {row['unit']})"
    return ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2560, help="of an epoch; 2560 = 10 steps of 256")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2, help="of torch, in the main process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--encoder", choices=("convnet", "resnet18"), default="convnet")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[32, 64, 128], help="widths of the convnet"
    )
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of every variant"
    )
    parser.add_argument(
        "--skip-peers", action="store_true", help="leave lightly out; it need not be installed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args()
    if min(args.channels) < 1:
        parser.error(f"--channels must be at least 1, got {min(args.channels)}")
    for name, least in (("rounds", 1), ("batch", 2), ("threads", 1), ("images", args.batch)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


def describe(args: argparse.Namespace, environment: dict[str, Any]) -> None:
    """Print what is compared, and on what."""
    versions, hardware = environment["versions"], environment["hardware"]
    print(", ".join(f"{name} {versions[name]}" for name in versions if versions[name] != "not installed"))
    network = (
        "convnet " + "-".join(map(str, args.channels)) + ", every layer of stride 2"
        if args.encoder == "convnet"
        else args.encoder
    )
    gpu = f"{hardware['gpus'][0]}, " if args.device == "cuda" else ""
    print(
        f"{gpu}{hardware['cpu']}, {hardware['cpu_count']} cores; {args.threads} threads; {network}, "
        f"{args.precision}; "
        f"{args.images // args.batch} steps of {args.batch} images x 2 views; {args.rounds} rounds"
    )
    print(
        "off in ours and lightning: validation, checkpoints, progress bar; on: default callbacks, TensorBoard"
    )


def print_load(load: tuple[float, float, float]) -> None:
    print(f"load average before: {' '.join(f'{value:.2f}' for value in load)}")
    if load[0] > 0.5:
        print(
            "other processes are running: expect noise, and repeat on a quiet machine before quoting a number"
        )


def variants(args: argparse.Namespace, device: torch.device) -> dict[str, Variant]:
    images = np.random.default_rng(0).integers(0, 256, (args.images, SIZE, SIZE, 3), dtype=np.uint8)
    batches = make_views(images, args, device)
    found = {
        "ours": in_trainer(lambda: ArrayImages(images, views=SimCLRViews(SIZE), batch_size=args.batch), args),
        "bare": bare(batches, args, device),
        "lightning": in_trainer(lambda: PremadeViews(batches, batch_size=args.batch), args),
    }
    if not args.skip_peers:
        found |= {f"lightly, workers {n}": lightly(images, n, args, device) for n in PEER_WORKERS}
    return found


def print_seconds(seconds: dict[str, list[float]], steps: int, batch: int) -> None:
    print(f"\n{'seconds of an epoch':24}{'median':>9}{'min':>9}{'max':>9}{'images/s':>11}{'ms/step':>9}")
    for name, values in seconds.items():
        s = summary(values)
        rate, step = steps * batch / s["median"], 1000 * s["median"] / steps
        print(f"{name:24}{s['median']:9.3f}{s['min']:9.3f}{s['max']:9.3f}{rate:11.0f}{step:9.1f}")


def print_ratios(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'ratios within a round':52}{'median':>8}   min .. max")
    for row in rows:
        spread = f"{row['min']:.2f} .. {row['max']:.2f}"
        print(f"{row['name']:52}{row['median']:8.2f} {row['unit']} {spread:18}{row['verdict']}".rstrip())


def main() -> int:
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        return not_run("not run: no GPU")
    environment = describe_environment()
    if not args.skip_peers:
        try:
            environment["versions"]["lightly"] = importlib.metadata.version("lightly")
        except importlib.metadata.PackageNotFoundError:
            return not_run("lightly is not installed: pip install -e '.[bench]', or give --skip-peers")
    silence()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load_before = os.getloadavg()
    describe(args, environment)
    print_load(load_before)
    seconds = interleave(variants(args, torch.device(args.device)), args.rounds, progress=True)
    print_seconds(seconds, args.images // args.batch, args.batch)
    has_targets = args.device == "cpu" and args.encoder == "convnet"
    rows = [{**row, "verdict": verdict(row) if has_targets else ""} for row in compare(seconds)]
    print_ratios(rows)
    print(f"\nload average after: {os.getloadavg()[0]:.2f}")
    load = {"before": load_before, "after": os.getloadavg()}
    write_json(args, {"environment": environment, "load_average": load, "seconds": seconds, "ratios": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
