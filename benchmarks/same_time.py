"""Accuracy for the same time: every joint-embedding method with the same images, encoder and processor time.

    python benchmarks/same_time.py --data DIR [--methods simclr vicreg ...] [--seconds 300] [--images 10000]
    python benchmarks/same_time.py --data DIR --methods lejepa vicreg --views 4
    python benchmarks/same_time.py --data DIR --encoder vit --methods simclr i_jepa ibot simdinov2
    python benchmarks/same_time.py --table [--page docs/same_time.md]
    python benchmarks/same_time.py --means

Trains each method of ``configs/digits`` on CIFAR-10 in one thread. All have the same encoder, batch size and
views (SimCLR's for small images). The encoder is a small convolutional network or, with ``--encoder vit``, a
small ViT; only with it are there methods of patches, which have masks too, I-JEPA in place of these views.
The number of views is ``--views``, or that of the config for Digits. The other settings are those of that
config; counts of epochs keep their share of the run, and a queue holds 16 batches. The learning rate decays
over the steps that fit into the budget: they are estimated from a short run, which is not counted.

Training images are a fixed stratified part of the official ones, test images half as many. Features are of
``embed``, in the protocol of ``eval.py probe``, with a tenth of the training images as ``val``. The rows
``untrained`` (the same encoder) and ``pixels`` are the baselines.

Each run adds a line to ``--results``; runs that are there are not repeated, so an interrupted benchmark
continues. The table is made from those lines. ``--means`` prints README's: methods as columns.

Processor time does not count waiting for other processes of the machine. They still make steps slower, since
caches are shared: ``load`` is the machine's load average at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import origin
from benchmarks.parts.cifar10_images import Images, InMemory, extract, load
from benchmarks.parts.pages import mean_and_deviation, write_between_marks
from benchmarks.parts.rounds import refuse
from benchmarks.parts.training import fit, silence
from datamodules.splits import stratified_holdout
from datamodules.transforms.block_masks import IJEPAViews, MaskedMultiCrop
from datamodules.transforms.views import MultiCrop, View, Views
from evaluation.report import named_probes
from runtime.command_line import CheckedCommandLine, SSLCommandLine
from runtime.messages import ROOT
from sslmodules.networks import ConvEncoder, ViTEncoder
from sslmodules.networks.encoder import Encoder

METHODS = ["barlow_twins", "byol", "dino", "emp_ssl", "fast_siam", "lejepa", "moco", "moco_v3", "nnclr"]
METHODS += ["simclr", "simdino", "simsiam", "swav", "triplet", "vicreg", "visreg"]
OF_PATCHES = ["i_jepa", "ibot", "simdinov2"]
BASELINES = ["untrained", "pixels"]
SCORES = {"linear_top1": "linear", "knn_top1": "kNN", "fewshot_top1": "5-shot"}
SETTINGS = ("data", "images", "seconds", "batch", "encoder")
PATCH = 4
VIT = {"image_size": 32, "patch_size": PATCH, "in_channels": 3, "width": 64, "depth": 3, "heads": 4}
ENCODERS: dict[str, tuple[type[Encoder], dict[str, Any]]] = {
    "conv": (ConvEncoder, {"in_channels": 3, "stem_stride": 2}),
    "vit": (ViTEncoder, {**VIT, "learned_positions": True}),
}
CALIBRATION = 30  # steps of the run from which a method's speed is estimated


class Clock(Callback):
    """Seconds of processor time between the start and the end of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.process_time() - self.start


