"""The VAE's bound on a model whose likelihood is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from sslmodules.networks.decoder import Decoder
from sslmodules.vae import VAE, importance_weighted_bound


class Scale(Decoder):
    """z -> w z as an image of one pixel: a model whose log p(x) is known, N(0, w^2 + std^2)."""

    in_features = 1

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = w

    def forward(self, z: Tensor) -> Tensor:
        return (self.w * z).view(-1, 1, 1, 1)


def linear_model(w: float, std: float, slope: float, variance: float) -> VAE:
    """q(z|x) = N(slope * x, variance) and p(x|z) = N(w z, std^2), in one dimension and in float64."""
    encoder = nn.Flatten()
    encoder.num_features = 1  # type: ignore[assignment]
    net = VAE(
        encoder, Scale(w), 1, likelihood="gaussian", gaussian_std=std, optimizer=torch.optim.SGD
    ).double()
    with torch.no_grad():
        for layer, weight, bias in ((net.to_mean, slope, 0.0), (net.to_logvar, 0.0, math.log(variance))):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    net.randn = lambda *size: torch.randn(*size, dtype=torch.float64)  # type: ignore[method-assign]
    return net


def test_the_true_posterior_gives_the_exact_likelihood_from_one_draw() -> None:
    """Then every importance weight is p(x) itself, and the ELBO is tight: any slip in prior, posterior or
    constant shows.
    """
    w, std = 1.5, 0.5
    total = w**2 + std**2
    net = linear_model(w, std, slope=w / total, variance=std**2 / total)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    exact = -0.5 * (x.square() / total + math.log(2 * math.pi * total)).flatten()
    torch.manual_seed(0)
    weights = net.log_weights(x, 4)
    torch.testing.assert_close(weights, exact[:, None].expand(7, 4), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(importance_weighted_bound(weights), exact, rtol=1e-10, atol=1e-10)
    many = x.repeat(20_000, 1, 1, 1)
    assert net.losses({"input": many})["elbo"].item() == pytest.approx(exact.mean().item(), abs=0.01)


def test_elbo_is_a_lower_bound_and_draws_tighten_it() -> None:
    net = linear_model(1.5, 0.5, slope=0.4, variance=0.5)  # a wrong posterior
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).view(-1, 1, 1, 1).repeat(300, 1, 1, 1)
    exact = Normal(0.0, math.sqrt(2.5)).log_prob(x).mean().item()
    torch.manual_seed(0)
    elbo = net.losses({"input": x})["elbo"].item()
    bounds = [importance_weighted_bound(net.log_weights(x, k)).mean().item() for k in (1, 4, 64)]
    assert elbo < bounds[1] - 0.1 and bounds[1] < bounds[2] - 0.05 and bounds[2] < exact + 0.02
    assert bounds[0] == pytest.approx(elbo, abs=0.25)  # one draw is an estimate of the ELBO
    assert bounds[2] == pytest.approx(exact, abs=0.05)
