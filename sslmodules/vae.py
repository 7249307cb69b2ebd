"""VAE (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114).

For each image, an encoder gives a normal distribution over latents, with its own mean AND variance; a decoder
gives a distribution over images for a latent drawn from it. Both maximize a lower bound (ELBO) of the images'
log-likelihood. ``beta`` other than 1 is the beta-VAE (Higgins et al. 2017).

Differs from the paper: the log-variance is clamped, to a range that only a diverging run reaches.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check, check_at_least, check_one_of, check_positive
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.decoder import Decoder
from sslmodules.networks.encoder import Encoder, require

#: Range of log sigma^2: standard deviations from 0.00005 to 148 (the prior's is 1).
LOGVAR_RANGE = (-20.0, 10.0)
LOG_2PI = math.log(2 * math.pi)
ACTIVE = 0.01  # minimum variance of a latent's mean over images to count as used (Burda et al. 2016)


def kl_per_dimension(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats (Kingma and Welling 2013, appendix B).

    Args:
        mean: (B, L).
        logvar: (B, L), log sigma^2.

    Returns:
        (B, L), each >= 0: (mean^2 + sigma^2 - 1 - log sigma^2) / 2. Summed over L, it is an image's KL term.
    """
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) in nats of independent Bernoulli values; the usual cross entropy for gray values in [0, 1].
    Args:
        logits: (B, ...) before the sigmoid.
        x: (B, ...) in [0, 1]. Outside that range the sum is unbounded.

    Returns:
        (B,), the SUM over the values of an image.
    """
    _same_shape(logits, x)
    return (
        -F.binary_cross_entropy_with_logits(full_precision(logits), full_precision(x), reduction="none")
        .flatten(1)
        .sum(1)
    )


def gaussian_log_likelihood(mean: Tensor, x: Tensor, std: float = 1.0) -> Tensor:
    """log p(x|z) in nats of independent normal values, with the constant: log density per unit of ``x``.

    Args:
        mean: (B, ...).
        x: (B, ...).
        std: standard deviation of every value, > 0.

    Returns:
        (B,), the SUM over the values of an image.
    """
    _same_shape(mean, x)
    z = (full_precision(x) - full_precision(mean)).flatten(1) / std
    return -0.5 * (z.square() + (LOG_2PI + 2 * math.log(std))).sum(1)


def log_importance_weights(log_likelihood: Tensor, z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log of p(x|z) p(z) / q(z|x) for latents drawn from q.

    Args:
        log_likelihood: (B, K) log p(x|z) in nats.
        z: (B, K, L) drawn from N(mean, exp(logvar)).
        mean, logvar: (B, L) of q(z|x).

    Returns:
        (B, K). The mean over K is an estimate of the ELBO.
    """
    prior = -0.5 * (z.square() + LOG_2PI).sum(-1)
    deviation = (z - mean[:, None]).square() * torch.exp(-logvar)[:, None]
    posterior = -0.5 * (deviation + logvar[:, None] + LOG_2PI).sum(-1)
    return log_likelihood + prior - posterior


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """Lower bound of log p(x) in nats from K draws (Burda et al. 2016, https://arxiv.org/abs/1509.00519).

    Args:
        log_weights: (B, K), of ``log_importance_weights``.

    Returns:
        (B,): log of the mean weight. K = 1 is an ELBO estimate; in expectation it increases with K.
    """
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


def _same_shape(decoded: Tensor, x: Tensor) -> None:
    if decoded.shape != x.shape:
        raise ConfigError(f"the decoder gives {tuple(decoded.shape[1:])} for images of {tuple(x.shape[1:])}")


