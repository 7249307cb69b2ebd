"""Fréchet distance by closed forms, and the count of modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluation.measures.frechet import frechet_distance, mode_counts


def with_moments(mean: Tensor, covariance: Tensor, n: int = 200, seed: int = 0) -> Tensor:
    """(n, D) samples whose mean and unbiased covariance are exactly these."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def covariance(d: int, seed: int) -> Tensor:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T + 0.1 * torch.eye(d, dtype=torch.float64)


def test_closed_form_of_shifted_gaussians() -> None:
    """Equal covariances: the squared distance of the means, here 3^2 + 4^2."""
    shift, spread = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64), covariance(3, 1)
    a, b = with_moments(torch.zeros(3).double(), spread), with_moments(shift, spread, seed=2)
    assert frechet_distance(a, b) == pytest.approx(25.0, abs=1e-9)


def test_closed_form_of_diagonal_covariances() -> None:
    """Independent features: the sum over them of (deviation_a - deviation_b)^2. Sets of different sizes."""
    deviations = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 1.0]], dtype=torch.float64)
    zero = torch.zeros(3).double()
    a, b = (
        with_moments(zero, torch.diag(d.square()), n, n) for d, n in zip(deviations, (50, 90), strict=True)
    )
    assert frechet_distance(a, b) == pytest.approx(4.25, abs=1e-9)


def test_equals_the_reference_by_the_eigenvalues_of_the_product() -> None:
    """tr (S_a S_b)^(1/2) as the definition has it: roots of the eigenvalues of the product, which is not
    symmetric.
    """
    mean_a, mean_b = torch.arange(4).double(), torch.ones(4).double()
    cov_a, cov_b = covariance(4, 3), covariance(4, 4)
    expected = (mean_a - mean_b).square().sum() + (cov_a + cov_b).trace()
    expected = expected - 2 * torch.linalg.eigvals(cov_a @ cov_b).real.sqrt().sum()
    a, b = with_moments(mean_a, cov_a), with_moments(mean_b, cov_b, seed=5)
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)


def test_is_zero_for_the_same_set_and_ignores_order_and_dead_features() -> None:
    x = with_moments(torch.zeros(3).double(), covariance(3, 6))
    dead = torch.cat(
        [x, torch.full((len(x), 2), 7.0, dtype=torch.float64)], 1
    )  # singular covariance, as ReLU features have
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(dead, dead.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x.float(), x.float() + 1) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "features_a: a covariance needs at least 2 rows, got 1"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "features_a are 3 wide, features_b 2"),
        (torch.zeros(4, 3), torch.full((4, 3), torch.nan), "features_b: 4 of 4 rows contain NaN"),
    ],
)
def test_refuses_what_has_no_distance(a: Tensor, b: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frechet_distance(a, b)


def test_mode_counts() -> None:
    centers = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    samples = torch.tensor([[0.1, 0.0], [0.0, -0.2], [1.9, 0.1], [1.0, 0.0], [5.0, 5.0]])
    assert mode_counts(samples, centers, 0.5).tolist() == [2, 1, 0]  # half way and far away count nowhere
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        mode_counts(samples, centers, 0)
