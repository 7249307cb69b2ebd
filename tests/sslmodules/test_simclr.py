"""NT-Xent against a slow reference, closed forms, symmetries, and the known mistakes of
re-implementations.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslmodules.networks import ConvEncoder
from sslmodules.simclr import SimCLR, nt_xent


def slow_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of the paper, view by view in float64."""
    z = torch.cat([z1, z2]).double()
    n = len(z1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        similarity = [torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm()) / temperature for k in range(2 * n)]
        others = torch.stack([s for k, s in enumerate(similarity) if k != i])
        total += torch.log(others.exp().sum()) - similarity[j]
    return total / (2 * n)


def pair(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
def test_equals_the_slow_reference(temperature: float) -> None:
    z1, z2 = pair()
    torch.testing.assert_close(
        nt_xent(z1, z2, temperature), slow_nt_xent(z1, z2, temperature), rtol=1e-10, atol=1e-12
    )


def test_gradient_equals_the_slow_reference() -> None:
    z1, z2 = pair()
    gradients = []
    for loss in (nt_xent, slow_nt_xent):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(a, b, 0.2), (a, b)))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_closed_form_when_all_views_are_equal() -> None:
    """2N equal vectors: every one of the 2N - 1 candidates is as likely as the positive."""
    z = torch.ones(4, 3)
    assert nt_xent(z, z, 0.3).item() == pytest.approx(math.log(7), abs=1e-6)


def test_closed_form_for_orthogonal_pairs() -> None:
    """Positives equal, the 2N - 2 others orthogonal: -log(e^(1/T) / (e^(1/T) + 2N - 2))."""
    z, t = torch.eye(3), 0.5
    expected = -math.log(math.exp(1 / t) / (math.exp(1 / t) + 4))
    assert nt_xent(z, z, t).item() == pytest.approx(expected, abs=1e-6)


def test_symmetric_in_the_views_and_blind_to_scale_and_order() -> None:
    z1, z2 = pair()
    loss = nt_xent(z1, z2, 0.2)
    torch.testing.assert_close(nt_xent(z2, z1, 0.2), loss)
    torch.testing.assert_close(nt_xent(7 * z1, 0.1 * z2, 0.2), loss)
    order = torch.randperm(len(z1))
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.2), loss)


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    """What each rank computes on its rows against everybody's, averaged, is the loss of the joined batch:
    places included.
    """
    z1, z2 = pair(8)
    shares = [nt_xent(z1[i : i + 4], z2[i : i + 4], 0.2, (z1, z2), i) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, nt_xent(z1, z2, 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_a_low_temperature(dtype: torch.dtype) -> None:
    """exp(1 / 0.05) overflows float16: the loss must leave half precision before it divides."""
    z1, z2 = (z.to(dtype).requires_grad_() for z in pair(32, 16))
    loss = nt_xent(z1, z2, 0.05)
    loss.backward()
    assert (
        loss.dtype == torch.float32 and loss.isfinite() and z1.grad is not None and z1.grad.isfinite().all()
    )


def optimizer(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knob", "value"),
    [("temperature", 0), ("temperature", -1.0), ("projector_layers", 0), ("warmup_epochs", -1)],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        SimCLR(ConvEncoder(1), optimizer=optimizer, **{knob: value})


def test_bad_temperature_of_the_loss() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        nt_xent(*pair(), 0)


def test_features_are_the_encoders_not_the_projectors() -> None:
    module = SimCLR(ConvEncoder(1), projector_out=16, optimizer=optimizer).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(module.embed(x), module.encoder(x)) and module.embed(x).shape == (2, 128)


def test_a_negative_learning_rate_stops_at_construction() -> None:
    with pytest.raises(ValueError, match="learning rate: -1"):
        SimCLR(ConvEncoder(1), optimizer=lambda p: torch.optim.AdamW(p, lr=-1))
