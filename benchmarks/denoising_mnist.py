"""The denoising autoencoder of configs/mnist/autoencoder.yaml on MNIST's test split: PSNR against the clean
images, in dB.

    python benchmarks/denoising_mnist.py --root DIR
    python benchmarks/denoising_mnist.py --root DIR --run RUN_DIR_OR_CKPT

Without ``--run`` it trains one run per seed with ``train.py`` (55,000 training images, no probes) in a
temporary folder. The network's output is compared with the noisy image and its median filter of 3x3 and
5x5 pixels, for the same draws of noise. All are in [0, 1]; the squared error is averaged over all pixels of
the 10,000 images before the logarithm. ``--noise`` measures a trained network on other noise than it was
trained with, or trains with it if there is no ``--run``.

Exit status: 0 measured, 2 bad arguments or a run that failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.mnist import add_arguments, over_runs, runs, trained_in
from benchmarks.parts.rounds import refuse
from datamodules import MNIST, GaussianNoise, MaskingNoise, SaltAndPepper
from datamodules.seeding import mix_seed
from evaluation.measures.reconstruction import denoising_psnr, median_filter, psnr
from sslmodules import Autoencoder

NOISE = {cls.__name__: cls for cls in (GaussianNoise, SaltAndPepper, MaskingNoise)}


@torch.no_grad()
def measure(module: Autoencoder, data: MNIST) -> dict[str, float]:
    """PSNR by name, over the whole test split."""
    values = denoising_psnr(module, data, torch.device("cpu"))["psnr"]
    error, count = 0.0, 0
    for index, raw in enumerate(data.eval_dataloader(data.dataset("test"))):
        # the draws of denoising_psnr
        batch = data.transform(raw, torch.Generator().manual_seed(mix_seed(0, index)))
        clean = data.decode(raw["input"]).double()
        error += (median_filter(data.unstandardize(batch["corrupted"]), 5) - clean).square().sum().item()
        count += clean.numel()
    return {
        "output": values["model"],
        "noisy": values["noisy"],
        "median 3x3": values["median_filter"],
        "median 5x5": psnr(error / count),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--noise", choices=sorted(NOISE), default="GaussianNoise", help="with its default strength"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    data = MNIST(root=args.root, views=NOISE[args.noise]())
    results: dict[str, dict[str, Any]] = {}
    for name, module, seconds in runs(args, "configs/mnist/autoencoder.yaml", "--data.views", args.noise):
        if not isinstance(module, Autoencoder):
            refuse(f"{name} is a {type(module).__name__}, not an Autoencoder")
        values = measure(module, data)
        results[name] = {**values, "train_seconds": seconds}
        text = ", ".join(f"{k} {v:.2f}" for k, v in values.items())
        print(f"{name}: {text} dB{trained_in(seconds)}", flush=True)
    if len(results) > 1:
        print(f"output: {over_runs([r['output'] for r in results.values()], ' dB')}")
    print(f"{args.noise}, {platform.machine()}, {args.threads} thread(s), torch {torch.__version__}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
