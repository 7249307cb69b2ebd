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
ratios stand without a verdict. How far ahead of lightly anybody can be depends on the network: a data path
that cost nothing would be as fast as "bare", so lightly/bare is printed as the limit.

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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it runs from a clone without installing

from datamodules.base import Batch, SSLDataModule, keep_batch
from datamodules.images.arrays import CIFAR10
from datamodules.images.module import ArrayDataset
from datamodules.transforms.recipes import SimCLRViews
from runtime.command_line import SSLCommandLine
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework
from sslmodules.networks import ConvEncoder, ResNetEncoder, projection_mlp
from sslmodules.optim import decay_groups
from sslmodules.simclr import nt_xent

SIZE = 32
TEMPERATURE = 0.5
PROJECTION = 128
OPTIMIZER = {"lr": 1e-3, "weight_decay": 1e-4}
PEER_WORKERS = (0, 2)
PREMADE_BATCHES = (
    10  # distinct ones, then again from the first: enough to be out of the cache, small in memory
)
NOT_RUN = 3

Variant = Callable[[], float]
"""Runs one epoch that does not count and one that does; returns the seconds of the second."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(epoch: Callable[[], None], device: torch.device) -> float:
    """Seconds of the second of two calls."""
    epoch()
    synchronize(device)
    start = time.perf_counter()
    epoch()
    synchronize(device)
    return time.perf_counter() - start


def autocast(args: argparse.Namespace, device: torch.device) -> torch.autocast:
    """What ``Trainer(precision=...)`` puts around the forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16-mixed")


def choose_encoder(args: argparse.Namespace) -> tuple[type[nn.Module], dict[str, Any]]:
    """The encoder's class and options, as a configuration would give them."""
    if args.encoder == "resnet18":
        return ResNetEncoder, {"name": "resnet18", "stem": "cifar"}
    return ConvEncoder, {"in_channels": 3, "channels": args.channels, "stem_stride": 2}


def build_encoder(args: argparse.Namespace) -> nn.Module:
    encoder, options = choose_encoder(args)
    return encoder(**options)


# ---- this project ------------------------------------------------------------------------------------------


class ArrayImages(CIFAR10):
    """CIFAR10 with other pixels and as many of them as wanted; everything else is the project's.

    Args:
        images: (N, 32, 32, 3) uint8.
    """

    def __init__(self, images: np.ndarray, **kwargs: Any) -> None:
        super().__init__(synthetic=True, **kwargs)
        self.images = images

    def _synthetic(self) -> dict[str, Any]:
        return {"train": ArrayDataset(self.images, np.zeros(len(self.images), np.int64))}


class PremadeViews(SSLDataModule):
    """Hands out batches that are ready for the loss.

    Args:
        batches: one epoch of them.
    """

    num_classes = CIFAR10.num_classes

    def __init__(self, batches: list[Batch], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches = batches

    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None, collate_fn=keep_batch)  # type: ignore[arg-type]


class Clock(Callback):
    """The time at the end of every epoch."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(trainer.strategy.root_device)
        self.marks.append(time.perf_counter())


def in_trainer(
    make_data: Callable[[], SSLDataModule], args: argparse.Namespace, compiled: bool = False
) -> Variant:
    """Two epochs of what ``train.py`` builds from a configuration, on the data module that ``make_data``
    gives.
    """
    encoder, encoder_options = choose_encoder(args)
    config = {
        "model": {
            "class_path": "SimCLR",
            "init_args": {
                "encoder": {"class_path": encoder.__name__, "init_args": encoder_options},
                "temperature": TEMPERATURE,
                "projector_out": PROJECTION,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": OPTIMIZER},
            },
        },
        "data": {"class_path": "CIFAR10", "init_args": {"synthetic": True, "batch_size": args.batch}},
        "trainer": {
            "accelerator": args.device,
            "devices": 1,
            "max_epochs": 2,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "precision": args.precision,
        },
    }

    def run() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "benchmark.yaml"
            file.write_text(json.dumps(config))
            os.environ.pop(
                "SSL_RUN_DIR", None
            )  # the command line keeps its folder there for the processes of its run
            cli = SSLCommandLine(["--config", str(file), "--run_dir", str(Path(folder) / "run")])
            trainer = cli.trainer
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Checkpoint)] + [clock]
            if compiled:
                cli.model.encoder.compile()
            trainer.fit(cli.model, make_data())
        warm, end = clock.marks
        return end - warm

    return run


# ---- the floor ---------------------------------------------------------------------------------------------


def make_views(images: np.ndarray, args: argparse.Namespace, device: torch.device) -> list[Batch]:
    """One epoch of batches with the project's own views, on the device."""
    data = ArrayImages(images, views=SimCLRViews(SIZE), batch_size=args.batch)
    dataset, generator = data.dataset("train"), torch.Generator().manual_seed(0)
    steps = len(images) // args.batch
    distinct = []
    for step in range(min(steps, PREMADE_BATCHES)):
        raw = dataset.__getitems__(range(step * args.batch, (step + 1) * args.batch))  # type: ignore[attr-defined]
        batch = data.transform(raw, generator)
        distinct.append(
            Batch(
                input=batch["input"].to(device),
                label=batch["label"].to(device),
                views=[view.to(device) for view in batch["views"]],
            )
        )
    return [distinct[step % len(distinct)] for step in range(steps)]


