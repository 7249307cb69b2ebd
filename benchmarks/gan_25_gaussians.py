"""A GAN on 25 Gaussians in the plane, with each of its losses: how many of them does the generator find?

    python benchmarks/gan_25_gaussians.py --seeds 0 1 2 --json gaussians.json

The centers form a 5 x 5 grid, scaled to unit variance; each Gaussian has a deviation of a fortieth of the
distance to its neighbor. A generator that collapses leaves most of them out; no loss curve shows it. Method,
losses, optimization loop and Trainer are those of ``train.py`` (``sslmodules.gan.GAN``); the networks are
small multi-layer perceptrons without norms. A Gaussian counts as found if at least a tenth of its share of
the samples lies within 4 deviations of its center. Next to that count is the share of all samples that lie
so near to any center.

Exit status: 0 measured, whether the target is met or not; 2 bad arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from datamodules.base import SSLDataModule
from datamodules.splits import Split
from evaluation.measures.frechet import mode_counts
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework
from sslmodules.gan import GAN, Loss
from sslmodules.networks.decoder import Generator
from sslmodules.networks.encoder import Encoder, WrappedEncoder

SIDE, SPACING, DEVIATION = 5, 2.0, 0.05
SCALE = SPACING * ((SIDE**2 - 1) / 12) ** 0.5  # the grid's deviation along each axis
LATENT, WIDTH, DEPTH = 2, 128, 3
TARGET = 20
#: What the losses do not share; the penalty's weight is far below the 10 that suits images.
OPTIONS: dict[str, dict[str, Any]] = {
    "non_saturating": {},
    "hinge": {},
    "wgan_gp": {"penalty_weight": 0.1},
}


def centers() -> Tensor:
    """(25, 2)."""
    axis = (torch.arange(SIDE) - (SIDE - 1) / 2) * SPACING / SCALE
    return torch.cartesian_prod(axis, axis)


class Points(Dataset):
    """Samples of all Gaussians in equal numbers, fetched by whole batches."""

    def __init__(self, n: int = 100_000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.label = torch.arange(n) % SIDE**2
        self.input = centers()[self.label] + torch.randn(n, 2, generator=generator) * DEVIATION / SCALE

    def __len__(self) -> int:
        return len(self.label)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {"input": self.input[rows], "label": self.label[rows]}


class Gaussians(SSLDataModule):
    """The 25 Gaussians as training data; nothing is validated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.points = Points()

    def dataset(self, split: Split) -> Dataset:
        return self.points


def perceptron(inputs: int, activation: nn.Module) -> list[nn.Module]:
    widths = [inputs] + [WIDTH] * DEPTH
    return [layer for i in range(DEPTH) for layer in (nn.Linear(widths[i], widths[i + 1]), activation)]


def discriminator() -> Encoder:
    """(B, 2) -> (B, WIDTH)."""
    return WrappedEncoder(nn.Sequential(*perceptron(2, nn.LeakyReLU(0.2))), WIDTH)


class PointGenerator(Generator):
    """(B, LATENT) -> (B, 2)."""

    latent_dim = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*perceptron(LATENT, nn.ReLU()), nn.Linear(WIDTH, 2))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def train(loss: Loss, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run; the number of Gaussians found, the share of near samples, and the seconds of training."""
    seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.Adam, lr=args.lr, betas=(0.0, 0.99))
    options = {"loss": loss, "optimizer": optimizer, "final_lr_factor": 1.0, **OPTIONS[loss]}
    module = GAN(discriminator(), PointGenerator(), **options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=args.steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, Gaussians(batch_size=args.batch_size))
    seconds = time.perf_counter() - start
    samples = module.eval().sample(args.samples, module.randn(args.samples, LATENT))
    counts = mode_counts(samples, centers(), 4 * DEVIATION / SCALE)
    found = int((counts >= args.samples / SIDE**2 / 10).sum())
    return {
        "found": found,
        "near": counts.sum().item() / args.samples,
        "seconds": seconds,
        "counts": counts.tolist(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--losses", nargs="+", default=list(get_args(Loss)), choices=get_args(Loss), help="default: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, default=10_000, help="of the discriminator (default: 10000)")
    parser.add_argument("--batch_size", type=int, default=256, help="default: 256")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam for both, constant (default: 0.001)")
    parser.add_argument("--samples", type=int, default=10_000, help="that are counted (default: 10000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args()
    for name in ("steps", "batch_size", "samples", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.lr <= 0:
        parser.error(f"--lr must be positive, got {args.lr}")
    return args


def main() -> None:
    args = parse_arguments()
    silence_framework()
    torch.set_num_threads(args.threads)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    print(f"{args.steps} steps of {args.batch_size}, {args.samples} samples; target: {TARGET} of {SIDE**2}")
    for loss in args.losses:
        for seed in args.seeds:
            result = train(loss, seed, args)
            results.setdefault(loss, {})[seed] = result
            verdict = "met" if result["found"] >= TARGET else "MISSED"
            found = f"found {result['found']:2} ({verdict}), near a center {result['near']:.1%}"
            print(f"{loss:15} seed {seed}: {found}, {result['seconds']:.0f} s", flush=True)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"} | {"options": OPTIONS}
        args.json.write_text(
            json.dumps(
                {"settings": settings, "environment": describe_environment(), "results": results}, indent=2
            )
        )


if __name__ == "__main__":
    main()