def options_of(method: str, args: argparse.Namespace, steps: int, seed: int) -> list[str]:
    """Options of ``train.py``: the config for Digits with the benchmark's encoder and number of steps."""
    given = ["--config", str(ROOT / "configs" / "digits" / f"{method}.yaml")]
    config = CheckedCommandLine(given).config
    encoder, options = ENCODERS[args.encoder]
    given += ["--model.encoder", encoder.__name__, "--seed_everything", str(seed)]
    given += [f"--model.encoder.{name}={json.dumps(value)}" for name, value in options.items()]
    given += ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu"]
    given += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    share = steps / (args.images // args.batch) / config.trainer.max_epochs
    for name, value in vars(config.model.init_args).items():
        if name.endswith("_epochs"):
            given += [f"--model.{name}", str(type(value)(share * value))]
    if "queue_size" in config.model.init_args:
        given += ["--model.queue_size", str(16 * args.batch)]
    return given


def views_like(given: Views, count: int) -> Views:
    """The benchmark's views of the kind that a config for Digits has."""
    view = View(
        32, crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale_p=0.2
    )
    if isinstance(given, IJEPAViews):
        return IJEPAViews(32, PATCH)
    if isinstance(given, MaskedMultiCrop):
        return MaskedMultiCrop(view, view, view, count - 2, PATCH)
    return MultiCrop(view, view, view, count - 2)


def train(method: str, images: Images, args: argparse.Namespace, steps: int, seed: int) -> tuple[Any, float]:
    """The trained method, and the seconds of its steps."""
    clock = Clock()

    def data(cli: SSLCommandLine) -> InMemory:
        views = cli.datamodule.views
        views = views_like(views, args.views or len(views.views))
        return InMemory(images, views=views, batch_size=args.batch)

    trainer = fit(options_of(method, args, steps, seed), clock, data)
    return trainer.lightning_module, clock.seconds


def accuracies(embed: Callable[[Tensor], Tensor], train: Images, test: Images, seed: int) -> dict[str, float]:
    """Test accuracies of features in percent, by the default probes of ``eval.py probe``."""
    data, device = InMemory(train), torch.device("cpu")
    rows = stratified_holdout(train.labels, len(train.labels) // 10)
    parts = [Images(train.images[chosen], train.labels[chosen]) for chosen in rows] + [test]
    bank, val, tested = (
        (extract(embed, data, part, device), torch.from_numpy(part.labels)) for part in parts
    )
    found: dict[str, float] = {}
    for probe in named_probes(None):
        found |= probe.score(bank, val, tested, int(bank[1].max()) + 1, seed)[0]
    return {name: round(100 * found[name], 2) for name in SCORES}


def measure(
    method: str, train_images: Images, test: Images, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Steps, seconds and accuracies of a method, or the accuracies of a baseline."""
    if method in BASELINES:
        torch.manual_seed(seed)
        kind, options = ENCODERS[args.encoder]
        encoder = nn.Flatten() if method == "pixels" else kind(**options).eval()
        return accuracies(encoder, train_images, test, seed)
    _, seconds = train(method, train_images, args, CALIBRATION, seed)
    steps = max(1, int(args.seconds / (seconds / CALIBRATION)))
    module, seconds = train(method, train_images, args, steps, seed)
    cost = {"steps": steps, "trained_seconds": round(seconds, 1), "load": round(os.getloadavg()[0], 1)}
    return {**cost, **accuracies(module.eval().embed, train_images, test, seed)}


def read_lines(results: Path) -> list[dict[str, Any]]:
    """The lines of ``--results``; those from the time when there was one encoder do not name it."""
    text = results.read_text(encoding="utf-8") if results.is_file() else ""
    return [{"encoder": "conv", **json.loads(line)} for line in text.splitlines()]


# ---- the table ---------------------------------------------------------------------------------------------


def tables(lines: list[dict[str, Any]]) -> str:
    """A table for each group of comparable lines, below its settings."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in SETTINGS), []).append(line)
    title = "{}: {:,} training images, {:g} seconds of processor time, batch {}, encoder {}"
    return "\n\n".join(f"{title.format(*key)}\n\n{table(group)}" for key, group in groups.items())


def table(lines: list[dict[str, Any]]) -> str:
    """Methods by linear accuracy, the best first; then the baselines."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(line["method"], []).append(line)
    columns = ["method", "seeds", "steps", "seconds", "ms per step", *SCORES.values()]
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]

    def place(method: str) -> tuple[bool, float]:
        return method in BASELINES, -statistics.mean(line["linear_top1"] for line in runs[method])

    for method in sorted(runs, key=place):
        cells = [method, ", ".join(map(str, sorted(line["seed"] for line in runs[method])))]
        trained = [(line["steps"], line["trained_seconds"]) for line in runs[method] if "steps" in line]
        each = [(steps, seconds, 1000 * seconds / steps) for steps, seconds in trained]
        cells += [f"{statistics.median(values):.0f}" for values in zip(*each, strict=True)] or ["", "", ""]
        cells += [mean_and_deviation([line[key] for line in runs[method]]) for key in SCORES]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def means(lines: list[dict[str, Any]]) -> str:
    """README's table, of the convolutional encoder: mean scores over seeds after each time."""
    plain = [line for line in lines if line["encoder"] == "conv" and "," not in line["method"]]
    if len({tuple(line[key] for key in SETTINGS if key != "seconds") for line in plain}) != 1:
        refuse("--means needs --results of one data set, number of images and batch size")
    budgets = sorted({line["seconds"] for line in plain})
    scores: dict[tuple[str, float, str], list[float]] = {}
    for line in plain:
        for key in SCORES:
            scores.setdefault((line["method"], line["seconds"], key), []).append(line[key])

    def place(method: str) -> tuple[bool, float]:
        return method in BASELINES, -statistics.mean(scores.get((method, budgets[0], "linear_top1"), [0]))

    methods = sorted({line["method"] for line in plain}, key=place)
    titles = [method if method in BASELINES else title(method) for method in methods]
    text = ["| " + " | ".join(["", *titles]) + " |", "|" + "---|" * (1 + len(methods))]
    for seconds, (key, name) in itertools.product(budgets, SCORES.items()):
        found = [scores.get((method, seconds, key)) for method in methods]
        cells = [f"{statistics.mean(values):.1f}" if values else "" for values in found]
        text.append("| " + " | ".join([f"{name}, {seconds:g} s", *cells]) + " |")
    return "\n".join(text)


def title(method: str) -> str:
    """Name of a method as on its page."""
    page = ROOT / "docs" / "methods" / f"{method}.md"
    return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    known = METHODS + BASELINES + OF_PATCHES
    add("--data", type=Path, help="folder or archive as for benchmarks/cifar10.py")
    add("--methods", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    add("--encoder", default="conv", choices=ENCODERS, help="of all methods")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--seconds", type=float, default=300.0, help="of processor time in training steps, for each run")
    add("--images", type=int, default=10_000, help="for training; half as many for testing")
    add("--views", type=int, metavar="N", help="of each image (default: as in the config for Digits)")
    add("--batch", type=int, default=128)
    add("--runs", type=Path, default=ROOT / "runs" / "cifar10-benchmark", help="where an archive is unpacked")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results" / "same_time.jsonl")
    add("--table", action="store_true", help="only print the tables of --results")
    add("--means", action="store_true", help="only print README's table of --results")
    add("--page", type=Path, help="with --table: write them between the marks of this file")
    args = parser.parse_args()
    if not (args.table or args.means) and args.data is None:
        parser.error("--data is missing: expected a folder or archive as for benchmarks/cifar10.py")
    patches = OF_PATCHES if args.encoder == "vit" else []
    args.methods = args.methods or METHODS + BASELINES + patches
    if unfit := set(args.methods) - {*METHODS, *BASELINES, *patches}:
        parser.error(
            f"{', '.join(sorted(unfit))}: needs patches, so expected --encoder vit, got {args.encoder}"
        )
    if args.views and "i_jepa" in args.methods:
        parser.error("--views: i_jepa has one view of each image; leave it out of --methods")
    if args.images < args.batch:
        parser.error(f"--images must be at least a batch, {args.batch}, got {args.images}")
    return args


def main() -> None:
    args = parse_arguments()
    lines = read_lines(args.results)
    if args.means:
        print(means(lines))
        return
    if not args.table:
        lines = lines + run(args, lines)
    print(tables(lines))
    if args.page:
        write_between_marks(args.page, "same_time", tables(lines))


def run(args: argparse.Namespace, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure what is not known yet; returns the new lines."""
    silence()
    torch.set_num_threads(1)
    for folder in (args.runs, args.results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    data, train_images, test = load(args.data, args.runs)
    train_images, test, new = train_images.few(args.images), test.few(args.images // 2), []
    for seed in args.seeds:
        for method in args.methods:
            values = (data, len(train_images.labels), args.seconds, args.batch, args.encoder)
            counted = args.views and method not in BASELINES
            name = f"{method}, {args.views} views" if counted else method
            key = {"method": name, "seed": seed, **dict(zip(SETTINGS, values, strict=True))}
            if any(key.items() <= line.items() for line in known):
                continue
            line = {**key, **measure(method, train_images, test, args, seed), **origin("same_time.py")}
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, seed {seed}: {[line[name] for name in SCORES]}", flush=True)
            new.append(line)
    return new


if __name__ == "__main__":
    main()
