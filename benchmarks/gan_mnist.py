"""What a GAN trained on MNIST generates: the share of each digit and a Fréchet distance, by a classifier
trained here.

    python train.py --config configs/mnist/gan.yaml --data.root DIR --run_dir RUN
    python benchmarks/gan_mnist.py RUN --data_root DIR --grid samples.png --json generation.json

First a classifier is trained on MNIST's training split with this project's data and encoder, a few epochs of
cross-entropy; ``--classifier FILE`` keeps it for the next call. Then, for as many generated samples as asked
for: how many it takes for each digit (target: each between 5 and 20 percent), how sure it is, and the Fréchet
distance of its features to those of the test images. That number compares only with others of this very
classifier and sample size, so it is printed next to the floor (as many real training images against the test
images) and the generator before training.

Exit status: 0 measured, whether the target is met or not; 2 bad arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from datamodules.errors import DataFileError
from datamodules.images.arrays import MNIST
from evaluation.accuracy import top1
from evaluation.measures.frechet import frechet_distance
from runtime.checkpoints import initial_module, load_module, read_checkpoint
from runtime.environment import describe_environment
from sslmodules.gan import GAN
from sslmodules.networks import ConvEncoder

CLASSES, AT_ONCE = 10, 500
LOW, HIGH = 0.05, 0.2


class Classifier(nn.Module):
    """The encoder of the configs for MNIST and a linear layer; the encoder's features are what distances are
    taken of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ConvEncoder(1, stem_stride=2)
        self.layer = nn.Linear(self.encoder.num_features, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 28, 28) standardized -> features (B, D) and logits (B, 10)."""
        h = self.encoder(x)
        return h, self.layer(h)


def batches(
    data: MNIST, split: Any, order: Tensor, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardized images (B, 1, 28, 28) and labels (B,) of ``order``."""
    dataset: Any = data.dataset(split)
    for rows in order.split(size):
        raw = dataset.__getitems__(rows.tolist())
        yield data.standardize(data.decode(raw["input"].to(device))), raw["label"].to(device)


