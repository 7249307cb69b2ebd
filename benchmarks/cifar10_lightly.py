"""lightly's SimCLR on the files that benchmarks/cifar10.py trains on: the reference where no published number
applies.

    pip install -e '.[bench]'
    python benchmarks/cifar10_lightly.py --data DIR --epochs 20 --workers 16

Everything that decides the result is lightly's, as in its published CIFAR-10 benchmark: its ResNet-18,
projection head, loss (T 0.5), transforms (color strength 0.5, no blur) in a DataLoader, SGD at 0.06 * batch /
128 with momentum 0.9 and weight decay 0.0005 on all parameters, cosine decay by epoch. From this project come
the split (the 45,000 training images that ``--methods simclr`` of benchmarks/cifar10.py sees) and the
evaluation, the same as there, so that both lines can be compared.

``--views ours`` puts this project's views on the device in the place of lightly's transforms: whether the
views are as good, apart from everything else. ``--encoder conv --device cpu`` compares the code where there
is no GPU.

Exit status: 0 done, 2 bad arguments, 3 not run (lightly is missing).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import ROOT, accuracies, command_line, neighbors, origin
from benchmarks.parts.cifar10_images import find_data
from benchmarks.parts.rounds import device_name, not_run
from benchmarks.parts.simclr import SIZE, PILImages
from datamodules.base import Batch, SSLDataModule
from datamodules.images.arrays import CIFAR10
from datamodules.transforms.base import apply_views
from datamodules.transforms.recipes import SimCLRViews
from evaluation.report import evaluate
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework
from sslmodules.base import SSLModule
from sslmodules.networks import ConvEncoder, WrappedEncoder

Pairs = Iterator[tuple[Tensor, Tensor]]


class Network(SSLModule):
    """An encoder and lightly's projection head; the loop below trains it."""

    def __init__(self, encoder: str) -> None:
        super().__init__(optimizer=torch.optim.SGD)
        from lightly.models import ResNetGenerator
        from lightly.models.modules import SimCLRProjectionHead

        if encoder == "resnet18":
            resnet, width = ResNetGenerator("resnet-18"), 512
            backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.encoder = WrappedEncoder(backbone, width)
        else:
            self.encoder = ConvEncoder(3)
            width = self.encoder.num_features
        self.head = SimCLRProjectionHead(width, width, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError


def lightly_pairs(images: Tensor, args: argparse.Namespace, device: torch.device) -> Any:
    """A function that begins an epoch of pairs of views (B, 3, 32, 32), made by lightly in workers."""
    from lightly.transforms import SimCLRTransform

    normalize = {"mean": list(CIFAR10.mean), "std": list(CIFAR10.std)}
    transform = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize)
    loader = DataLoader(
        PILImages(images.permute(0, 2, 3, 1).numpy(), transform),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> Pairs:
        for views, _ in loader:
            yield tuple(view.to(device, non_blocking=True) for view in views)  # type: ignore[misc]

    return epoch


def our_pairs(images: Tensor, data: SSLDataModule, args: argparse.Namespace, device: torch.device) -> Any:
    """The same, made by this project on the device."""
    on_device, views = images.to(device), SimCLRViews(SIZE)
    generator = torch.Generator(device).manual_seed(args.seed)

    def epoch() -> Pairs:
        order = torch.randperm(len(images), generator=generator, device=device)
        for rows in order[: len(order) // args.batch * args.batch].split(args.batch):
            made = apply_views(views, data.decode(on_device[rows]), generator)["views"]
            yield data.standardize(made[0]), data.standardize(made[1])

    return epoch


def train(network: Network, epoch: Any, args: argparse.Namespace, device: torch.device) -> list[float]:
    """lightly's example loop; seconds of every epoch."""
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.06 * args.batch / 128, momentum=0.9, weight_decay=5e-4
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    seconds = []
    for number in range(args.epochs):
        start, total, steps = time.perf_counter(), torch.zeros((), device=device), 0
        for x0, x1 in epoch():
            with half:
                loss = criterion(network(x0), network(x1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total, steps = total + loss.detach(), steps + 1
        scheduler.step()
        mean = total.item() / steps  # waits for the device
        seconds.append(time.perf_counter() - start)
        print(f"epoch {number + 1} of {args.epochs}: loss {mean:.3f}, {seconds[-1]:.1f} s", flush=True)
    return seconds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="as for benchmarks/cifar10.py")
    parser.add_argument("--views", choices=("lightly", "ours"), default="lightly")
    parser.add_argument(
        "--encoder", choices=("resnet18", "conv"), default="resnet18", help="conv: ours, small, for CPUs"
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="of lightly's DataLoader (default: cores)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="gpu", help="cpu only tries the script out"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "cifar10-benchmark", help="where an archive is unpacked"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "cifar10_lightly.jsonl"
    )
    args = parser.parse_args()
    for name, least in (("batch", 2), ("epochs", 1), ("workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    args.compile, args.lr = False, None
    return args


def measured(
    network: Network, untrained: Network, data: SSLDataModule, seconds: list[float], args: argparse.Namespace
) -> dict[str, Any]:
    """Accuracies and speed, from the seconds of each epoch."""
    device = next(network.parameters()).device
    report = evaluate(network, untrained, data, "", device=device, seed=args.seed)
    steps = len(data.dataset("train")) // args.batch
    return {
        **accuracies(report["results"]["pretrained"], neighbors(network, data, device)),
        "baselines": {k: accuracies(v) for k, v in report["results"].items() if k != "pretrained"},
        "images_per_s": round(steps * args.batch / sorted(seconds)[len(seconds) // 2], 1),
        "training_minutes": round(sum(seconds) / 60, 2),
        "workers": args.workers if args.views == "lightly" else 0,
        "device": device_name(device, describe_environment()["hardware"]["cpu"]),
    }


def main() -> int:
    args = parse_arguments()
    if importlib.util.find_spec("lightly") is None:
        return not_run("not run: lightly is not installed: pip install -e '.[bench]'")
    if args.device == "gpu" and not torch.cuda.is_available():
        return not_run("not run: no GPU (--device cpu tries the script out)")
    silence_framework()
    torch.backends.cudnn.benchmark = True
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    name, options = find_data(args.data, args.runs)
    data = command_line(args, "simclr", args.seed, args.runs / "unused", options).datamodule
    data.prepare_data()
    data.setup("fit")
    train_split = data.dataset("train")
    images = train_split.__getitems__(range(len(train_split)))["input"]  # (N, 3, 32, 32) uint8
    device = torch.device("cuda" if args.device == "gpu" else "cpu")
    torch.manual_seed(args.seed)
    network = Network(args.encoder).to(device)
    untrained = copy.deepcopy(network)
    if args.views == "lightly":
        epoch = lightly_pairs(images, args, device)
    else:
        epoch = our_pairs(images, data, args, device)
    print(
        f"lightly's SimCLR, {name}, {len(images)} images, batch {args.batch}, {args.views} views, {device}",
        flush=True,
    )
    seconds = train(network.train(), epoch, args, device)
    row = {
        "data": name,
        "method": "simclr, lightly's code",
        "views": args.views,
        "encoder": args.encoder,
        "batch": args.batch,
        "epochs": args.epochs,
        "seed": args.seed,
        **measured(network, untrained, data, seconds, args),
        **origin("cifar10_lightly.py"),
    }
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
