"""Generative adversarial network (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661), with the networks
of DCGAN.

A generator makes images of noise, a discriminator tells them from real ones, and each learns against the
other. Features are those on which the discriminator decides.

Three losses: the paper's with the non-saturating generator (section 3), hinge (Lim and Ye 2017,
https://arxiv.org/abs/1705.02894), and the Wasserstein distance with a gradient penalty (WGAN-GP, Gulrajani et
al. 2017, https://arxiv.org/abs/1704.00028). The step is Algorithm 1 of Goodfellow et al.: the discriminator
learns first, the generator then learns against the new discriminator, and each draws noise of its own.

Differs from DCGAN's code: running statistics of the discriminator's batch norm are of real images only,
because features are taken of real images; the generator draws new noise for its step instead of using the
discriminator's again.
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
    """What the discriminator minimizes; sigmoid and logarithm are one stable function of the logit.

    ::

        non_saturating   mean -log sigmoid(real) + mean -log(1 - sigmoid(fake))   (ln 4 if it cannot tell)
        hinge            mean max(0, 1 - real) + mean max(0, 1 + fake)
        wgan_gp          mean fake - mean real   (plus ``gradient_penalty``)

    Args:
        real: (B,) logits of real samples, in any precision.
        fake: (B,) logits of generated ones.
        loss: which; the paper's first.

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
    """What the generator minimizes: mean -log sigmoid(fake), or mean -fake for ``hinge`` and ``wgan_gp``.

    Not log(1 - sigmoid(fake)), whose gradient vanishes while the discriminator is sure (Goodfellow et al.
    2014, section 3).

    Args:
        fake: (B,) logits of generated samples, in any precision.
        loss: which; the paper's first.

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
    """WGAN-GP's penalty: mean of (|grad critic(x)| - 1)^2 at random points between real and generated
    samples.

    The norm is taken per sample, over all its values. Never in half precision: squares of small gradients
    would vanish.

    Args:
        critic: (B, ...) -> (B,); row i must depend on sample i alone (no batch norm).
        real: (B, ...) real samples.
        fake: (B, ...) generated samples; no gradient flows to what made them.
        epsilon: (B,) in [0, 1], the share of the real sample.

    Returns:
        Scalar, differentiable with respect to the critic's parameters.
    """
    with torch.autocast(real.device.type, enabled=False):
        epsilon = epsilon.to(real.dtype).view(-1, *[1] * (real.ndim - 1))
        between = (epsilon * real + (1 - epsilon) * fake.detach().to(real.dtype)).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)  # (B, ...)
        squares = full_precision(gradient).flatten(1).square().sum(1)
        # the root of exactly 0 has no derivative: a critic that is flat somewhere would give NaN
        return ((squares + 1e-12).sqrt() - 1).square().mean()


def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """How much generated samples differ from each other, as a share of what real ones do: about 1, and 0 when
    collapsed.

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
    """``net(x)`` that moves no buffer of ``net`` (running statistics) and, if ``frozen``, gives its
    parameters no gradient.
    """
    state = {name: buffer.clone() for name, buffer in net.named_buffers()}
    if frozen:
        state |= {name: parameter.detach() for name, parameter in net.named_parameters()}
    return functional_call(net, state, (x,))


