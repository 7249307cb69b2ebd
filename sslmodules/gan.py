"""Generative adversarial network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661).
A generator makes images from noise, a discriminator distinguishes them from real ones, and they are trained
against each other, with DCGAN's networks. Features are the discriminator's last hidden layer.

Three losses: the paper's with the non-saturating generator (section 3), hinge (Lim and Ye 2017,
https://arxiv.org/abs/1705.02894), and the Wasserstein distance with a gradient penalty (WGAN-GP, Gulrajani et
al. 2017, https://arxiv.org/abs/1704.00028). The step is Algorithm 1 of Goodfellow et al.: the discriminator
is updated first, then the generator against the new discriminator, and each draws its own noise.

Differs from DCGAN's code: the discriminator's running batch-norm statistics come from real images only,
because features are computed on real images; the generator draws new noise for its step instead of reusing
the discriminator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_one_of, check_positive
from datamodules.errors import ConfigError
from runtime.lightning_internals import do_not_count_steps
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.dcgan import initialize
from sslmodules.networks.decoder import Generator
from sslmodules.networks.encoder import Encoder, require
from sslmodules.optim import decay_groups

Loss = Literal["non_saturating", "hinge", "wgan_gp"]
FIXED_LATENTS = 64


def discriminator_loss(real: Tensor, fake: Tensor, loss: Loss = "non_saturating") -> Tensor:
    """The discriminator's loss; sigmoid and logarithm are one stable function of the logit.

    ::

        non_saturating   mean -log sigmoid(real) + mean -log(1 - sigmoid(fake))   (ln 4 at chance)
        hinge            mean max(0, 1 - real) + mean max(0, 1 + fake)
        wgan_gp          mean fake - mean real   (plus ``gradient_penalty``)

    Args:
        real: (B,) logits of real samples, in any precision.
        fake: (B,) logits of generated ones.
        loss: which loss; the paper's is the default.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: an unknown loss.
    """
    check_loss(loss)
    with torch.autocast(real.device.type, enabled=False):
        real, fake = full_precision(real), full_precision(fake)
        if loss == "non_saturating":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        if loss == "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return fake.mean() - real.mean()


def generator_loss(fake: Tensor, loss: Loss = "non_saturating") -> Tensor:
    """The generator's loss: mean -log sigmoid(fake), or mean -fake for ``hinge`` and ``wgan_gp``.

    Not log(1 - sigmoid(fake)), whose gradient vanishes while the discriminator is confident (Goodfellow et
    al. 2014, section 3).

    Args:
        fake: (B,) logits of generated samples, in any precision.
        loss: which loss; the paper's is the default.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: an unknown loss.
    """
    check_loss(loss)
    with torch.autocast(fake.device.type, enabled=False):
        fake = full_precision(fake)
        return F.softplus(-fake).mean() if loss == "non_saturating" else -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor
) -> Tensor:
    """WGAN-GP's penalty: mean of (|grad critic(x)| - 1)^2 at random points between real and generated ones.

    The norm is per sample, over all its values. It is never computed in half precision, in which squares of
    small gradients underflow.

    Args:
        critic: (B, ...) -> (B,); row i must depend on sample i alone (no batch norm).
        real: (B, ...) real samples.
        fake: (B, ...) generated samples; the generator gets no gradient.
        epsilon: (B,) in [0, 1], the share of the real sample.

    Returns:
        Scalar, differentiable with respect to the critic's parameters.
    """
    with torch.autocast(real.device.type, enabled=False):
        epsilon = epsilon.to(real.dtype).view(-1, *[1] * (real.ndim - 1))
        between = (epsilon * real + (1 - epsilon) * fake.detach().to(real.dtype)).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)  # (B, ...)
        squares = full_precision(gradient).flatten(1).square().sum(1)
        # the square root has no derivative at 0: a critic that is flat somewhere would give NaN
        return ((squares + 1e-12).sqrt() - 1).square().mean()


def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """Variation among generated samples relative to real ones: about 1, and 0 after collapse.

    The standard deviation over the batch of each value, averaged over the values.

    Args:
        fake: (B, ...) generated samples.
        real: (B, ...) real ones.

    Returns:
        Scalar.
    """
    spread = [full_precision(x.detach()).std(0, unbiased=False).mean() for x in (fake, real)]
    return spread[0] / spread[1].clamp(min=1e-6)


def check_loss(loss: str) -> None:
    check_one_of(get_args(Loss), loss=loss)


def without_trace(net: nn.Module, x: Tensor, frozen: bool) -> Tensor:
    """``net(x)`` without changes of its buffers (running statistics); if ``frozen``, without gradients."""
    state = {name: buffer.clone() for name, buffer in net.named_buffers()}
    if frozen:
        state |= {name: parameter.detach() for name, parameter in net.named_parameters()}
    return functional_call(net, state, (x,))


class GAN(SSLModule):
    """GAN: a generator against a discriminator; two optimizers under manual optimization.

    A step is a discriminator step: ``global_step``, ``max_steps``, schedules and checkpoints count batches,
    as for every other method; generator steps do not count. The generator is updated in the same batch, or
    in every ``discriminator_steps``-th. Both optimizers are built from the same ``optimizer``.

    Args:
        encoder: the discriminator without its logit, (B, ...) -> (B, num_features).
        generator: (B, latent_dim) -> (B, ...) in standardized units, with an attribute ``latent_dim``.
        loss: loss of ``discriminator_loss`` and ``generator_loss``.
        penalty_weight: weight of the gradient penalty, for ``wgan_gp`` only; the paper's 10.
        discriminator_steps: discriminator steps per generator step; WGAN-GP's paper uses 5.
        clip_norm: maximum gradient norm of each network; None = no clipping.
        accumulate: process a batch in this many parts and add up their gradients, to save memory.
            The loss is that of the whole batch; statistics of batch norms are those of a part.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range, or ``wgan_gp`` with batch norm in the discriminator.
    """

    equal_buffers = ("fixed_z",)
    fixed_z: Tensor

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        loss: Loss = "non_saturating",
        penalty_weight: float = 10.0,
        discriminator_steps: int = 1,
        clip_norm: float | None = None,
        accumulate: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_loss(loss)
        check_at_least(0, penalty_weight=penalty_weight)
        check_at_least(1, discriminator_steps=discriminator_steps, accumulate=accumulate)
        check_positive(clip_norm=clip_norm)
        require(generator, Generator, "generator")
        if loss == "wgan_gp" and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules()
        ):
            raise ConfigError(
                "loss wgan_gp penalizes the gradient of each sample by itself, but batch norm in the encoder "
                "mixes samples: give DCGANDiscriminator norm: layer"
            )
        self.automatic_optimization = False
        self.encoder, self.generator, self.loss = encoder, generator, loss
        self.head = nn.Linear(encoder.num_features, 1)
        initialize(self.head)
        self.latent_dim = generator.latent_dim
        self.penalty_weight, self.discriminator_steps = penalty_weight, discriminator_steps
        self.clip_norm, self.accumulate = clip_norm, accumulate
        # the same for every run, so that images of two runs can be compared side by side
        fixed = torch.randn(FIXED_LATENTS, self.latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_z", fixed)

    # ---- the two players -----------------------------------------------------------------------------------

    def discriminator_terms(self, real: Tensor) -> dict[str, Tensor]:
        """Discriminator loss on real (B, ...) and as many generated samples, without generator gradient."""
        # not under no_grad: torch 2.6's autocast would cache copies of the weights that have no gradient in
        # the next pass
        fake = self.generator(self.randn(len(real), self.latent_dim)).detach()  # (B, ...)
        real_logits = self.head(self.encoder(real)).squeeze(1)  # (B,)
        fake_logits = self._logits(
            fake, frozen=False
        )  # a separate pass: real and generated samples have their own statistics
        loss = discriminator_loss(real_logits, fake_logits, self.loss)
        terms = {
            "real_score": real_logits.mean(),
            "fake_score": fake_logits.mean(),
            "diversity": diversity(fake, real),
        }
        if (
            self.loss == "wgan_gp" and torch.is_grad_enabled()
        ):  # there is no gradient to penalize during validation
            epsilon = self.rand(len(real))
            terms["penalty"] = gradient_penalty(lambda x: self._logits(x, frozen=False), real, fake, epsilon)
            loss = loss + self.penalty_weight * terms["penalty"]
        return {"discriminator": loss, **terms}

    def generator_terms(self, real: Tensor) -> dict[str, Tensor]:
        """Generator loss on as many samples as ``real`` has, without discriminator gradient."""
        fake = self.generator(self.randn(len(real), self.latent_dim))  # (B, ...)
        return {"generator": generator_loss(self._logits(fake, frozen=True), self.loss)}

    def _logits(self, x: Tensor, frozen: bool) -> Tensor:
        """The discriminator's (B,) logits of generated samples, without updating its running statistics."""
        return without_trace(self.head, without_trace(self.encoder, x, frozen), frozen).squeeze(1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses from the same weights. One backward pass gives each network its own gradient."""
        terms = self.discriminator_terms(batch["input"]) | self.generator_terms(batch["input"])
        return {"loss": terms["discriminator"] + terms["generator"], **terms}

    @torch.no_grad()
    def sample(self, n: int, z: Tensor | None = None) -> Tensor:
        """(n, ...) generated samples in standardized units.

        Args:
            n: number of samples; the first ``FIXED_LATENTS`` use the same noise in every call, the others
                new noise.
            z: (n, latent_dim) noise to use instead.
        """
        if z is None:
            z = self.fixed_z[:n]
            if n > len(z):
                z = torch.cat([z, self.randn(n - len(z), self.latent_dim).to(z)])
        return self.generator(z)

    # ---- manual optimization -------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [group for player in self._players() for group in decay_groups(player)]

    def _players(self) -> list[nn.Module]:
        """Discriminator and generator, in the order of their optimizers."""
        return [nn.ModuleList([self.encoder, self.head]), self.generator]

    def configure_optimizers(self) -> Any:
        factor, every = self.schedule(), self.discriminator_steps
        optimizers = [self.optimizer(decay_groups(player)) for player in self._players()]
        # the generator's k-th step is at step k * every of the run
        factors = [factor, lambda k: factor(k * every)]
        return optimizers, [LambdaLR(o, f) for o, f in zip(optimizers, factors, strict=True)]

    def configure_callbacks(self) -> list[Any]:
        """Add no callbacks, but reject two options before Lightning does without naming an alternative."""
        if clip := self.trainer.gradient_clip_val:
            raise ConfigError(
                f"trainer.gradient_clip_val {clip}: a GAN clips each network by itself: use "
                f"--model.clip_norm {clip}"
            )
        if (n := self.trainer.accumulate_grad_batches) > 1:
            raise ConfigError(
                f"trainer.accumulate_grad_batches {n}: a GAN splits its batches: use --model.accumulate {n} "
                f"and {n} times the "
                "--data.batch_size"
            )
        return []

    def check_batch(self, batch: Batch) -> None:
        """Also raise ValueError if the generator cannot produce such samples, by shape or range."""
        super().check_batch(batch)
        x = batch["input"]
        with torch.no_grad():
            made = without_trace(self.generator, self.fixed_z[:2].to(x), frozen=True)
        if made.shape[1:] != x.shape[1:]:
            raise ConfigError(
                f"the generator makes samples of shape {tuple(made.shape[1:])}, the data's are "
                f"{tuple(x.shape[1:])}: check its image_size and out_channels"
            )
        reach = self.generator.value_range()
        if reach is not None and ((x < reach[0] - 0.05).any() or (x > reach[1] + 0.05).any()):
            low, high = reach
            raise ConfigError(
                f"the generator's values are in {low.min().item():.2f} to {high.max().item():.2f}, the "
                f"data's in {x.min().item():.2f} to {x.max().item():.2f}: give it the data's mean and std"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.check_batch(batch)
        if self.trainer.world_size > 1:
            self.share_statistics()
        logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        discriminator, generator = optimizers
        do_not_count_steps(generator)  # otherwise a step of both players would count twice

        parts = batch["input"].chunk(self.accumulate)  # (B / accumulate, ...) each
        discriminator.zero_grad()
        terms = self._backward(self.discriminator_terms, parts, self.generator.parameters())
        discriminator.step()
        schedules[0].step()
        loss = terms["discriminator"]
        if self.global_step % self.discriminator_steps == 0:
            generator.zero_grad()
            # after the update: against the new discriminator, and with an unchanged scale of GradScaler
            terms |= self._backward(
                self.generator_terms, parts, [*self.encoder.parameters(), *self.head.parameters()]
            )
            generator.step()
            schedules[1].step()
            loss = terms["loss"] = loss + terms["generator"]
        if logged:
            self.log_dict({f"train/{k}": v for k, v in terms.items()})
        return loss

    def share_statistics(self) -> None:
        """Copy rank 0's batch-norm statistics to all ranks, as DDP does under automatic optimization."""
        norms = [part for part in self.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        statistics = [s for norm in norms for s in norm.buffers() if s.is_floating_point()]
        if statistics:
            together = torch.cat([s.flatten() for s in statistics])  # one message instead of two per layer
            torch.distributed.broadcast(together, 0)
            parts = together.split([s.numel() for s in statistics])
            torch._foreach_copy_(statistics, [p.view_as(s) for p, s in zip(parts, statistics, strict=True)])

    def _backward(
        self,
        player: Callable[[Tensor], dict[str, Tensor]],
        parts: Iterable[Tensor],
        others: Iterable[nn.Parameter],
    ) -> dict[str, Tensor]:
        """Accumulate gradients of a player's loss, its first term, over a batch's parts; terms of the
        batch.
        """
        parts, others = list(parts), [p for p in others if p.requires_grad]
        total = sum(map(len, parts))
        sums: dict[str, Tensor] = {}
        for part in parts:
            share = len(part) / total
            terms = player(part)
            loss = next(iter(terms.values())) * share
            if self.trainer.world_size > 1:  # in each backward, DDP waits for a gradient of every parameter
                loss = loss + 0.0 * torch.stack([p.sum() for p in others]).sum()
            self.manual_backward(loss)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value.detach() * share
        return sums

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called for both optimizers, after GradScaler has unscaled the gradients."""
        super().on_before_optimizer_step(optimizer)
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, self.clip_norm, "norm")
