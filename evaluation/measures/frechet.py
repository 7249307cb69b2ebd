"""Fréchet distance and mode counts of generated samples.

A Fréchet distance is meaningless without the network that computed the features: report both, together with
the distance between two sets of real samples (the floor).
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.checks import check_positive
from evaluation.probes.linear import check_features


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians with the means and covariances of two sets of features.

    ::

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    With features of an Inception network it is called FID (Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500). Computed in float64 from eigenvalues of symmetric matrices, so that
    rounding cannot make a square root complex. Covariances are unbiased, as in the official code; with few
    samples the distance itself is still biased upwards, so compare only numbers of equal sample sizes.

    Args:
        features_a: (N, D) with N >= 2; D should be well below N.
        features_b: (M, D) with M >= 2.

    Returns:
        The distance, 0 for equal means and covariances.

    Raises:
        ValueError: empty, non-finite or non-matching features, or a single row.
    """
    check_features(features_a, "features_a")
    check_features(features_b, "features_b")
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features_a are {features_a.shape[1]} wide, features_b {features_b.shape[1]}")
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) < 2:
            raise ValueError(f"{name}: a covariance needs at least 2 rows, got {len(features)}")
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(features_a), _gaussian(features_b)
    root_a = _root(cov_a)
    # the eigenvalues of S_a S_b are those of this symmetric matrix
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D)."""
    x = features.double()
    mean = x.mean(0)
    centered = x - mean
    return mean, centered.T @ centered / (len(x) - 1)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def mode_counts(samples: Tensor, centers: Tensor, radius: float) -> Tensor:
    """Number of samples within ``radius`` of each center, counted at the nearest: the modes that are covered.
    Args:
        samples: (N, D).
        centers: (K, D).
        radius: positive; for Gaussians 3 or 4 standard deviations.

    Returns:
        (K,) int64.

    Raises:
        ValueError: ``radius`` is not positive.
    """
    check_positive(radius=radius)
    distance, nearest = torch.cdist(samples, centers).min(1)  # (N,) each
    return torch.bincount(nearest[distance <= radius], minlength=len(centers))
