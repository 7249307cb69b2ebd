"""Linear probe: logistic regression on frozen features, fitted to convergence.

A full-batch L-BFGS fit has no learning rate, no batch size and no random numbers, so encoders are compared by
their features, not by the luck of a probe's schedule (Kornblith et al. 2019, "Do Better ImageNet Models
Transfer Better?", fit their linear probes in this way).

Objective, for N features x_i of D dimensions and labels y_i of K classes:

    (1 / N) * sum_i cross_entropy(W x_i + b, y_i)  +  (l2 / 2) * ||W||^2          b is not regularized

For K > 2 it is scikit-learn's ``LogisticRegression(C=1 / (l2 * N))``. (For K = 2 scikit-learn fits one weight
vector where this fits two, hence ``C=2 / (l2 * N)``.)

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.checks import check, check_at_least, check_within
from datamodules.errors import ConfigError
from evaluation.accuracy import top1
from evaluation.probes.base import Fitted, Labeled, Probe

L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


class LinearProbe(Probe):
    """A linear probe on all training features, its L2 penalty chosen on the validation split."""

    name = "linear"
    heading = "linear"
    order = 1

    def protocol(self, num_train: int) -> dict[str, Any]:
        return {"standardize": True, "linear_l2_grid": list(L2_GRID)}

    def fit(self, train: Labeled, val: Labeled, num_classes: int, seed: int) -> Fitted:
        classifier, l2 = select_linear_probe(*train, *val, num_classes, l2_grid=L2_GRID)
        return Fitted([classifier.logits], {"linear_l2": l2})


class LinearClassifier(NamedTuple):
    """A fitted probe: ``weight`` (K, D) and ``bias`` (K,) for features standardized by ``mean``, ``std``
    (D,).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Class scores (N, K), float32, of raw (not yet standardized) features (N, D)."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            x = features.to(self.weight.device).float()
            return torch.addmm(self.bias, (x - self.mean) / self.std, self.weight.T)

    def predict(self, features: Tensor) -> Tensor:
        """Most likely class (N,), int64, of raw features (N, D)."""
        return self.logits(features).argmax(dim=1)


def check_labeled_features(
    features: Tensor, labels: Tensor, num_classes: int, name: str = "features"
) -> None:
    """Raise ValueError unless ``features`` (N, D) are finite and ``labels`` (N,) are in [0, num_classes).

    Unknown labels (-1) are rejected, not skipped: the caller knows whether it is right to drop them.

    Args:
        features: (N, D) floating point.
        labels: (N,) integers.
        num_classes: K.
        name: name of this set in messages, e.g. "train features".
    """
    check_features(features, name)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name}: expected {len(features)} labels, got shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}: labels must be integers, got {labels.dtype}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0:
        unknown = (labels < 0).sum().item()
        raise ValueError(
            f"{name}: {unknown} of {len(labels)} labels are negative (-1 = unknown): drop those samples first"
        )
    if high >= num_classes:
        raise ConfigError(f"{name}: found label {high}, but num_classes is {num_classes} (labels start at 0)")


