"""The bound against numerical integration, slow references and exact answers, and the known mistakes of
tutorials.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from sslmodules.networks import MLPDecoder, MLPEncoder
from sslmodules.vae import (
    LOGVAR_RANGE,
    VAE,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    importance_weighted_bound,
    kl_per_dimension,
    log_importance_weights,
)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def module(**options: Any) -> VAE:
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(16, (12,)), MLPDecoder(3, (12,), 4)
    return VAE(encoder, decoder, **{"latent_dim": 3, "optimizer": sgd, **options})


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def gaussians(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


# ---- the terms ---------------------------------------------------------------------------------------------


def test_kl_equals_torchs_the_integral_and_closed_forms() -> None:
    mean, logvar = gaussians(4, 3)
    q = Normal(mean, torch.exp(0.5 * logvar))
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(kl_per_dimension(mean, logvar), expected, rtol=1e-12, atol=1e-12)
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    log_q = q.log_prob(grid[:, None, None])
    integrand = log_q.exp() * (log_q - Normal(0.0, 1.0).log_prob(grid)[:, None, None])
    torch.testing.assert_close(
        kl_per_dimension(mean, logvar), torch.trapezoid(integrand, grid, dim=0), rtol=1e-6, atol=1e-8
    )
    zero, two = torch.zeros(1, 1), torch.full((1, 1), 2.0)
    assert kl_per_dimension(zero, zero).item() == 0 and kl_per_dimension(two, zero).item() == 2
    assert kl_per_dimension(zero, math.log(4) * torch.ones(1, 1)).item() == pytest.approx(
        (4 - 1 - math.log(4)) / 2
    )


def test_likelihoods_are_sums_over_an_image_in_nats() -> None:
    logits, x = (t.view(4, 1, 2, 3) for t in gaussians(4, 6))
    pixels = x.sigmoid()
    slow = (pixels * logits.sigmoid().log() + (1 - pixels) * (1 - logits.sigmoid()).log()).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_log_likelihood(logits, pixels), slow)
    binary = (pixels > 0.5).double()
    torch.testing.assert_close(
        bernoulli_log_likelihood(logits, binary), Bernoulli(logits=logits).log_prob(binary).sum((1, 2, 3))
    )
    for std in (0.1, 1.0, 3.0):
        expected = Normal(logits, std).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(gaussian_log_likelihood(logits, x, std), expected)
    # an even chance for each of D pixels is D ln 2; a perfect unit-variance prediction still costs D/2 ln 2
    # pi
    zeros = torch.zeros(1, 1, 28, 28)
    assert bernoulli_log_likelihood(zeros, zeros).item() == pytest.approx(-784 * math.log(2), rel=1e-6)
    assert gaussian_log_likelihood(zeros, zeros).item() == pytest.approx(
        -392 * math.log(2 * math.pi), rel=1e-6
    )


def test_loss_equals_the_slow_reference() -> None:
    """Sums per image, then the mean over the batch, for both likelihoods and with a weight on the KL term."""
    x = images()
    for options in ({}, {"beta": 4.0}, {"likelihood": "gaussian", "gaussian_std": 0.3}):
        net = module(**options)
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
        net.randn = lambda *size, noise=noise: noise  # type: ignore[method-assign]
        terms = net.losses({"input": x})
        reconstruction, kl = [], []
        for b in range(5):
            h = net.encoder(x[b : b + 1])[0]
            mu, logvar = net.to_mean(h).double(), net.to_logvar(h).double()
            z = mu + noise[b].double() * torch.exp(logvar).sqrt()
            decoded = net.decoder(z.float()[None])[0].flatten().double()
            pixels = x[b].flatten().double()
            if net.likelihood == "bernoulli":
                p = decoded.sigmoid()
                reconstruction.append(-(pixels * p.log() + (1 - pixels) * (1 - p).log()).sum())
            else:
                reconstruction.append(-Normal(decoded, 0.3).log_prob(pixels).sum())
            kl.append(-0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).sum())
        expected_reconstruction, expected_kl = torch.stack(reconstruction).mean(), torch.stack(kl).mean()
        torch.testing.assert_close(
            terms["reconstruction"].double(), expected_reconstruction, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(terms["kl"].double(), expected_kl, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))
        torch.testing.assert_close(terms["loss"], terms["reconstruction"] + net.beta * terms["kl"])


def test_importance_weights_and_bound_equal_the_slow_reference() -> None:
    mean, logvar = gaussians(2, 3)
    z, _ = gaussians(2, 4, 3)
    likelihood = torch.tensor(
        [[-3.0, -1.0, -2.0, -4.0], [-900.0, -901.0, -905.0, -2000.0]], dtype=torch.float64
    )
    weights = log_importance_weights(likelihood, z, mean, logvar)
    for b in range(2):
        for k in range(4):
            prior = Normal(0.0, 1.0).log_prob(z[b, k]).sum()
            posterior = Normal(mean[b], torch.exp(0.5 * logvar[b])).log_prob(z[b, k]).sum()
            assert weights[b, k].item() == pytest.approx(
                (likelihood[b, k] + prior - posterior).item(), rel=1e-12
            )
    bound = importance_weighted_bound(likelihood)
    assert bound[0].item() == pytest.approx(math.log(sum(math.exp(v) for v in (-3, -1, -2, -4)) / 4))
    # exp(-900) is 0 in any precision: the mean must be taken without leaving the logarithm
    assert bound[1].item() == pytest.approx(-900 + math.log((1 + math.exp(-1) + math.exp(-5)) / 4))


# ---- the tutorials' variant: no KL term, and a spread that is half the mean, exponentiated -----------------


def test_the_spread_has_a_head_of_its_own() -> None:
    net, x = module(), images()
    mean, logvar = net.posterior(x)
    with torch.no_grad():
        net.to_logvar.bias += 1.0
    mean_after, logvar_after = net.posterior(x)
    assert torch.equal(mean, mean_after) and torch.allclose(logvar_after, logvar + 1)
    with torch.no_grad():
        net.to_mean.bias += 1.0
    assert torch.equal(net.posterior(x)[1], logvar_after)
    assert not torch.allclose(mean, logvar)


def test_z_is_spread_by_the_posterior_and_not_by_the_mean() -> None:
    net = module()
    seen: list[Tensor] = []
    net.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for layer, bias in (
            (net.to_mean, (5.0, 0.0, -5.0)),
            (net.to_logvar, (0.0, 2 * math.log(3.0), 2 * math.log(0.1))),
        ):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    torch.manual_seed(0)
    net.losses({"input": torch.rand(20_000, 1, 4, 4)})
    torch.testing.assert_close(seen[0].mean(0), torch.tensor([5.0, 0.0, -5.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(seen[0].std(0), torch.tensor([1.0, 3.0, 0.1]), atol=0, rtol=0.03)


def test_the_kl_term_pulls_the_posterior_to_the_prior() -> None:
    """Its gradient: the mean towards 0, the log-variance towards 0 from either side; without the term both
    would be 0.
    """
    net = module(beta=1000.0)
    with torch.no_grad():
        for layer, bias in ((net.to_mean, (2.0, -2.0, 0.0)), (net.to_logvar, (1.0, -1.0, 0.0))):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    torch.manual_seed(0)
    net.losses({"input": images()})["loss"].backward()
    assert net.to_mean.bias.grad is not None and net.to_logvar.bias.grad is not None
    torch.testing.assert_close(
        net.to_mean.bias.grad / 1000, torch.tensor([2.0, -2.0, 0.0]), atol=0.02, rtol=0
    )
    expected = torch.tensor([math.exp(1) - 1, math.exp(-1) - 1, 0.0]) / 2
    torch.testing.assert_close(net.to_logvar.bias.grad / 1000, expected, atol=0.02, rtol=0)


def test_without_reconstruction_the_posterior_becomes_the_prior() -> None:
    """Of images without anything to tell (all alike) nothing is worth encoding: all latents go unused."""
    net = module()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    x = torch.full((64, 1, 4, 4), 0.5)
    torch.manual_seed(0)
    for _ in range(120):
        optimizer.zero_grad()
        net.losses({"input": x})["loss"].backward()
        optimizer.step()
    terms = net.eval().losses({"input": x})
    assert terms["kl"] < 0.02 and terms["active_latents"] == 0
    assert terms["reconstruction"].item() == pytest.approx(16 * math.log(2), abs=0.1)


# ---- what is logged, and what is used afterwards -----------------------------------------------------------


def test_latents_are_drawn_at_validation_too_but_not_for_features_and_reconstructions() -> None:
    """Evaluated at the mean it is not a lower bound, and too good. Shown and probed values have no noise."""
    net, x = module().eval(), images()
    torch.manual_seed(0)
    first, second = (net.losses({"input": x})["elbo"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(net.embed(x), net.encoder(x))
    expected = net.decoder(net.posterior(x)[0]).sigmoid()
    assert torch.equal(net.reconstruct({"input": x}), expected) and torch.equal(
        net.reconstruct({"input": x}), expected
    )


def test_validation_logs_which_latents_are_used() -> None:
    net = module().eval()
    with torch.no_grad():
        net.to_mean.weight.zero_()
        net.to_logvar.weight.zero_()
        net.to_logvar.bias.zero_()
        net.to_mean.bias.copy_(
            torch.tensor([0.0, 2.0, 0.0])
        )  # a constant is no information, though its KL is 2 nats
        net.to_mean.weight[2] = 100 * torch.randn(12)
    terms = net.losses({"input": images()})
    assert terms["active_latents"] == 1 and terms["kl_least_used"] == 0 and terms["kl_most_used"] >= 2
    assert "active_latents" not in net.train().losses({"input": images()})


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_an_exploding_log_variance_is_clamped_and_counted(extreme: float) -> None:
    net = module()
    with torch.no_grad():
        net.to_logvar.weight.zero_()
        net.to_logvar.bias.copy_(torch.tensor([extreme, 0.0, 0.0]))
    torch.manual_seed(0)
    terms = net.losses({"input": images()})
    terms["loss"].backward()
    assert all(v.isfinite() for v in terms.values())
    assert terms["logvar_clamped"].item() == pytest.approx(1 / 3)
    low, high = net.posterior(images())[1].aminmax()
    assert low >= LOGVAR_RANGE[0] and high <= LOGVAR_RANGE[1]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert module().losses({"input": images()})["logvar_clamped"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_likelihoods_in_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    decoded = torch.full((2, 3, 128, 128), 30.0, dtype=dtype)
    x = torch.zeros_like(decoded)
    for value in (bernoulli_log_likelihood(decoded, x), gaussian_log_likelihood(decoded, x)):
        assert value.dtype == torch.float32 and value.isfinite().all()
    assert bernoulli_log_likelihood(decoded, x)[0].item() == pytest.approx(
        -30.0 * decoded[0].numel(), rel=1e-3
    )


def test_halves_of_a_batch_average_to_the_whole() -> None:
    net, x, noise = module(), images(4), torch.randn(4, 3)
    losses = []
    for rows in (slice(0, 2), slice(2, 4), slice(0, 4)):
        net.randn = lambda *size, rows=rows: noise[rows]  # type: ignore[method-assign]
        losses.append(net.losses({"input": x[rows]})["loss"])
    torch.testing.assert_close((losses[0] + losses[1]) / 2, losses[2])


def test_samples_come_from_the_prior_and_are_images() -> None:
    net = module().eval()
    seen: list[Tensor] = []
    net.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    samples = net.sample(5000)
    assert (
        samples.shape == (5000, 1, 4, 4)
        and samples.min() >= 0
        and samples.max() <= 1
        and not samples.requires_grad
    )
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(3), atol=0.06, rtol=0)
    torch.testing.assert_close(seen[0].std(0), torch.ones(3), atol=0.04, rtol=0)
    unbounded = module(likelihood="gaussian").eval()
    torch.manual_seed(0)
    assert torch.equal(samples, unbounded.sample(5000).sigmoid())


def test_interpolation_runs_from_each_image_to_the_next() -> None:
    net, x = module().eval(), images()
    rows = net.interpolate(x, 4)
    assert rows.shape == (5, 4, 1, 4, 4)
    ends = net.reconstruct({"input": x})
    torch.testing.assert_close(rows[:, 0], ends)
    torch.testing.assert_close(rows[:, -1], ends.roll(-1, 0))
    mean, _ = net.posterior(x)
    third = net.decoder(mean[:1] + (mean[1:2] - mean[:1]) / 3).sigmoid()
    torch.testing.assert_close(rows[0, 1], third[0])


# ---- refusals ----------------------------------------------------------------------------------------------


def test_pixels_outside_of_0_to_1_are_refused_before_training(tmp_path: Any) -> None:
    """Their cross entropy has no lower bound: the loss falls and means nothing."""
    from datamodules import Digits
    from tests.conftest import trainer_for

    def net(likelihood: Any) -> VAE:
        return VAE(MLPEncoder(64, (8,)), MLPDecoder(3, (8,), 8), 3, likelihood=likelihood, optimizer=sgd)

    said = r"likelihood 'bernoulli' needs pixels in \[0, 1\], got input from -0.81 to .*: "
    said += "set data.mean to 0 and data.std to 1"
    with pytest.raises(ValueError, match=said):
        trainer_for(tmp_path, max_steps=1, limit_val_batches=0).fit(net("bernoulli"), Digits())
    trainer_for(tmp_path, max_steps=1, limit_val_batches=0).fit(
        net("bernoulli"), Digits(mean=(0.0,), std=(1.0,))
    )
    trainer_for(tmp_path, max_steps=1, limit_val_batches=0).fit(net("gaussian"), Digits())


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("latent_dim", 0),
        ("latent_dim", 4),
        ("beta", -0.5),
        ("beta", float("nan")),
        ("likelihood", "poisson"),
        ("gaussian_std", 0.0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module(**{knob: value})


def test_a_decoder_of_another_size_is_refused() -> None:
    net = VAE(MLPEncoder(16, (12,)), MLPDecoder(3, (12,), 1), latent_dim=3, optimizer=sgd)
    for likelihood in ("bernoulli", "gaussian"):
        net.likelihood = likelihood  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"the decoder gives \(1, 1, 1\) for images of \(1, 4, 4\)"):
            net.losses({"input": images()})
