"""What a copy of CIFAR-10 costs features of fine detail: single-layer k-means (Coates, Lee and Ng 2011).

    python benchmarks/cifar10_kmeans.py --data DIR [--centroids 1600] [--patches 400000] [--images 50000]

The paper (http://proceedings.mlr.press/v15/coates11a.html, section 4 and table 2) reports 77.9 % on CIFAR-10
with 1,600 centroids. On a lossy copy of the images the difference to that number bounds what the copy costs.

Protocol, the paper's: 6x6 patches, each normalized to zero mean and unit variance (10 added to the variance
of pixels in [0, 255]), ZCA whitening (0.1 added to the eigenvalues), k-means, "triangle" activations max(0,
mean distance - distance) at stride 1, summed over the four quadrants, standardized, and an L2-regularized
linear SVM (squared hinge, one against all). Its penalty is chosen on the last fifth of the training images;
the classifier is then fitted to all of them. k-means starts from random patches and runs 50 rounds of whole
batches.

``--data``: a folder or tar archive as ``benchmarks/cifar10.py`` takes it; a JPEG copy is called
CIFAR-10-JPEG.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.cifar10_images import Images, load

SIZE, SIDE = 6, 32 - 6 + 1  # of a patch; patches in a row
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def as_pixels(given: Images) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) float in [0, 255], and their labels (N,)."""
    return torch.from_numpy(given.images).permute(0, 3, 1, 2).float(), torch.from_numpy(given.labels)


def random_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, 108): patches at random places of random images (N, 3, 32, 32)."""
    which = torch.randint(len(images), (count,), generator=generator)
    top, left = (torch.randint(SIDE, (count,), generator=generator) for _ in range(2))
    window = torch.arange(SIZE)
    rows, columns = (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None]
    return images[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2).flatten(1)


def normalized(patches: Tensor) -> Tensor:
    """(N, 108) patches of [0, 255], each to zero mean and unit variance."""
    centered = patches - patches.mean(1, keepdim=True)
    return centered / (centered.square().mean(1, keepdim=True) + 10).sqrt()


def whitening(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (108,) and ZCA matrix (108, 108) of normalized patches (N, 108)."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    return mean, vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T


def kmeans(points: Tensor, k: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centroids (k, D) of points (N, D); one that has lost all its points stays where it is."""
    centroids = points[torch.randperm(len(points), generator=generator)[:k]].clone()
    for _ in range(rounds):
        sums, counts = torch.zeros_like(centroids), torch.zeros(k)
        half = 0.5 * centroids.square().sum(1)
        for block in points.split(2_000):
            nearest = (block @ centroids.T - half).argmax(1)
            sums.index_add_(0, nearest, block)
            counts += torch.bincount(nearest, minlength=k)
        kept = counts > 0
        centroids[kept] = sums[kept] / counts[kept, None]
    return centroids


def features(images: Tensor, mean: Tensor, zca: Tensor, centroids: Tensor) -> Tensor:
    """(N, 4k): triangle activations summed over the quadrants of each image."""
    rows = []
    squares = centroids.square().sum(1)
    for block in images.split(4):  # a larger block does not fit into the processor's cache: half as fast
        patches = F.unfold(block, SIZE).transpose(1, 2)  # (B, 729, 108)
        x = (normalized(patches.flatten(0, 1)) - mean) @ zca  # (B * 729, 108)
        distance = torch.addmm(squares, x, centroids.T, alpha=-2).add_(x.square().sum(1, keepdim=True))
        distance.clamp_(min=0).sqrt_()
        active = distance.neg_().sub_(distance.mean(1, keepdim=True)).clamp_(min=0)  # mean - distance
        maps = active.view(len(block), SIDE, SIDE, -1)
        half = SIDE // 2
        quadrants = (
            maps[:, a, b]
            for a in (slice(0, half), slice(half, None))
            for b in (slice(0, half), slice(half, None))
        )
        rows.append(torch.cat([q.flatten(1, 2).sum(1) for q in quadrants], dim=1))
    return torch.cat(rows)


