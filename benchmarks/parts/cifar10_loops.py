"""Plain training loops on CIFAR-10's images, without Lightning: SimCLR's and a classifier's.

benchmarks/cifar10_gate.py describes what they are compared with.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.parts.cifar10_images import CLASSES, Images
from benchmarks.parts.rounds import synchronize
from benchmarks.parts.simclr import PILImages
from datamodules.transforms.base import apply_views
from datamodules.transforms.views import TwoViews, View
from sslmodules.networks import ConvEncoder

Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Variant(NamedTuple):
    """One row of the table."""

    code: str  # ours, bare or supervised
    config: str = "simclr"
    precision: str = "bf16-mixed"
    norm_per_view: bool = False
    decay_all: bool = False
    compressed: bool = False
    torchvision_views: bool = False


class OutOfTime(Exception):
    """A variant would not end before the minutes are over."""


class Pace:
    """Seconds of every epoch."""

    def __init__(self, epochs: int, deadline: float, device: torch.device) -> None:
        self.epochs, self.deadline, self.device = epochs, deadline, device
        self.seconds: list[float] = []
        self.mark = time.monotonic()

    def epoch_ends(self) -> None:
        """Raises:
        OutOfTime: at the pace of the second epoch, the last one would end too late.
        """
        synchronize(self.device)
        now = time.monotonic()
        self.seconds.append(now - self.mark)
        self.mark = now
        left = (self.epochs - len(self.seconds)) * self.seconds[-1]
        if len(self.seconds) == 2 and now + left > self.deadline:
            raise OutOfTime


def compressed(given: Images) -> Images:
    """The images after another round of JPEG."""

    def again(image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        shifted = Image.fromarray(np.roll(image, 5, axis=(0, 1)))
        shifted.save(buffer, "JPEG", quality=75, subsampling="4:2:0")
        return np.roll(np.asarray(Image.open(buffer)), -5, axis=(0, 1))

    with ThreadPoolExecutor() as pool:
        return Images(np.stack(list(pool.map(again, given.images))), given.labels)


def autocast(variant: Variant, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=variant.precision == "bf16-mixed")


def plain_network(encoder: str) -> tuple[nn.Module, int]:
    """ResNet-18 for small images from torchvision, or the small ConvEncoder; and the number of features."""
    if encoder == "conv":
        small = ConvEncoder(3, stem_stride=2)
        return small, small.num_features
    network = torchvision.models.resnet18(weights=None)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return network.to(memory_format=torch.channels_last), 512


def info_nce(z: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross entropy of each view's partner among all other views; z (2B, D), the second views below."""
    z = F.normalize(z.float())
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    half = len(z) // 2
    partner = torch.arange(2 * half, device=z.device).roll(half)
    return F.cross_entropy(similarity, partner)


def torchvision_pairs(train: Images, args: argparse.Namespace, device: torch.device) -> Pairs:
    """Pairs of views (B, 3, 32, 32) in [0, 1], made one at a time in worker processes."""
    v1 = torchvision.transforms
    jitter = v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = v1.RandomResizedCrop(32, scale=(0.2, 1.0))
    view = v1.Compose([crop, v1.RandomHorizontalFlip(), jitter, v1.RandomGrayscale(0.1), v1.ToTensor()])
    loader = DataLoader(
        PILImages(train.images, lambda image: [view(image), view(image)]),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for (first, second), _ in loader:
            yield first.to(device), second.to(device)

    return epoch


def our_pairs(train: Images, seed: int, args: argparse.Namespace, device: torch.device) -> Pairs:
    """The same distribution, from this project's views on the device."""
    color = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale_p": 0.1}
    view = View(32, crop_scale=(0.2, 1.0), **color)
    views, generator = TwoViews(view, view), torch.Generator(device).manual_seed(seed)
    images = torch.from_numpy(train.images).permute(0, 3, 1, 2).to(device)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator, device=device)
        for rows in order[: len(order) // args.batch * args.batch].split(args.batch):
            yield tuple(apply_views(views, images[rows].float() / 255, generator)["views"])

    return epoch


def train_bare(variant: Variant, train: Images, seed: int, args: argparse.Namespace, pace: Pace) -> nn.Module:
    """The encoder after the record's loop."""
    device = pace.device
    encoder, width = plain_network(args.encoder)
    network = nn.Sequential(encoder, nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, 128)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.06 * args.batch / 256, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    if variant.torchvision_views:
        pairs = torchvision_pairs(train, args, device)
    else:
        pairs = our_pairs(train, seed, args, device)
    pace.mark = time.monotonic()
    for _ in range(args.epochs):
        for first, second in pairs():
            with autocast(variant, device):
                z = torch.cat([network(first), network(second)])
            optimizer.zero_grad()
            info_nce(z).backward()
            optimizer.step()
        schedule.step()
        pace.epoch_ends()
    return encoder


def train_supervised(
    variant: Variant, train: Images, test: Images, args: argparse.Namespace, pace: Pace
) -> float:
    """Test accuracy in percent of the classifier."""
    device = pace.device
    encoder, width = plain_network(args.encoder)
    network = nn.Sequential(encoder, nn.Linear(width, CLASSES)).to(device)
    images, labels, queries, targets = (
        torch.from_numpy(part).to(device) for part in (train.images, train.labels, test.images, test.labels)
    )
    mean, std = images.float().mean((0, 1, 2)), images.float().std((0, 1, 2))

    def prepared(part: Tensor) -> Tensor:
        return ((part.float() - mean) / std).permute(0, 3, 1, 2)

    steps = len(images) // args.batch
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=args.supervised_epochs * steps)
    pace.mark = time.monotonic()
    for _ in range(args.supervised_epochs):
        for rows in torch.randperm(len(images), device=device)[: steps * args.batch].split(args.batch):
            x = shifted_and_flipped(prepared(images[rows]))
            with autocast(variant, device):
                loss = F.cross_entropy(network(x), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        pace.epoch_ends()
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(prepared(part)).argmax(1) for part in queries.split(1000)])
    return round(100 * (found == targets).float().mean().item(), 2)


def shifted_and_flipped(x: Tensor, pad: int = 4) -> Tensor:
    """Each image (B, C, H, W) moved by up to ``pad`` pixels, zeros coming in, and half of them mirrored."""
    count, _, height, width = x.shape
    shift = torch.randint(0, 2 * pad + 1, (2, count, 1), device=x.device)
    rows, columns = (
        torch.arange(n, device=x.device) + s for n, s in zip((height, width), shift, strict=True)
    )
    columns = torch.where(torch.rand(count, 1, device=x.device) < 0.5, columns, columns.flip(1))
    padded = F.pad(x, [pad] * 4).permute(0, 2, 3, 1)
    which = torch.arange(count, device=x.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
