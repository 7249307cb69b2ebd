"""The VAE of configs/mnist/vae.yaml (784-400-20, 10 epochs) on MNIST's test split, in nats per image.

    python benchmarks/vae_mnist.py --root DIR
    python benchmarks/vae_mnist.py --root DIR --run RUN_DIR_OR_CKPT

Without ``--run`` it trains one run per seed with ``train.py`` (60,000 training images, no probes) in a
temporary folder.
Per run it prints: minus the ELBO and its two terms, the reconstruction with one latent per image and the KL
in closed form; the importance-weighted bound of -log p(x) with ``--samples`` latents per image, which is
lower; how many latents are active (variance of the mean over test images above 0.01); and the KL of each,
largest first. The images are gray values in [0, 1] under a Bernoulli likelihood, as in the common PyTorch
example: comparable with its 106.66 after 7 epochs, not with results on binarized MNIST.

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
from datamodules import MNIST
from sslmodules import VAE
from sslmodules.vae import ACTIVE, importance_weighted_bound, kl_per_dimension

CHUNK = 20  # latents per image at once


@torch.no_grad()
def measure(module: VAE, data: MNIST, samples: int) -> dict[str, Any]:
    """All numbers of one run, over the whole test split; the draws are the same for every run."""
    torch.manual_seed(0)
    sums = {"reconstruction": 0.0, "kl": 0.0, "iw_bound": 0.0}
    means, kls = [], []
    for raw in data.eval_dataloader(data.dataset("test")):
        x = data.transform(raw, None)["input"]
        mean, logvar = module.posterior(x)
        terms = module.losses({"input": x})
        log_weights = torch.cat(
            [module.log_weights(x, min(CHUNK, samples - i)) for i in range(0, samples, CHUNK)], 1
        )
        sums["reconstruction"] += terms["reconstruction"].item() * len(x)
        sums["kl"] += terms["kl"].item() * len(x)
        sums["iw_bound"] -= importance_weighted_bound(log_weights).sum().item()
        means.append(mean)
        kls.append(kl_per_dimension(mean, logvar))
    n = sum(map(len, means))
    result: dict[str, Any] = {key: value / n for key, value in sums.items()}
    result["negative_elbo"] = result["reconstruction"] + result["kl"]
    result["active"] = int((torch.cat(means).var(0) > ACTIVE).sum())
    result["kl_per_dimension"] = torch.cat(kls).mean(0).sort(descending=True).values.tolist()
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--samples", type=int, default=100, help="latents per image of the importance-weighted bound"
    )
    args = parser.parse_args()
    if args.samples < 1:
        parser.error(f"--samples must be at least 1, got {args.samples}")
    return args


def main() -> int:
    args = parse_arguments()
    results: dict[str, dict[str, Any]] = {}
    for name, module, seconds in runs(args, "configs/mnist/vae.yaml"):
        if not isinstance(module, VAE):
            refuse(f"{name} is a {type(module).__name__}, not a VAE")
        data = MNIST(root=args.root, mean=(0.0,), std=(1.0,), batch_size=128)
        results[name] = r = {**measure(module, data, args.samples), "train_seconds": seconds}
        print(
            f"{name}: -ELBO {r['negative_elbo']:.2f} = reconstruction {r['reconstruction']:.2f} + KL "
            f"{r['kl']:.2f} nats; "
            f"bound with {args.samples} latents {r['iw_bound']:.2f}; {r['active']} of "
            f"{module.latent_dim} active{trained_in(seconds)}"
        )
        print("  KL per latent: " + " ".join(f"{v:.2f}" for v in r["kl_per_dimension"]), flush=True)
    if len(results) > 1:
        for key in ("negative_elbo", "reconstruction", "kl", "iw_bound"):
            print(f"{key}: {over_runs([r[key] for r in results.values()])}")
    print(f"{platform.machine()}, {args.threads} thread(s), torch {torch.__version__}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
