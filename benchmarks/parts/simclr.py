"""SimCLR's training step on 32-pixel images, four ways: benchmarks/train.py describes them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.parts.rounds import synchronize, wall_seconds
from benchmarks.parts.training import fit
from datamodules.base import Batch, Split, SSLDataModule, keep_batch
from datamodules.images.arrays import CIFAR10
from datamodules.images.module import ArrayDataset
from datamodules.transforms.recipes import SimCLRViews
from sslmodules.networks import ConvEncoder, ResNetEncoder, projection_mlp
from sslmodules.optim import decay_groups
from sslmodules.simclr import nt_xent

SIZE = 32
TEMPERATURE = 0.5
PROJECTION = 128
OPTIMIZER = {"lr": 1e-3, "weight_decay": 1e-4}
PREMADE_BATCHES = 10  # distinct ones, then again from the first: too many for the cache, few in memory

Variant = Callable[[], float]
"""Runs one epoch that does not count and one that does; returns the seconds of the second."""


def timed(epoch: Callable[[], None], device: torch.device) -> float:
    """Seconds of the second of two calls."""
    epoch()
    return wall_seconds(epoch, device)


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
    """CIFAR10 on the given images; everything else is the project's.

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

    def dataset(self, split: Split) -> Dataset:
        return self.batches  # type: ignore[return-value]

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
    """Two epochs of what ``train.py`` builds from a configuration, on the data of ``make_data``."""
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
            fit(["--config", str(file)], clock, lambda cli: make_data(), compiled)
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
        self.images, self.transform = [Image.fromarray(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[index]), 0


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
