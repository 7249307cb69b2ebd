"""Diagnostics of a representation against closed forms, pairwise loops and deliberate collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from evaluation.measures.health import alignment, feature_std, is_collapsed, rankme, uniformity


def gaussian(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def unit(h):
    return h.double() / h.double().norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dim", [1, 2, 16, 64])
def test_rankme_of_the_identity_is_its_width(dim):
    assert rankme(torch.eye(dim)) == pytest.approx(dim, rel=1e-4)
    assert rankme(torch.eye(dim).repeat(5, 1)) == pytest.approx(dim, rel=1e-4)


def test_rankme_of_one_line_is_one():
    line = gaussian(100, 1) * gaussian(1, 16, seed=1)
    assert rankme(line) == pytest.approx(1.0, abs=1e-3)
    assert rankme(torch.ones(100, 16)) == pytest.approx(
        1.0, abs=1e-3
    )  # uncentered: one offset is one direction


def test_rankme_uses_singular_values_not_their_squares():
    """Singular values 3 and 1: p = (3/4, 1/4); squares would give p = (9/10, 1/10)."""
    q1, q2 = (torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in (6, 4))
    sigma = torch.zeros(6, 4)
    sigma[0, 0], sigma[1, 1] = 3.0, 1.0
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rankme(q1 @ sigma @ q2) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rankme_does_not_depend_on_the_scale(scale):
    assert rankme(scale * gaussian(50, 8)) == pytest.approx(rankme(gaussian(50, 8)), rel=1e-4)


def test_rankme_is_bounded_by_both_sides_and_near_the_width_for_noise():
    assert rankme(gaussian(5, 64)) <= 5.001
    assert 15.9 < rankme(gaussian(20000, 16)) <= 16.001


def test_rankme_of_zero_and_nan():
    assert rankme(torch.zeros(10, 4)) == 0.0
    assert math.isnan(rankme(torch.full((10, 4), math.nan)))


def test_feature_std_by_hand():
    """(1, 0, 0, 0) and its opposite: deviations (1, 0, 0, 0), mean 1/4, times sqrt(4)."""
    h = torch.tensor([[3.0, 0, 0, 0], [-7.0, 0, 0, 0]])  # lengths do not matter
    assert feature_std(h) == pytest.approx(0.5)
    assert feature_std(torch.ones(10, 4)) == pytest.approx(0.0, abs=1e-6)
    assert feature_std(gaussian(5000, 64)) == pytest.approx(1.0, abs=0.02)
    assert math.isnan(feature_std(torch.full((10, 4), math.nan)))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_equals_the_loop(alpha):
    h1, h2 = gaussian(20, 6), 5 * gaussian(20, 6, seed=1)
    loop = sum((a - b).norm().item() ** alpha for a, b in zip(unit(h1), unit(h2), strict=True)) / 20
    assert alignment(h1, h2, alpha) == pytest.approx(loop, rel=1e-5)


def test_alignment_extremes():
    h = gaussian(20, 6)
    assert alignment(h, 3 * h) == pytest.approx(0.0, abs=1e-6)
    assert alignment(h, -h) == pytest.approx(4.0)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_equals_the_loop(t):
    h = 7 * gaussian(15, 6)
    pairs = [
        math.exp(-t * (unit(h)[i] - unit(h)[j]).square().sum().item()) for i in range(15) for j in range(i)
    ]
    assert len(pairs) == 105
    assert uniformity(h, t) == pytest.approx(math.log(sum(pairs) / 105), rel=1e-5)


def test_uniformity_extremes():
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0.0, abs=1e-5)
    assert uniformity(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)
    assert uniformity(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), t=100.0) == pytest.approx(
        -400.0
    )  # exp underflows
    assert uniformity(gaussian(500, 32)) < uniformity(gaussian(500, 32) + 2)


def test_float32_inside_autocast():
    h1, h2 = gaussian(50, 8), gaussian(50, 8, seed=1)
    expected = rankme(h1), feature_std(h1), alignment(h1, h2), uniformity(h1)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (rankme(h1), feature_std(h1), alignment(h1, h2), uniformity(h1)) == expected


def test_healthy_features_are_not_called_collapsed():
    assert is_collapsed(gaussian(200, 64)) is None
    assert is_collapsed(gaussian(200, 64).relu()) is None
    assert is_collapsed(gaussian(200, 5) @ gaussian(5, 64, seed=1)) is None  # poor but not ruined
    assert is_collapsed(1e-6 * gaussian(200, 64)) is None  # small is not collapsed


def test_randomly_initialized_network_is_not_called_collapsed():
    for seed in range(5):
        torch.manual_seed(seed)
        layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
        with torch.no_grad():
            assert is_collapsed(nn.Sequential(*layers)(gaussian(200, 64))) is None


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.zeros(50, 16), "all features are zero"),
        (torch.ones(50, 16), "same direction"),
        (torch.ones(50, 16) + 1e-3 * gaussian(50, 16), "same direction"),
        ((1 + torch.arange(50.0)).unsqueeze(1) * torch.ones(1, 16), "same direction"),
        (gaussian(50, 1) * gaussian(1, 16, seed=1), "one line"),
        (gaussian(50, 1) * gaussian(1, 16, seed=1) + 1e-3 * gaussian(50, 16, seed=2), "one line"),
    ],
)
def test_collapse_is_detected_with_its_reason(features, reason):
    assert reason in is_collapsed(features)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_features_have_their_own_reason(value):
    features = gaussian(50, 16)
    features[3, 5] = features[7, 0] = value
    assert is_collapsed(features) == "the features of 2 of 50 samples contain NaN or infinity"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rankme(torch.zeros(0, 4)), "non-empty"),
        (lambda: feature_std(torch.zeros(4)), "non-empty"),
        (lambda: alignment(torch.ones(3, 2), torch.ones(2, 2)), r"\(3, 2\) and \(2, 2\)"),
        (lambda: alignment(torch.ones(3, 2), torch.ones(3, 2), alpha=0), "alpha must be positive, got 0"),
        (lambda: uniformity(torch.ones(1, 2)), "at least 2 samples, got 1"),
        (lambda: uniformity(torch.ones(3, 2), t=-1), "t must be positive, got -1"),
        (lambda: is_collapsed(torch.ones(1, 2)), "at least 2 samples, got 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