class GAN(SSLModule):
    """GAN: a generator and a discriminator against each other; two optimizers, stepped by hand.

    A step is a step of the discriminator: ``global_step``, ``max_steps``, schedules and checkpoints count
    batches as with every other method, and Lightning's count of the generator's steps is taken out. The
    generator steps in the same batch, or in every ``discriminator_steps``-th. Both optimizers are built from
    the one ``optimizer``.

    Args:
        encoder: the discriminator without its logit, (B, ...) -> (B, num_features).
        generator: (B, latent_dim) -> (B, ...) in standardized units, with an attribute ``latent_dim``.
        loss: of ``discriminator_loss`` and ``generator_loss``.
        penalty_weight: of the gradient penalty, for ``wgan_gp`` alone; the paper's 10.
        discriminator_steps: steps of the discriminator for one of the generator; WGAN-GP's paper takes 5.
        clip_norm: each network's gradient is scaled down to this norm at most; None = not at all.
        accumulate: a batch goes through the networks in so many parts whose gradients add up, to save memory.
            The loss is that of the whole batch; statistics of batch norms are those of a part.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: a knob is out of range, or ``wgan_gp`` with batch norm in the discriminator.
    """

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
                "loss wgan_gp penalizes the gradient of each sample by itself, and batch norm in the "
                "encoder mixes samples: "
                "give DCGANDiscriminator norm: layer"
            )
        self.automatic_optimization = False
        self.encoder, self.generator, self.loss = encoder, generator, loss
        self.head = nn.Linear(encoder.num_features, 1)
        initialize(self.head)
        self.latent_dim = generator.latent_dim
        self.penalty_weight, self.discriminator_steps = penalty_weight, discriminator_steps
        self.clip_norm, self.accumulate = clip_norm, accumulate
        # the same for every run, so that pictures of two runs can be laid side by side
        fixed = torch.randn(FIXED_LATENTS, self.latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_z", fixed)

    # ---- the two players -----------------------------------------------------------------------------------

    def discriminator_terms(self, real: Tensor) -> dict[str, Tensor]:
        """Loss of the discriminator on real (B, ...) and as many generated samples; no gradient reaches the
        generator.
        """
        # not under no_grad: torch 2.6's autocast keeps the weights' copies, which then have no gradient in
        # the next pass
        fake = self.generator(self.randn(len(real), self.latent_dim)).detach()  # (B, ...)
        real_logits = self.head(self.encoder(real)).squeeze(1)  # (B,)
        fake_logits = self._logits(
            fake, frozen=False
        )  # a pass of its own: real and generated have statistics of their own
        loss = discriminator_loss(real_logits, fake_logits, self.loss)
        terms = {
            "real_score": real_logits.mean(),
            "fake_score": fake_logits.mean(),
            "diversity": diversity(fake, real),
        }
        if (
            self.loss == "wgan_gp" and torch.is_grad_enabled()
        ):  # at validation there is no gradient to penalize
            epsilon = self.rand(len(real))
            terms["penalty"] = gradient_penalty(lambda x: self._logits(x, frozen=False), real, fake, epsilon)
            loss = loss + self.penalty_weight * terms["penalty"]
        return {"discriminator": loss, **terms}

    def generator_terms(self, real: Tensor) -> dict[str, Tensor]:
        """Loss of the generator on as many samples as ``real`` has; no gradient reaches the discriminator."""
        fake = self.generator(self.randn(len(real), self.latent_dim))  # (B, ...)
        return {"generator": generator_loss(self._logits(fake, frozen=True), self.loss)}

    def _logits(self, x: Tensor, frozen: bool) -> Tensor:
        """The discriminator's (B,) logits of samples that are not real: they move none of its running
        statistics.
        """
        return without_trace(self.head, without_trace(self.encoder, x, frozen), frozen).squeeze(1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses from the same weights. One backward of ``loss`` gives each network the gradient of its
        own loss.
        """
        terms = self.discriminator_terms(batch["input"]) | self.generator_terms(batch["input"])
        return {"loss": terms["discriminator"] + terms["generator"], **terms}

    @torch.no_grad()
    def sample(self, n: int, z: Tensor | None = None) -> Tensor:
        """(n, ...) generated samples in standardized units.

        Args:
            n: how many; the first ``FIXED_LATENTS`` come from noise that is the same in every call, the rest
                is drawn.
            z: (n, latent_dim) noise to use instead.
        """
        if z is None:
            z = self.fixed_z[:n]
            if n > len(z):
                z = torch.cat([z, self.randn(n - len(z), self.latent_dim).to(z)])
        return self.generator(z)

    # ---- optimization by hand ------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [group for player in self._players() for group in decay_groups(player)]

    def _players(self) -> list[nn.Module]:
        """Discriminator and generator, in the order of their optimizers."""
        return [nn.ModuleList([self.encoder, self.head]), self.generator]

    def configure_optimizers(self) -> Any:
        factor, every = self.schedule(), self.discriminator_steps
        optimizers = [self.optimizer(decay_groups(player)) for player in self._players()]
        # the generator's k-th step falls on the run's k * every-th
        factors = [factor, lambda k: factor(k * every)]
        return optimizers, [LambdaLR(o, f) for o, f in zip(optimizers, factors, strict=True)]

    def configure_callbacks(self) -> list[Any]:
        """Adds none: the first hook of a run, before Lightning refuses these two without a word on what to
        use instead.
        """
        if clip := self.trainer.gradient_clip_val:
            raise ConfigError(
                f"trainer.gradient_clip_val {clip}: a GAN clips each network by itself: use "
                f"--model.clip_norm {clip}"
            )
        if (n := self.trainer.accumulate_grad_batches) > 1:
            raise ConfigError(
                f"trainer.accumulate_grad_batches {n}: a GAN splits its batches: use --model.accumulate "
                f"{n} and {n} times the "
                "--data.batch_size"
            )
        return []

    def check_batch(self, batch: Batch) -> None:
        """Also ValueError where the generator cannot make such samples: another shape, or values out of its
        reach.
        """
        super().check_batch(batch)
        x = batch["input"]
        with torch.no_grad():
            made = without_trace(self.generator, self.fixed_z[:2].to(x), frozen=True)
        if made.shape[1:] != x.shape[1:]:
            raise ConfigError(
                f"the generator makes samples of shape {tuple(made.shape[1:])}, the data's are "
                f"{tuple(x.shape[1:])}: look at "
                "its image_size and out_channels"
            )
        reach = self.generator.value_range()
        if reach is not None and ((x < reach[0] - 0.05).any() or (x > reach[1] + 0.05).any()):
            low, high = reach
            raise ConfigError(
                f"the generator's values lie in {low.min().item():.2f} to {high.max().item():.2f}, the "
                "data's in "
                f"{x.min().item():.2f} to {x.max().item():.2f}: give it the mean and std of the data"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.check_batch(batch)
        self._share_statistics()
        logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        discriminator, generator = optimizers
        do_not_count_steps(generator)  # or a step of both players would count twice

        parts = batch["input"].chunk(self.accumulate)  # (B / accumulate, ...) each
        discriminator.zero_grad()
        terms = self._backward(self.discriminator_terms, parts, self.generator.parameters())
        discriminator.step()
        schedules[0].step()
        loss = terms["discriminator"]
        if self.global_step % self.discriminator_steps == 0:
            generator.zero_grad()
            # only now: against the discriminator as it has become; and GradScaler's scale does not change on
            # the way
            terms |= self._backward(
                self.generator_terms, parts, [*self.encoder.parameters(), *self.head.parameters()]
            )
            generator.step()
            schedules[1].step()
            loss = terms["loss"] = loss + terms["generator"]
        if logged:
            self.log_dict({f"train/{k}": v for k, v in terms.items()})
        return loss

    def _share_statistics(self) -> None:
        """Rank 0's batch-norm statistics on every rank, as DDP does it before each step unless optimization
        is by hand.
        """
        if self.trainer.world_size > 1:
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    for statistic in part.buffers():
                        torch.distributed.broadcast(statistic, 0)

    def _backward(
        self,
        player: Callable[[Tensor], dict[str, Tensor]],
        parts: Iterable[Tensor],
        others: Iterable[nn.Parameter],
    ) -> dict[str, Tensor]:
        """Gradients of a player's loss, its first term, over the parts of a batch; returns the terms of the
        whole batch.
        """
        parts, others = list(parts), [p for p in others if p.requires_grad]
        total = sum(map(len, parts))
        sums: dict[str, Tensor] = {}
        for part in parts:
            share = len(part) / total
            terms = player(part)
            loss = next(iter(terms.values())) * share
            if self.trainer.world_size > 1:  # DDP waits in each backward for a gradient of every parameter
                loss = loss + 0.0 * torch.stack([p.sum() for p in others]).sum()
            self.manual_backward(loss)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value.detach() * share
        return sums

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called for each of the two, with gradients that GradScaler has unscaled already."""
        super().on_before_optimizer_step(optimizer)
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, self.clip_norm, "norm")