def train_classifier(data: MNIST, epochs: int, device: torch.device) -> Classifier:
    torch.manual_seed(0)
    net, batch_size = Classifier().to(device), 256
    n = len(data.dataset("train"))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (n // batch_size))
    for _ in range(epochs):
        for x, label in batches(
            data, "train", torch.randperm(n)[: n // batch_size * batch_size], batch_size, device
        ):
            loss = F.cross_entropy(net(x)[1], label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net


@torch.no_grad()
def look(net: Classifier, images: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and probabilities (N, 10), on the CPU."""
    seen = [(h.cpu(), logits.softmax(1).cpu()) for h, logits in map(net, images)]
    features, probabilities = zip(*seen, strict=True)
    return torch.cat(features), torch.cat(probabilities)


def generate(module: GAN, n: int, seed: int) -> Iterator[Tensor]:
    torch.manual_seed(seed)
    for start in range(0, n, AT_ONCE):
        size = min(AT_ONCE, n - start)
        yield module.sample(size, module.randn(size, module.latent_dim))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN_DIR_OR_CKPT", type=Path, help="a run folder of train.py, or a checkpoint"
    )
    parser.add_argument(
        "--data_root", default="data", metavar="DIR", help="folder that holds MNIST (default: data)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=10_000,
        help="generated and real ones each (default: 10000, at most that)",
    )
    parser.add_argument("--epochs", type=int, default=3, help="of the classifier (default: 3)")
    parser.add_argument(
        "--classifier", type=Path, metavar="FILE", help="load it from there, or save it there once trained"
    )
    parser.add_argument("--grid", type=Path, metavar="FILE", help="write an image of 64 samples")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args()
    if not 2 <= args.samples <= 10_000:
        parser.error(f"--samples must be between 2 and 10000, the size of the test split, got {args.samples}")
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    return args


def ready_classifier(file: Path | None, data: MNIST, epochs: int, device: torch.device) -> Classifier:
    """The classifier in the file, or a new one, saved there if a file is given."""
    if file and file.is_file():
        classifier = Classifier().to(device)
        classifier.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    else:
        classifier = train_classifier(data, epochs, device)
        if file:
            torch.save(classifier.state_dict(), file)
    return classifier.eval()


def accuracy_on_test(classifier: Classifier, data: MNIST, device: torch.device) -> float:
    everything = torch.arange(len(data.dataset("test")))  # type: ignore[arg-type]
    labels = torch.cat([label.cpu() for _, label in batches(data, "test", everything, AT_ONCE, device)])
    images = (x for x, _ in batches(data, "test", everything, AT_ONCE, device))
    return top1(look(classifier, images)[1].argmax(1), labels)


def real(data: MNIST, split: Any, n: int, device: torch.device) -> Iterator[Tensor]:
    """``n`` images of a split, always the same ones."""
    order = torch.randperm(len(data.dataset(split)), generator=torch.Generator().manual_seed(0))[:n]  # type: ignore[arg-type]
    return (x for x, _ in batches(data, split, order, AT_ONCE, device))


def compare(sets: dict[str, tuple[Tensor, Tensor]], reference: Tensor, n: int) -> dict[str, dict[str, Any]]:
    """Print the row of each set, and return its numbers.

    Args:
        sets: features and probabilities by name.
        reference: (n, D) features that distances are measured to.
        n: size of each set.
    """
    report: dict[str, dict[str, Any]] = {}
    print(f"{'':12}{'distance':>10}{'sure':>8}   share of each digit")
    for name, (features, probabilities) in sets.items():
        shares = torch.bincount(probabilities.argmax(1), minlength=CLASSES) / n
        report[name] = row = {
            "frechet_distance": frechet_distance(features, reference),
            "confidence": probabilities.max(1).values.mean().item(),
            "shares": shares.tolist(),
        }
        text = " ".join(f"{100 * share:5.1f}" for share in row["shares"])
        print(f"{name:12}{row['frechet_distance']:10.3f}{row['confidence']:8.3f}   {text}")
    return report


def main() -> int:
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = args.run / "checkpoints" / "last.ckpt" if args.run.is_dir() else args.run
    data, n = MNIST(args.data_root), args.samples
    try:
        trained, untrained = load_module(checkpoint), initial_module(read_checkpoint(checkpoint))
        data.dataset("test")
    except DataFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not isinstance(trained, GAN) or not isinstance(untrained, GAN):
        print(f"error: {checkpoint} holds {type(trained).__name__}, expected GAN", file=sys.stderr)
        return 2
    classifier = ready_classifier(args.classifier, data, args.epochs, device)
    accuracy = accuracy_on_test(classifier, data, device)
    sets = {
        "train": look(classifier, real(data, "train", n, device)),
        "generated": look(classifier, generate(trained.to(device), n, args.seed)),
        "untrained": look(classifier, generate(untrained.to(device), n, args.seed)),
    }
    reference, _ = look(classifier, real(data, "test", n, device))
    print(f"classifier: {accuracy:.4f} of the test split; {n} samples each; distances to the test split\n")
    report = compare(sets, reference, n)
    met = all(LOW <= share <= HIGH for share in report["generated"]["shares"])
    print(f"\neach digit between {LOW:.0%} and {HIGH:.0%} of the generated: {'met' if met else 'MISSED'}")
    if args.grid:
        samples = data.unstandardize(trained.sample(64)).cpu()
        save_image(samples, str(args.grid), nrow=8, padding=2, pad_value=0.5)
    if args.json:
        head = {"run": str(args.run), "samples": n, "classifier_test_top1": accuracy, "target_met": met}
        args.json.write_text(
            json.dumps({**head, "environment": describe_environment(), "sets": report}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
