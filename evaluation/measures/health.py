"""Collapse metrics of features, without labels.

All functions take features of a FIXED set of samples, embedded in evaluation mode; on augmented or changing
samples they would measure the augmentation. They compute in float32 even inside autocast, and return plain
floats. N samples, D features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import SSLDataModule
from datamodules.checks import check_positive
from evaluation.features import embed_split
from evaluation.measures.base import Measure
from sslmodules.base import SSLModule

# Thresholds of `is_collapsed`.
MIN_FEATURE_STD = 0.01
MIN_RANKME = 1.5


MAX_SAMPLES = 2048


class Collapse(Measure):
    """Collapse diagnostics on the features of test samples."""

    name = "collapse"

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return len(data.dataset("test")) >= 2  # type: ignore[arg-type]

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        """Metrics of up to ``MAX_SAMPLES`` samples, spread evenly over the split."""
        n = len(data.dataset("test"))  # type: ignore[arg-type]
        rows = torch.linspace(0, n - 1, min(n, MAX_SAMPLES)).round().long().tolist()
        features, _ = embed_split({"": module.embed}, data, "test", device, rows)
        return collapse_report(features[""])

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        names = {"rankme": "RankMe", "feature_std": "feature std", "uniformity": "uniformity"}
        cells = {heading: f"{values[key]:.3f}" for key, heading in names.items() if key in values}
        title = f"features of {values['samples']} test samples"
        return title, {**cells, "collapsed": values["collapsed"] or "no"}


def collapse_report(features: Tensor) -> dict[str, Any]:
    """Collapse metrics of features (N, D): ``collapsed`` (the reason or None) and ``samples``.

    Also ``rankme``, ``feature_std`` and ``uniformity``, unless the features are not finite or all zero.
    """
    reason = _unusable(features)
    report: dict[str, Any] = {"samples": len(features), "collapsed": reason}
    if reason is None:
        report |= {"rankme": rankme(features), "feature_std": feature_std(features)}
        report["collapsed"] = _too_narrow(report["feature_std"], report["rankme"])
        report["uniformity"] = uniformity(features)
    return report


def rankme(features: Tensor) -> float:
    """RankMe, a smooth count of the directions that the features use (Garrido et al. 2023, Eq. 1).

    exp(-sum_k p_k log p_k), p_k = sigma_k / ||sigma||_1 + 1e-7, with sigma the singular values of the
    features, neither centered nor normalized. It is at most min(N, D), so compare values only for equal N
    (the paper uses 25,600 samples); a large common offset lowers it.
    https://arxiv.org/abs/2210.02885

    Args:
        features: (N, D) floating point.

    Returns:
        The effective rank, about 1 (all samples on one line through the origin) to min(N, D); 0 for all-zero
        features, NaN where a feature is not finite.

    Raises:
        ValueError: not a non-empty (N, D) tensor.
    """
    _check_matrix(features)
    if not features.isfinite().all():
        return math.nan
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        sigma = torch.linalg.svdvals(features.float())  # (min(N, D),)
        if sigma[0] == 0:
            return 0.0
        p = sigma / sigma.sum() + 1e-7
        return (-(p * p.log()).sum()).exp().item()


def feature_std(features: Tensor) -> float:
    """Spread of unit-length features relative to a uniform spread over the sphere.

    Chen & He 2021 (SimSiam), section 4.1. Mean over dimensions of the standard deviation over samples of
    h / ||h||, divided by 1 / sqrt(D).

    Args:
        features: (N, D) floating point.

    Returns:
        About 1 for directions spread evenly over the sphere, 0 if all samples have one direction; NaN if a
        feature is not finite.

    Raises:
        ValueError: not a non-empty (N, D) tensor.
    """
    _check_matrix(features)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.float(), dim=1)
        return (unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])).item()


def alignment(h1: Tensor, h2: Tensor, alpha: float = 2.0) -> float:
    """Mean distance of two views of a sample, E ||h1 - h2||^alpha, on the unit sphere; lower is closer.
    Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
    the Hypersphere", https://arxiv.org/abs/2005.10242

    Args:
        h1: (N, D) features of one view; normalized to unit length here.
        h2: (N, D) features of the other view of the same samples, in the same order.
        alpha: exponent > 0, default 2 as in the paper.

    Returns:
        0 (identical directions) to 2^alpha (opposite ones).

    Raises:
        ValueError: shapes that differ, not non-empty (N, D), alpha <= 0.
    """
    _check_matrix(h1)
    if h1.shape != h2.shape:
        raise ValueError(
            f"alignment needs two views of the same shape, got {tuple(h1.shape)} and {tuple(h2.shape)}"
        )
    check_positive(alpha=alpha)
    with torch.no_grad(), torch.autocast(h1.device.type, enabled=False):
        difference = F.normalize(h1.float(), dim=1) - F.normalize(h2.float(), dim=1)
        return difference.norm(dim=1).pow(alpha).mean().item()


def uniformity(h: Tensor, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of all distinct pairs on the unit sphere; lower is more uniform.

    log E exp(-t ||h_i - h_j||^2), i < j (Wang & Isola 2020, see `alignment`). Keeps N (N - 1) / 2 distances
    in memory: use a few thousand samples.

    Args:
        h: (N, D) features, N >= 2; normalized to unit length here.
        t: sharpness > 0, default 2 as in the paper.

    Returns:
        -4 t (not reachable for N > 2) to 0 (all samples in one point).

    Raises:
        ValueError: not (N, D) with N >= 2, t <= 0.
    """
    _check_matrix(h)
    if len(h) < 2:
        raise ValueError(f"uniformity needs at least 2 samples, got {len(h)}")
    check_positive(t=t)
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        squared = torch.pdist(F.normalize(h.float(), dim=1)).square()  # (N (N - 1) / 2,)
        return (torch.logsumexp(-t * squared, dim=0) - math.log(len(squared))).item()