def check_features(features: Tensor, name: str = "features") -> None:
    """Raise ValueError unless ``features`` is a non-empty, finite, floating-point (N, D) tensor."""
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty (N, D) tensor, got shape {tuple(features.shape)}")
    if not features.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {features.dtype}")
    # NaN and infinity survive a sum: a cheap test. The elements are checked only if it fails, possibly from
    # overflow.
    blocks = features.split(_block_size(features))
    if all(bool(rows.sum(dim=1, dtype=torch.float32).isfinite().all()) for rows in blocks):
        return
    bad = sum(int((~rows.isfinite().all(dim=1)).sum()) for rows in blocks)
    if bad:
        raise ConfigError(
            f"{name}: {bad} of {len(features)} rows contain NaN or infinity: the encoder has diverged"
        )


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of each feature, float32; 1 for the deviation of a constant feature.
    Args:
        features: (N, D), finite.

    Raises:
        ValueError: a variance overflows float32 (values around 1e19 and above).
    """
    if features.dtype == torch.float32:
        mean = features.mean(dim=0)
    else:  # block by block: torch would make a float32 copy of all rows
        sums = [rows.sum(dim=0, dtype=torch.float64) for rows in features.split(_block_size(features))]
        mean = (torch.stack(sums).sum(dim=0) / len(features)).float()
    variance = torch.zeros_like(mean)
    for rows in features.split(_block_size(features)):
        variance += (rows.float() - mean).square_().sum(dim=0)
    std = (variance / len(features)).sqrt()
    if not std.isfinite().all():
        raise ConfigError(
            f"features: values up to {features.abs().max().item():.1e} are too large to standardize"
        )
    # Rounding gives a constant float32 column a deviation of about 1e-7 of its value. Dividing by that would
    # turn the rounding error into a feature of unit variance.
    return mean, torch.where(std <= 1e-6 * mean.abs(), torch.ones_like(std), std)


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float = 1e-5,
    standardize: bool = True,
    max_iterations: int = 100,
) -> LinearClassifier:
    """Fit a multinomial logistic regression by full-batch L-BFGS from zero weights, in float32.

    Deterministic. Works inside ``torch.no_grad``, ``torch.inference_mode`` and autocast, as validation loops
    require. Float32 features are copied once; those in half precision are read in blocks.

    Args:
        features: (N, D) frozen features, any floating-point type, CPU or GPU.
        labels: (N,) integers in [0, num_classes), on the device to compute on: that of the features, or a GPU
            for half-precision features on the host.
        num_classes: K. A class without examples is allowed.
        l2: weight of ||W||^2 / 2 added to the MEAN cross-entropy (see the module's docstring), default 1e-5.
        standardize: give each feature zero mean and unit variance over ``features`` first, default True. It
            makes the fit independent of each feature's scale and offset, and several times faster.
        max_iterations: L-BFGS iterations, default 100. The fit ends earlier when no component of the gradient
            exceeds 1e-6 or an iteration lowers the loss by less than 3e-8. (With l2 = 1e-5 on scikit-learn's
            digits, that library's default of 1e-4 for the gradient stops up to 0.9 points away from the
            optimum's accuracy.)

    Returns:
        The probe, on the labels' device; it takes raw features.

    Raises:
        ValueError: empty or non-finite features, a label outside [0, num_classes), negative l2,
            max_iterations < 1.
    """
    check_labeled_features(features, labels, num_classes)
    _check_fit_options((l2,), max_iterations)
    mean, std = _statistics_or_identity(features, standardize)
    weight, bias = _minimize(
        Standardized(features.detach(), mean, std),
        labels.long(),
        l2,
        max_iterations,
        *_zero_init(features, labels, num_classes),
    )
    return LinearClassifier(weight, bias, mean.to(weight), std.to(weight))


def select_linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    l2_grid: Sequence[float] = L2_GRID,
    standardize: bool = True,
    max_iterations: int = 100,
) -> tuple[LinearClassifier, float]:
    """Fit a probe for each l2 on the training split, and keep the one with the best validation top-1.

    Ties go to the stronger l2. There is no test split among the arguments, so it cannot be used for
    selection; the validation split must be a part of the training data that the probe was not fitted on.

    Args:
        train_features: (N, D). ``train_labels``: (N,).
        val_features: (M, D). ``val_labels``: (M,).
        num_classes: K.
        l2_grid: values to try, default 1e-6 ... 1e-2 in decades.
        standardize: by the statistics of ``train_features``, default True.
        max_iterations: L-BFGS iterations per value, default 100.

    Returns:
        The chosen probe (fitted on the training split only) and its l2. Fits run from strong to weak l2, each
        starting from the previous weights, so a fit that ``max_iterations`` ends early differs slightly from
        ``fit_linear_probe`` at that l2.

    Raises:
        ValueError: as for ``fit_linear_probe``; an empty grid; train and val of different widths.
    """
    check_labeled_features(train_features, train_labels, num_classes, "train features")
    check_labeled_features(val_features, val_labels, num_classes, "val features")
    if train_features.shape[1] != val_features.shape[1]:
        raise ValueError(
            f"train features are {train_features.shape[1]} wide, val features {val_features.shape[1]}"
        )
    _check_fit_options(l2_grid, max_iterations)
    mean, std = _statistics_or_identity(train_features, standardize)
    inputs, targets = Standardized(train_features.detach(), mean, std), train_labels.long()

    best: tuple[LinearClassifier, float] | None = None
    best_accuracy = -1.0
    # Neighboring optima are close: on digits, starting from the previous one takes a third less time than
    # starting from zero.
    weight, bias = _zero_init(train_features, train_labels, num_classes)
    mean, std = mean.to(weight), std.to(weight)
    for l2 in sorted(l2_grid, reverse=True):
        weight, bias = _minimize(inputs, targets, l2, max_iterations, weight, bias)
        probe = LinearClassifier(weight, bias, mean, std)
        accuracy = top1(probe.predict(val_features), val_labels)
        if accuracy > best_accuracy:  # strictly better: a tie keeps the stronger l2, which came first
            best, best_accuracy = (probe, l2), accuracy
    assert best is not None  # the grid is not empty
    return best


def _block_size(features: Tensor) -> int:
    """Rows to work on at once, so that temporaries stay small for millions of rows and thousands of classes.

    On a CPU, a block stays in cache between the two matrix products that need it; a GPU is fastest with few,
    large blocks.
    """
    return 1024 if features.device.type == "cpu" else 65536


def _check_fit_options(l2_grid: Sequence[float], max_iterations: int) -> None:
    check(len(l2_grid) > 0, "l2_grid", "at least one value", l2_grid)
    for l2 in l2_grid:
        check_within(0, math.inf, "[)", l2=l2)
    check_at_least(1, max_iterations=max_iterations)


def _statistics_or_identity(features: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    if standardize:
        return feature_statistics(features.detach())
    width, device = features.shape[1], features.device
    return torch.zeros(width, device=device), torch.ones(width, device=device)


class Standardized:
    """Features (N, D) standardized to zero mean and unit variance, in blocks on the computing device.

    float32 features on that device are standardized once, which takes as much memory again. Others, in half
    precision or on the host, are too large for a copy: each block is computed on demand.
    """

    def __init__(self, features: Tensor, mean: Tensor, std: Tensor) -> None:
        self.features, self.mean, self.std = features, mean, std
        self.done = features.dtype in (torch.float32, torch.float64)
        if self.done:
            self.features = (features.float() - mean).div_(std)

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self, device: torch.device, rows: int) -> Iterator[Tensor]:
        for part in self.features.split(rows):
            x = part.to(device)
            yield x if self.done else (x.float() - self.mean.to(device)).div_(self.std.to(device))


def _zero_init(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    width, device = features.shape[1], labels.device
    return torch.zeros(num_classes, width, device=device), torch.zeros(num_classes, device=device)


def _minimize(
    inputs: Standardized, targets: Tensor, l2: float, max_iterations: int, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimize the objective from (``weight``, ``bias``), which are not changed; returns the new pair.

    The gradient is written out instead of computed by autograd, which is unavailable in inference mode, where
    validation runs, and would keep all N rows of logits.
    """
    device, rows, count = targets.device, _block_size(targets), len(inputs)
    # The line search compares losses that differ by less than float32's precision, and would try many steps
    # in vain.
    loss_dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        weight, bias = weight.clone(), bias.clone()
        weight.grad = weight_grad = torch.zeros_like(weight)
        bias.grad = bias_grad = torch.zeros_like(bias)

        def closure() -> Tensor:
            weight_grad.zero_()
            bias_grad.zero_()
            total = torch.zeros((), dtype=loss_dtype, device=device)
            for x, y in zip(inputs.blocks(device, rows), targets.split(rows), strict=True):
                # Classes first: with few classes, a softmax over the last dimension is several times slower
                # on CPU.
                log_p = torch.addmm(bias.unsqueeze(1), weight, x.T).log_softmax(dim=0)  # (K, rows)
                index = y.unsqueeze(0)  # (1, rows)
                total -= log_p.gather(0, index).sum(dtype=loss_dtype)
                error = log_p.exp_()  # p - onehot(y), the gradient of the summed cross-entropy by the logits
                error.scatter_add_(0, index, torch.full_like(index, -1, dtype=error.dtype))
                weight_grad.addmm_(error, x)
                bias_grad.add_(error.sum(dim=1))
            weight_grad.div_(count).add_(weight, alpha=l2)
            bias_grad.div_(count)
            return total / count + 0.5 * l2 * weight.square().sum(dtype=loss_dtype)

        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=1e-6,  # below these two, float32 rounding dominates
            tolerance_change=3e-8,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)
    return weight.detach(), bias.detach()  # without .grad
