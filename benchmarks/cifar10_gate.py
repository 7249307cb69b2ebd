"""Why SimCLR's accuracy on CIFAR-10 is what it is: one change at a time, on the same images.

    python benchmarks/cifar10_gate.py --data DIR --epochs 50
    python benchmarks/cifar10_gate.py --data DIR --images 10000 --encoder conv --batch 256 --seeds 0 1 2
    python benchmarks/cifar10_gate.py --table

The variants, in the order in which they run unless ``--variants`` names some:

- supervised: the network with a classifier, SGD with a one-cycle schedule, crops and flips, for
  ``--supervised_epochs``. The ceiling of the images.
- supervised, compressed: the same on images saved as JPEG (quality 75, 4:2:0), as the copy is. A copy kept
  as JPEG files is compressed once more, shifted by 5 pixels, so that neither blocks nor color samples fall on
  the old ones.
- ours: configs/cifar10/simclr.yaml as ``train.py`` runs it, on all training images.
- bare: the recipe of https://github.com/dkobak/simclr-cifar10 as a plain loop, without Lightning and without
  a line of this project but its views: batch norm per view, no normalization of the images, weight decay on
  all parameters, a projector without batch norm, cosine decay by epoch.
- record: the same recipe as ``train.py`` runs it, configs/cifar10/simclr_record.yaml.
- ours, compressed; ours, float32; ours, batch norm per view; ours, decay on all: ``ours`` with one change.
- bare, torchvision: ``bare`` with torchvision's transforms, one image at a time in ``--workers`` processes.

Learning rates are those of batch 512 (bare and record: 0.06 * batch / 256, the page's for 100 epochs), scaled
linearly. Test accuracies are of the last epoch; benchmarks/parts/cifar10_images.py defines them. A finished
variant is a line of ``--results`` and is not run again. With ``--minutes``, a variant that would not end in
time is left out, after two epochs of it.

Exit status: 0 all variants are recorded, 75 some are left out, 1 some failed, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import CONFIG_BATCH, UNFINISHED, configured_lr, origin
from benchmarks.parts.cifar10_images import Images, InMemory, accuracies, load
from benchmarks.parts.cifar10_loops import (
    OutOfTime,
    Pace,
    Variant,
    compressed,
    train_bare,
    train_supervised,
)
from benchmarks.parts.pages import mean_and_deviation
from benchmarks.parts.rounds import device_name
from benchmarks.parts.training import fit, silence
from runtime.environment import describe_environment
from runtime.messages import ROOT

VARIANTS = {
    "supervised": Variant("supervised"),
    "supervised, compressed": Variant("supervised", compressed=True),
    "ours": Variant("ours"),
    "bare": Variant("bare"),
    "record": Variant("ours", "simclr_record"),
    "ours, compressed": Variant("ours", compressed=True),
    "ours, float32": Variant("ours", precision="32-true"),
    "ours, batch norm per view": Variant("ours", norm_per_view=True),
    "ours, decay on all": Variant("ours", decay_all=True),
    "bare, torchvision": Variant("bare", torchvision_views=True),
}


class NormPerView(nn.Module):
    """Two views of a batch, one after the other, so that each has batch statistics of its own."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.num_features = encoder, encoder.num_features

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.encoder(view) for view in x.chunk(2)]) if self.training else self.encoder(x)


class Changes(Callback):
    """Makes a variant of the method before its optimizer is built, and keeps the pace."""

    def __init__(self, variant: Variant, pace: Pace) -> None:
        self.variant, self.pace = variant, pace

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.variant.norm_per_view:
            pl_module.encoder = NormPerView(pl_module.encoder)
        if self.variant.decay_all:
            parameters = list(pl_module.parameters())
            pl_module.parameter_groups = lambda: [{"params": parameters}]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.pace.seconds:
            self.pace.mark = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace.epoch_ends()


def train_ours(variant: Variant, train: Images, seed: int, args: argparse.Namespace, pace: Pace) -> nn.Module:
    """The encoder after what ``train.py`` does."""
    config = ROOT / "configs" / "cifar10" / f"{variant.config}.yaml"
    options = ["--config", str(config), "--data.synthetic", "true", "--data.batch_size", str(args.batch)]
    options += ["--seed_everything", str(seed), "--trainer.max_epochs", str(args.epochs)]
    options += ["--trainer.accelerator", args.device, "--trainer.devices", "1", "--trainer.benchmark", "true"]
    options += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.precision", variant.precision]
    options += ["--model.optimizer.init_args.lr", repr(configured_lr(config) * args.batch / CONFIG_BATCH)]
    if args.encoder == "conv":
        options += ["--model.encoder", "ConvEncoder", "--model.encoder.stem_stride", "2"]

    def data(cli: Any) -> InMemory:
        return InMemory(train, views=cli.datamodule.views, batch_size=args.batch)

    trainer = fit(options, Changes(variant, pace), data)
    assert trainer.lightning_module is not None
    return trainer.lightning_module.encoder


# ---- the table ---------------------------------------------------------------------------------------------