class VAE(SSLModule):
    """VAE: variational autoencoder; all terms are in nats per image.

    Args:
        encoder: (B, C, H, W) -> (B, num_features), the features; two linear layers on them give mean and
            log-variance.
        decoder: (B, latent_dim) -> (B, C, H, W), unbounded: logits or means, depending on ``likelihood``.
        latent_dim: number L of latents.
        beta: weight of the KL term, >= 0; 1 gives the lower bound.
        likelihood: ``bernoulli`` models pixels in [0, 1], which ``data.mean`` 0 and ``data.std`` 1 leave
            unchanged; ``gaussian`` models ``input`` in its own units.
        gaussian_std: standard deviation of the Gaussian likelihood, in units of ``input``. Smaller values
            reduce the influence of the KL term.
        **kwargs: ``SSLModule``'s.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        latent_dim: int = 20,
        beta: float = 1.0,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        gaussian_std: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(decoder, Decoder, "decoder")
        check_at_least(1, latent_dim=latent_dim)
        takes = decoder.in_features
        check(latent_dim == takes, "latent_dim", f"the decoder's in_features ({takes})", latent_dim)
        check_at_least(0, beta=beta)
        check_one_of(("bernoulli", "gaussian"), likelihood=likelihood)
        check_positive(gaussian_std=gaussian_std)
        width = encoder.num_features
        self.encoder, self.decoder = encoder, decoder
        self.to_mean, self.to_logvar = nn.Linear(width, latent_dim), nn.Linear(width, latent_dim)
        self.latent_dim, self.beta, self.likelihood, self.gaussian_std = (
            latent_dim,
            beta,
            likelihood,
            gaussian_std,
        )

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        x = batch["input"]
        # only before the first step: it makes the host wait for the device
        if self.likelihood == "bernoulli" and self.global_step == 0 and not bool(((x >= 0) & (x <= 1)).all()):
            raise ConfigError(
                f"likelihood 'bernoulli' needs pixels in [0, 1], got input from {x.min():.2f} to "
                f"{x.max():.2f}: set data.mean to 0 and data.std to 1 for each channel, or likelihood to "
                "gaussian"
            )

    # ---- the model -----------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, L) in float32 or better."""
        h = self.encoder(x)
        mean, logvar = full_precision(self.to_mean(h)), full_precision(self.to_logvar(h))
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """(B, L) -> (B, C, H, W): logits (Bernoulli) or means (Gaussian)."""
        return self.decoder(z.to(self.to_mean.weight.dtype))

    def log_likelihood(self, decoded: Tensor, x: Tensor) -> Tensor:
        """(B,) log p(x|z) in nats, from the output of ``decode``."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(decoded, x)
        return gaussian_log_likelihood(decoded, x, self.gaussian_std)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Minus the ELBO; latents are drawn in validation too, otherwise this is not a lower bound."""
        x = batch["input"]
        mean, logvar = self.posterior(x)
        z = mean + torch.exp(0.5 * logvar) * self.randn(*mean.shape)
        reconstruction = -self.log_likelihood(self.decode(z), x).mean()
        per_dimension = kl_per_dimension(mean, logvar).mean(0)  # (L,)
        kl = per_dimension.sum()
        low, high = LOGVAR_RANGE
        terms = {
            "loss": reconstruction + self.beta * kl,
            "elbo": -(reconstruction + kl),
            "reconstruction": reconstruction,
            "kl": kl,
            "logvar_clamped": ((logvar <= low) | (logvar >= high)).float().mean(),
        }
        if not self.training:  # are all latents used, or has the posterior of some collapsed to the prior?
            terms["active_latents"] = (mean.var(0, correction=0) > ACTIVE).float().sum()
            terms["kl_least_used"], terms["kl_most_used"] = per_dimension.min(), per_dimension.max()
        return terms

    # ---- for use -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """(B, K) log importance weights of K latents per image, drawn from q(z|x).

        Args:
            x: (B, C, H, W), as ``input``.
            num_samples: K >= 1.
        """
        mean, logvar = self.posterior(x)
        z = mean[:, None] + torch.exp(0.5 * logvar)[:, None] * self.randn(
            len(x), num_samples, self.latent_dim
        )
        repeated = x.repeat_interleave(num_samples, 0)  # (B * K, C, H, W)
        likelihood = self.log_likelihood(self.decode(z.flatten(0, 1)), repeated).view(len(x), num_samples)
        return log_importance_weights(likelihood, z, mean, logvar)

    def to_image(self, decoded: Tensor) -> Tensor:
        """Expected image in units of ``input``, from the output of ``decode``."""
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """(n, C, H, W) new images in units of ``input``: expected images of latents drawn from the prior."""
        return self.to_image(self.decode(self.randn(n, self.latent_dim)))

    @torch.no_grad()
    def interpolate(self, x: Tensor, steps: int) -> Tensor:
        """(B, C, H, W) -> (B, steps, C, H, W): from each image to the next, and from the last to the first.

        The path is a straight line between the means of their latents.
        """
        mean, _ = self.posterior(x)
        share = torch.linspace(0, 1, steps, device=x.device)[:, None]  # (steps, 1)
        z = torch.lerp(mean[:, None], mean.roll(-1, 0)[:, None], share)  # (B, steps, L)
        return self.to_image(self.decode(z.flatten(0, 1))).unflatten(0, (len(x), steps))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) expected image of the mean latent, in units of ``input``."""
        return self.to_image(self.decode(self.posterior(batch["input"])[0]))
