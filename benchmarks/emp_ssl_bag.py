"""EMP-SSL by its own protocol beside ours: features of a bag of augmented patches, and of the clean image.

    python benchmarks/emp_ssl_bag.py [--config configs/digits/emp_ssl.yaml] [--seeds 0 1 2] [--patches 128]

Trains the config for each seed. The paper's numbers are of the mean of 128 randomly augmented patches behind
the projector's first layer, for training and test images alike. ``embed`` is what every other method is
measured by: the encoder's features of the clean image. The same probes are fitted on both, and their
accuracies on the test split printed, mean ± standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.features import extract_features
from evaluation.probes.base import Labeled
from evaluation.report import named_probes
from runtime.checkpoints import load_module, read_checkpoint
from runtime.saved_run import build_data

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("bank", "val", "test")


@torch.no_grad()
def bags(module: Any, data: Any, split: str, patches: int, generator: torch.Generator) -> Labeled:
    """Bag features (N, projector_hidden) of a split, by the recipe of the first view, and labels (N,)."""
    view, features, labels = data.views.views[0], [], []
    for raw in data.eval_dataloader(data.dataset(split)):
        images = data.decode(raw["input"])

        def patch(images: Tensor = images) -> Tensor:
            return data.standardize(view.render(images, view.draw(images, generator)))

        features.append(module.bag([patch() for _ in range(patches)]).float())
        labels.append(raw["label"])
    return torch.cat(features), torch.cat(labels)


def train(config: Path, seed: int, epochs: int | None, folder: Path) -> Path:
    """The last checkpoint of a run of the config."""
    run = folder / str(seed)
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run_dir", str(run)]
    command += ["--seed_everything", str(seed), "--evaluate", "false"]
    command += [] if epochs is None else ["--trainer.max_epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return run / "checkpoints" / "last.ckpt"


def scores(checkpoint: Path, patches: int, seed: int) -> dict[str, list[float]]:
    """Test accuracy in percent of each probe, by features."""
    module = load_module(checkpoint).eval()
    data: Any = build_data(read_checkpoint(checkpoint)["datamodule_hyper_parameters"], [])
    data.prepare_data()
    data.setup("test")
    generator, device = torch.Generator().manual_seed(seed), torch.device("cpu")
    features = {
        "embed": [extract_features({"h": module.embed}, data, split, device)["h"] for split in SPLITS],
        f"bag of {patches} patches": [bags(module, data, split, patches, generator) for split in SPLITS],
    }
    return {
        name: [
            100 * probe.score(*splits, data.num_classes)[0][f"{probe.name}_top1"]
            for probe in named_probes(None)
        ]
        for name, splits in features.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "digits" / "emp_ssl.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--patches", type=int, default=128)
    parser.add_argument("--epochs", type=int, help="other than the config's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [(seed, train(args.config, seed, args.epochs, Path(folder))) for seed in args.seeds]
        runs = [scores(checkpoint, args.patches, seed) for seed, checkpoint in checkpoints]
    print("| features | " + " | ".join(probe.heading for probe in named_probes(None)) + " |")
    print("|---" * (len(named_probes(None)) + 1) + "|")
    for name in runs[0]:
        columns = zip(*(run[name] for run in runs), strict=True)
        cells = [
            f"{statistics.mean(v):.1f} ± {statistics.stdev(v) if len(v) > 1 else 0:.1f}" for v in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