def measure(
    name: str, train: Images, test: Images, seed: int, args: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """Train a variant and test it.

    Raises:
        OutOfTime: it would not end before the deadline.
    """
    variant, device = VARIANTS[name], torch.device("cuda" if args.device == "gpu" else "cpu")
    if variant.compressed:
        train, test = compressed(train), compressed(test)
    supervised = variant.code == "supervised"
    pace = Pace(args.supervised_epochs if supervised else args.epochs, deadline, device)
    torch.manual_seed(seed)
    if supervised:
        found = {"supervised": train_supervised(variant, train, test, args, pace)}
    else:
        trained = train_ours if variant.code == "ours" else train_bare
        encoder = trained(variant, train, seed, args, pace).to(device)
        data = InMemory(train)
        if variant.code == "bare":
            data.mean, data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        found = accuracies(encoder, data, train, test, device)
    seconds = statistics.median(pace.seconds[1:] or pace.seconds)
    return {
        **found,
        "epochs": pace.epochs,
        "precision": variant.precision,
        "training_minutes": round(sum(pace.seconds) / 60, 2),
        "images_per_s": round(len(train.labels) // args.batch * args.batch / seconds),
        "device": device_name(device, describe_environment()["hardware"]["cpu"]),
    }


def setting(name: str, data: str, seed: int, args: argparse.Namespace, images: int) -> dict[str, Any]:
    """What makes two lines the same measurement."""
    asked = args.supervised_epochs if VARIANTS[name].code == "supervised" else args.epochs
    described = {"variant": name, "data": data, "images": images, "encoder": args.encoder}
    return {**described, "batch": args.batch, "epochs": asked, "seed": seed}


def table(lines: list[str]) -> str:
    """Markdown: one row per variant and setting; mean and standard deviation over seeds.

    A line with ``disturbed``, what else ran on the machine, counts for accuracy only.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    heads = ("variant", "data", "images", "encoder", "batch", "epochs")
    scores = ("knn10", "knn200", "linear", "supervised")
    for row in map(json.loads, lines):
        groups.setdefault(tuple(row[key] for key in heads), []).append(row)
    columns = [*heads, "seeds", *scores, "minutes", "images/s", "device"]
    out = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for key, rows in groups.items():
        cells = [*map(str, key), ", ".join(str(row["seed"]) for row in rows)]
        cells += [mean_and_deviation([row[score] for row in rows if score in row]) for score in scores]
        timed = [row for row in rows if "disturbed" not in row]
        cells.append(f"{statistics.median(row['training_minutes'] for row in timed):.1f}" if timed else "")
        cells.append(f"{statistics.median(row['images_per_s'] for row in timed):,.0f}" if timed else "")
        cells.append(", ".join(sorted({row["device"] for row in rows})))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="as for benchmarks/cifar10.py")
    add("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    add("--images", type=int, default=50_000, help="training images, a fixed stratified part")
    add("--encoder", choices=("resnet18", "conv"), default="resnet18", help="conv: small, for CPUs")
    add("--batch", type=int, default=512)
    add("--epochs", type=int, default=50)
    add("--supervised_epochs", type=int, default=30)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--workers", type=int, default=os.cpu_count(), help="for torchvision's transforms (default: cores)")
    add("--device", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    add("--minutes", type=float, default=float("inf"), help="begin nothing that would end later")
    add("--disturbed", metavar="TEXT", help="what else runs on the machine: only accuracies count")
    add("--runs", type=Path, default=ROOT / "runs" / "cifar10-benchmark", help="where an archive is unpacked")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results" / "cifar10_gate.jsonl")
    add("--table", action="store_true", help="only print the table of --results")
    args = parser.parse_args()
    for name, least in (
        ("images", 20),
        ("batch", 2),
        ("epochs", 1),
        ("supervised_epochs", 1),
        ("workers", 0),
    ):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not args.table and args.data is None:
        parser.error("--data is missing: expected a folder or archive as for benchmarks/cifar10.py")
    return args


def main() -> int:
    args = parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.is_file() else []
    if args.table:
        print(table(lines))
        return 0
    silence()
    torch.backends.cudnn.benchmark = True
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    data, train, test = load(args.data, args.runs)
    train, missing, failed = train.few(args.images), 0, 0
    for seed in args.seeds:
        for name in args.variants:
            key = setting(name, data, seed, args, len(train.labels))
            if any(key.items() <= json.loads(line).items() for line in lines):
                print(f"{name}, seed {seed}: recorded in {args.results} already", flush=True)
                continue
            try:
                row = {**key, **measure(name, train, test, seed, args, deadline)}
            except OutOfTime:
                print(f"{name}, seed {seed}: left out, it would not end in time", flush=True)
                missing += 1
                continue
            except Exception:  # printed and counted; another variant may need less memory, for example
                traceback.print_exc()
                failed += 1
                continue
            print(json.dumps(row), flush=True)
            row |= origin("cifar10_gate.py")
            if args.disturbed:
                row["disturbed"] = args.disturbed
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return 1 if failed else UNFINISHED if missing else 0


if __name__ == "__main__":
    sys.exit(main())