def bare(batches: list[Batch], args: argparse.Namespace, device: torch.device) -> Variant:
    """The hand-written loop."""
    encoder = build_encoder(args)
    width = encoder.num_features
    network = nn.Sequential(encoder, projection_mlp(width, width, PROJECTION)).to(device).train()
    optimizer = torch.optim.AdamW(decay_groups(network), **OPTIMIZER)

    def epoch() -> None:
        for batch in batches:
            with autocast(args, device):
                z1, z2 = network(torch.cat(batch["views"])).chunk(2)
                loss = nt_xent(z1, z2, TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return lambda: timed(epoch, device)


# ---- lightly -----------------------------------------------------------------------------------------------


class PILImages(Dataset):
    """PIL images in memory with a transform for each sample, as torchvision's data sets have it.

    Args:
        images: (N, 32, 32, 3) uint8.
        transform: PIL image -> list of views.
    """

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pictures, self.transform = [Image.fromarray(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(self.pictures[index]), 0


class LightlySimCLR(nn.Module):
    """The model of lightly's example: encoder and lightly's projection head.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone = encoder
        self.projection_head = SimCLRProjectionHead(encoder.num_features, encoder.num_features, PROJECTION)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def lightly(images: np.ndarray, num_workers: int, args: argparse.Namespace, device: torch.device) -> Variant:
    """lightly's example loop."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(
        input_size=SIZE,
        cj_strength=0.5,  # of (.8, .8, .8, .2); what lightly recommends for CIFAR
        gaussian_blur=0.0,
        normalize={"mean": list(CIFAR10.mean), "std": list(CIFAR10.std)},
    )
    cuda = device.type == "cuda"
    loader = DataLoader(
        PILImages(images, transform),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=cuda,
    )
    model = LightlySimCLR(build_encoder(args)).to(device).train()
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)

    def epoch() -> None:
        total_loss = torch.zeros((), device=device)
        for views, _ in loader:
            x0, x1 = (view.to(device, non_blocking=cuda) for view in views)
            with autocast(args, device):
                loss = criterion(model(x0), model(x1))
            total_loss += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: timed(epoch, device)


# ---- measuring and telling ---------------------------------------------------------------------------------


def measure(variants: dict[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch, per variant one for each round; the variants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, variant in variants.items():
            seconds[name].append(variant())
            done = f"round {number + 1} of {rounds}, {name}: {seconds[name][-1]:.3f} s"
            print(done, file=sys.stderr, flush=True)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


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


def main() -> int:
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not run: no GPU", file=sys.stderr)
        return NOT_RUN
    environment = describe_environment()
    versions, hardware = environment["versions"], environment["hardware"]
    if not args.skip_peers:
        try:
            versions["lightly"] = importlib.metadata.version("lightly")
        except importlib.metadata.PackageNotFoundError:
            print(
                "lightly is not installed: pip install -e '.[bench]', or give --skip-peers", file=sys.stderr
            )
            return NOT_RUN
    silence_framework()
    logging.getLogger("lightning.pytorch").setLevel(
        logging.WARNING
    )  # two lines about devices from every Trainer
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    load_before = os.getloadavg()
    steps = args.images // args.batch

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
        f"{steps} steps of {args.batch} images x 2 views; {args.rounds} rounds"
    )
    print(
        "off in ours and lightning: validation, checkpoints, progress bar; on: default callbacks, TensorBoard"
    )
    print(f"load average before: {' '.join(f'{load:.2f}' for load in load_before)}")
    if load_before[0] > 0.5:
        print(
            "other processes are running: expect noise, and repeat on a quiet machine before quoting a number"
        )

    images = np.random.default_rng(0).integers(0, 256, (args.images, SIZE, SIZE, 3), dtype=np.uint8)
    batches = make_views(images, args, device)
    variants = {
        "ours": in_trainer(lambda: ArrayImages(images, views=SimCLRViews(SIZE), batch_size=args.batch), args),
        "bare": bare(batches, args, device),
        "lightning": in_trainer(lambda: PremadeViews(batches, batch_size=args.batch), args),
    }
    if not args.skip_peers:
        variants |= {f"lightly, workers {n}": lightly(images, n, args, device) for n in PEER_WORKERS}
    seconds = measure(variants, args.rounds)

    print(f"\n{'seconds of an epoch':24}{'median':>9}{'min':>9}{'max':>9}{'images/s':>11}{'ms/step':>9}")
    for name, values in seconds.items():
        s = summary(values)
        rate, step = steps * args.batch / s["median"], 1000 * s["median"] / steps
        print(f"{name:24}{s['median']:9.3f}{s['min']:9.3f}{s['max']:9.3f}{rate:11.0f}{step:9.1f}")
    rows, has_targets = compare(seconds), args.device == "cpu" and args.encoder == "convnet"
    print(f"\n{'ratios within a round':52}{'median':>8}   min .. max")
    for row in rows:
        spread = f"{row['min']:.2f} .. {row['max']:.2f}"
        outcome = verdict(row) if has_targets else ""
        print(f"{row['name']:52}{row['median']:8.2f} {row['unit']} {spread:18}{outcome}".rstrip())
    print(f"\nload average after: {os.getloadavg()[0]:.2f}")

    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        report = {
            "settings": settings,
            "environment": environment,
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "seconds": seconds,
            "ratios": [{**row, "verdict": verdict(row) if has_targets else ""} for row in rows],
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