def fit_svm(x: Tensor, y: Tensor, gram: Tensor, penalty: float, iterations: int = 50) -> Tensor:
    """Weights (D + 1, 10) of ten squared-hinge SVMs: mean hinge^2 over samples, plus penalty / 2 * |w|^2.

    ``gram``: x^T x (D, D). With it L-BFGS starts from the curvature of the ridge regression: a tenth of the
    iterations are enough, and the minimum is the same.
    """
    target = 2 * F.one_hot(y, 10).float() - 1
    root = torch.linalg.cholesky(2 / len(x) * gram + penalty * torch.eye(x.shape[1]))
    free = torch.zeros(x.shape[1] + 1, 10)
    free.grad = torch.zeros_like(free)

    def weights() -> Tensor:
        return torch.cat([torch.linalg.solve_triangular(root.T, free[:-1], upper=True), free[-1:]])

    def closure() -> Tensor:
        weight = weights()
        margin = (1 - target * torch.addmm(weight[-1], x, weight[:-1])).clamp(min=0)
        slope = -2 * margin * target / len(x)
        gradient = x.T @ slope + penalty * weight[:-1]
        free.grad[:-1] = torch.linalg.solve_triangular(root, gradient, upper=False)
        free.grad[-1] = slope.sum(0)
        return margin.square().sum() / len(x) + 0.5 * penalty * weight[:-1].square().sum()

    torch.optim.LBFGS([free], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe").step(
        closure
    )
    return weights()


def accuracy(weight: Tensor, x: Tensor, y: Tensor) -> float:
    return (torch.addmm(weight[-1], x, weight[:-1]).argmax(1) == y).float().mean().item()


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where an archive is unpacked")
    parser.add_argument("--centroids", type=int, default=1600)
    parser.add_argument("--patches", type=int, default=400_000)
    parser.add_argument("--images", type=int, default=50_000, help="training images that are used")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()

    def say(stage: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {stage}", file=sys.stderr, flush=True)

    args.runs.mkdir(parents=True, exist_ok=True)
    name, train, test_images = load(args.data, args.runs)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = as_pixels(train)
    order = torch.randperm(len(images), generator=generator)[: args.images]
    images, labels = images[order], labels[order]
    patches = normalized(random_patches(images, args.patches, generator))
    mean, zca = whitening(patches)
    say(f"k-means of {args.patches} patches")
    centroids = kmeans((patches - mean) @ zca, args.centroids, 50, generator)
    say(f"features of {len(images)} images")
    x, y = features(images, mean, zca, centroids), labels
    shift, scale = x.mean(0), (x.var(0) + 0.01).sqrt()
    x.sub_(shift).div_(scale)
    cut = len(x) * 4 // 5
    say(f"classifiers with {len(PENALTIES)} penalties on {cut} images")
    gram = x[:cut].T @ x[:cut]
    scores = {p: accuracy(fit_svm(x[:cut], y[:cut], gram, p), x[cut:], y[cut:]) for p in PENALTIES}
    best = max(scores, key=lambda p: scores[p])
    say(f"the classifier on all {len(x)} images")
    weight = fit_svm(x, y, x.T @ x, best)
    queries, targets = as_pixels(test_images)
    test = features(queries, mean, zca, centroids).sub_(shift).div_(scale)
    result = accuracy(weight, test, targets)
    print(
        f"{name}, {len(x)} training images, {args.centroids} centroids, seed {args.seed}: test accuracy "
        f"{result:.1%} (penalty {best:g}, {scores[best]:.1%} on held-out training images; training images "
        f"{accuracy(weight, x, y):.1%}); published on CIFAR-10 with 1,600: 77.9 %; "
        f"{time.perf_counter() - started:.0f} s on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
