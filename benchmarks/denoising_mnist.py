"""The denoising autoencoder of configs/mnist/autoencoder.yaml on MNIST's test split: PSNR against the clean
images, in dB.

    python benchmarks/denoising_mnist.py --root DIR
    python benchmarks/denoising_mnist.py --root DIR --run RUN_DIR_OR_CKPT

Without ``--run`` it trains one run per seed with ``train.py`` (55,000 training images, no probes) in a
temporary folder. Beside the network's output stand the noisy image itself and its median filter of 3x3 and
5x5 pixels, for the same draws of noise. All are in [0, 1]; the squared error is averaged over all pixels of
the 10,000 images before the logarithm. ``--noise`` measures a trained network on other noise than it was
trained with, or trains with it if there is no ``--run``.

Exit status: 0 measured, 2 bad arguments or a run that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that it runs from a clone without installing

import torch

from datamodules import MNIST, GaussianNoise, MaskingNoise, SaltAndPepper
from datamodules.seeding import mix_seed
from evaluation.measures.reconstruction import denoising_psnr, median_filter, psnr
from runtime.checkpoints import load_module
from sslmodules import Autoencoder

ROOT = Path(__file__).resolve().parents[1]
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


def train(root: str, seed: int, noise: str, folder: Path) -> float:
    """Train one run and return the seconds of the whole command."""
    config = ROOT / "configs/mnist/autoencoder.yaml"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config",
        str(config),
        "--data.root",
        root,
        "--data.views",
        noise,
    ]
    command += ["--seed_everything", str(seed), "--run_dir", str(folder), "--evaluate", "false"]
    command += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def checkpoint(run: str) -> Path:
    return Path(run) / "checkpoints" / "last.ckpt" if Path(run).is_dir() else Path(run)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--run", nargs="+", default=[], help="measure these runs instead of training")
    parser.add_argument(
        "--noise", choices=sorted(NOISE), default="GaussianNoise", help="with its default strength"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    data = MNIST(root=arguments.root, views=NOISE[arguments.noise]())
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.run or [f"seed {seed}" for seed in arguments.seeds]:
            if arguments.run:
                seconds, path = None, checkpoint(name)
            else:
                folder = Path(temporary) / name.replace(" ", "")
                seconds = train(arguments.root, int(name.split()[1]), arguments.noise, folder)
                path = folder / "checkpoints" / "last.ckpt"
            module = load_module(path)
            if not isinstance(module, Autoencoder):
                raise SystemExit(f"error: {name} is a {type(module).__name__}, not an Autoencoder")
            values = measure(module, data)
            results[name] = {**values, "train_seconds": seconds}
            took = "" if seconds is None else f"; trained in {seconds:.0f} s"
            print(
                f"{name}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()) + f" dB{took}", flush=True
            )
    if len(results) > 1:
        outputs = [r["output"] for r in results.values()]
        print(
            f"output: {statistics.mean(outputs):.2f} +- {statistics.stdev(outputs):.2f} dB over "
            f"{len(outputs)} runs"
        )
    print(
        f"{arguments.noise}, {platform.machine()}, {arguments.threads} thread(s), torch {torch.__version__}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
