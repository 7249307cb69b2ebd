"""GAN's losses and gradient penalty: slow references, closed forms, half precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmodules.gan import discriminator_loss, diversity, generator_loss, gradient_penalty
from tests.sslmodules.gans import LOSSES, randn


def slow_losses(real: Tensor, fake: Tensor, loss: str) -> tuple[float, float]:
    """Sample by sample, from probabilities where the paper has them."""
    d = g = 0.0
    n = len(real)
    for r, f in zip(real.tolist(), fake.tolist(), strict=True):
        p_real, p_fake = 1 / (1 + math.exp(-r)), 1 / (1 + math.exp(-f))
        if loss == "non_saturating":
            d += (-math.log(p_real) - math.log(1 - p_fake)) / n
            g += -math.log(p_fake) / n
        elif loss == "hinge":
            d += (max(0.0, 1 - r) + max(0.0, 1 + f)) / n
            g += -f / n
        else:
            d += (f - r) / n
            g += -f / n
    return d, g


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_the_slow_reference(loss: Any) -> None:
    real, fake = 3 * randn(7), 3 * randn(7, seed=1)
    got = discriminator_loss(real, fake, loss).item(), generator_loss(fake, loss).item()
    assert got == pytest.approx(slow_losses(real, fake, loss), rel=1e-12)


def test_closed_forms_of_a_discriminator_that_cannot_tell() -> None:
    zero = torch.zeros(5)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(4))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert (
        discriminator_loss(zero, zero, "hinge").item() == 2
        and discriminator_loss(zero, zero, "wgan_gp").item() == 0
    )


def test_the_generator_learns_where_the_discriminator_is_sure() -> None:
    """log(1 - D), the saturating form, has a gradient of e^-20 here."""
    logits = torch.full((4,), -20.0, requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad is not None and logits.grad.sum().item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_large_logits(loss: Any, dtype: torch.dtype) -> None:
    """A sigmoid would be exactly 0 or 1 here, and its logarithm infinite; a mean in float16 would
    overflow.
    """
    logits = torch.tensor([60000.0, -60000.0, 50000.0], dtype=dtype, requires_grad=True)
    total = discriminator_loss(logits, logits, loss) + generator_loss(logits, loss)
    total.backward()
    assert (
        total.dtype == torch.float32
        and total.isfinite()
        and logits.grad is not None
        and logits.grad.isfinite().all()
    )


def test_penalty_of_a_linear_critic() -> None:
    """Its gradient is w at every point: (|w| - 1)^2 = 16, whatever the samples."""
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert gradient_penalty(
        lambda x: x @ w, randn(6, 2), randn(6, 2, seed=1), torch.rand(6)
    ).item() == pytest.approx(16)


def test_penalty_is_taken_at_the_point_between_sample_by_sample() -> None:
    """Of |x|^2 / 2 the gradient is x itself, so the penalty tells where it was taken: one epsilon for each
    sample.
    """
    real, fake, epsilon = randn(5, 1, 3, 3), randn(5, 1, 3, 3, seed=1), torch.rand(5, dtype=torch.float64)
    expected = 0.0
    for i in range(5):
        point = epsilon[i] * real[i] + (1 - epsilon[i]) * fake[i]
        expected += (point.norm().item() - 1) ** 2 / 5
    got = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, epsilon)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_penalty_and_its_gradient_equal_finite_differences() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, fake, epsilon = randn(4, 3), randn(4, 3, seed=1), torch.rand(4, dtype=torch.float64)

    def slow() -> float:
        total, h = 0.0, 1e-5
        with torch.no_grad():
            for i in range(4):
                point = epsilon[i] * real[i] + (1 - epsilon[i]) * fake[i]
                slope = [
                    (critic(point + h * e) - critic(point - h * e)).item() / (2 * h)
                    for e in torch.eye(3).double()
                ]
                total += (math.sqrt(sum(s * s for s in slope)) - 1) ** 2 / 4
        return total

    penalty = gradient_penalty(lambda x: critic(x).squeeze(1), real, fake, epsilon)
    assert penalty.item() == pytest.approx(slow(), rel=1e-7)
    penalty.backward()
    weight = critic[0].weight
    for row, column in ((0, 0), (5, 2)):
        assert weight.grad is not None
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight[row, column] += step
                values.append(slow())
                weight[row, column] -= step
        assert weight.grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def test_penalty_of_a_flat_critic_has_a_finite_gradient() -> None:
    w = torch.zeros(2, requires_grad=True)
    penalty = gradient_penalty(lambda x: x @ w, torch.ones(3, 2), torch.zeros(3, 2), torch.rand(3))
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5) and w.grad is not None and w.grad.isfinite().all()


def test_the_penalty_leaves_half_precision() -> None:
    """A gradient of 1e-5 has a square that float16 has not; under autocast the critic runs in float32 too."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 1e-5)
    seen = []

    def critic(x: Tensor) -> Tensor:
        out = layer(x).squeeze(1)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient_penalty(critic, torch.ones(3, 2), torch.zeros(3, 2).bfloat16(), torch.rand(3))
    assert seen == [torch.float32]


def test_diversity_is_one_for_the_data_and_zero_when_collapsed() -> None:
    x = randn(16, 1, 4, 4)
    assert diversity(x, x).item() == 1 and diversity(x / 2 + 3, x).item() == pytest.approx(0.5)
    assert diversity(x[:1].expand_as(x), x).item() == pytest.approx(0, abs=1e-12)