def is_collapsed(features: Tensor) -> str | None:
    """Why the features are useless for any task, or None. The first of these rules that applies:
    1. a feature is NaN or infinite;
    2. all features are zero;
    3. `feature_std` < 0.01: all samples point in one direction (complete collapse);
    4. `rankme` < 1.5: the samples differ, but along little more than one line (the last stage of dimensional
       collapse).

    The thresholds are well below the values of randomly initialized networks (ResNet-18, ResNet-50 and ViT-Ti
    on digits: feature std 0.07 to 0.19, RankMe 4 to 48), so that a fresh network does not count as collapsed.
    They detect complete failure, not mediocre features: rank 5 passes. An encoder that ends in batch
    normalization can have spread-out features while the loss sees only collapsed projections; check the
    projections as well.

    Args:
        features: (N, D) features or projections, floating point, N >= 2 different samples. Takes one singular
            value decomposition.

    Returns:
        One sentence with the measured value and its threshold, or None.

    Raises:
        ValueError: not (N, D) with N >= 2.
    """
    return _unusable(features) or _too_narrow(feature_std(features), rankme(features))


def _unusable(features: Tensor) -> str | None:
    """Rules 1 and 2 of ``is_collapsed``."""
    _check_matrix(features)
    if len(features) < 2:
        raise ValueError(f"is_collapsed needs at least 2 samples, got {len(features)}")
    bad = (~features.isfinite().all(dim=1)).sum().item()
    if bad:
        return f"the features of {bad} of {len(features)} samples contain NaN or infinity"
    return None if features.any() else "all features are zero"


def _too_narrow(spread: float, rank: float) -> str | None:
    """Rules 3 and 4, of ``feature_std`` and ``rankme``."""
    if spread < MIN_FEATURE_STD:
        return f"all samples have nearly the same direction (feature std {spread:.2g} < {MIN_FEATURE_STD:g})"
    if rank < MIN_RANKME:
        return f"the features vary along little more than one line (RankMe {rank:.3g} < {MIN_RANKME:g})"
    return None


def _check_matrix(features: Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"expected a non-empty (N, D) tensor of features, got shape {tuple(features.shape)}")
