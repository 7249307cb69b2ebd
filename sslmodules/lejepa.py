"""LeJEPA (Balestriero & LeCun 2025, https://arxiv.org/abs/2511.08544).

All views of an image are pulled to the mean of its global views, and the embeddings of each view are made to
look like an isotropic Gaussian: along random directions, one-dimensional projections of the batch are
compared with N(0, 1) by the Epps-Pulley statistic (SIGReg, sketched isotropic Gaussian regularization). No
teacher, no stop-gradient, no schedule.

Differs from the paper: directions come from the run's seed and the step, not from the step alone. As in the
paper's code, and unlike its formula, the squared distance is averaged over dimensions, not summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from datamodules.base import Batch
from datamodules.checks import check, check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from datamodules.seeding import mix_seed, run_seed
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder


def random_directions(dim: int, slices: int, seed: int, device: torch.device) -> Tensor:
    """Directions drawn uniformly from the unit sphere, from a separate generator.

    Args:
        dim: D.
        slices: number M of directions.
        seed: the same on all ranks, and different at every step.
        device: device of the result.

    Returns:
        (D, M) float32, columns of length 1.
    """
    directions = torch.randn(dim, slices, generator=torch.Generator(device).manual_seed(seed), device=device)
    return directions / directions.norm(dim=0)


def sigreg(
    z: Tensor,
    directions: Tensor,
    t_max: float = 5.0,
    points: int = 17,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Sketched isotropic Gaussian regularization (Balestriero & LeCun 2025), by the Epps-Pulley statistic.

    For each view v and direction a, with phi(t) = 1/N sum_n exp(i t a.z_vn) over the N samples of the global
    batch::

        T(v, a) = N * integral over [-t_max, t_max] of |phi(t) - exp(-t^2 / 2)|^2 * exp(-t^2 / 2) dt

    by the trapezoidal rule. The result is the mean over views and directions: every view is tested
    separately, since the views of one image are not independent samples.

    Args:
        z: (V, B, D) embeddings of each view.
        directions: (D, M) unit columns, the same on all ranks.
        t_max: end of the integral, > 0; 5 in the paper.
        points: quadrature points on [-t_max, t_max]; odd, 17 in the paper.
        gather: (1, ...) of this rank to (W, ...) of all ranks, with gradients. All ranks have the same B.

    Returns:
        Scalar in float32 or better; on all ranks equal to the single-process value of the joined batch.

    Raises:
        ValueError: ``t_max`` or ``points`` is invalid.
    """
    check_quadrature(t_max, points)
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z)
        # The integrand is even: the points of [0, t_max] with doubled weights give the rule on the whole
        # interval.
        t = torch.linspace(0, t_max, points // 2 + 1, device=z.device, dtype=z.dtype)  # (T,)
        target = (-t.square() / 2).exp()  # the characteristic function of N(0, 1), and the window
        angle = (z @ directions.to(z.dtype))[..., None] * t  # (V, B, M, T)
        # real and imaginary part of phi; all ranks have the same number of samples, so the mean of their
        # means is the mean
        everyone = gather(torch.stack([angle.cos().mean(1), angle.sin().mean(1)])[None])  # (W, 2, V, M, T)
        real, imaginary = everyone.mean(0)  # (V, M, T) each
        samples = len(everyone) * z.shape[1]
        integrand = ((real - target).square() + imaginary.square()) * target
        return samples * 2 * torch.trapezoid(integrand, t).mean()


def check_quadrature(t_max: float, points: int) -> None:
    check_positive(t_max=t_max)
    check(points >= 3 and points % 2 == 1, "points", "odd and at least 3", points)


def prediction_loss(z: Tensor, num_global: int = 2) -> Tensor:
    """Mean squared distance of ALL views to the mean of the global views (Balestriero & LeCun 2025).

    Args:
        z: (V, B, D) embeddings of each view, global ones first.
        num_global: number of global views.

    Returns:
        Scalar in float32 or better, the mean over views, samples and dimensions.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z)
        return (z - z[:num_global].mean(0)).square().mean()


class LeJEPA(SSLModule):
    """LeJEPA: (1 - lambda) * prediction of the global views + lambda * SIGReg, both over all views.

    Args:
        encoder: (B, C, H, W) -> (B, num_features), for all view sizes.
        sigreg_weight: lambda in [0, 1); 0.05 is the paper's recommendation.
        num_global: number of global views, which come first.
        slices: number of random directions, redrawn at each step; the paper recommends 1024.
        t_max: end of the integral of ``sigreg``.
        points: quadrature points on [-t_max, t_max]; odd.
        projector_hidden: width of the projector's hidden layers; this and the next two as in the authors'
            minimal example.
        projector_out: width D of the embeddings z.
        projector_layers: linear layers of the projector, batch norm and ReLU between them.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)

    def __init__(
        self,
        encoder: Encoder,
        sigreg_weight: float = 0.05,
        num_global: int = 2,
        slices: int = 1024,
        t_max: float = 5.0,
        points: int = 17,
        projector_hidden: int = 2048,
        projector_out: int = 128,
        projector_layers: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within(0, 1, "[)", sigreg_weight=sigreg_weight)
        check_at_least(
            1,
            num_global=num_global,
            slices=slices,
            projector_hidden=projector_hidden,
            projector_out=projector_out,
            projector_layers=projector_layers,
        )
        check_quadrature(t_max, points)
        self.encoder = encoder
        widths = [encoder.num_features, *[projector_hidden] * (projector_layers - 1), projector_out]
        self.projector = mlp(widths)
        self.sigreg_weight, self.num_global = sigreg_weight, num_global
        self.slices, self.t_max, self.points = slices, t_max, points

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if len(batch["views"]) < self.num_global:
            raise ConfigError(
                f"num_global is {self.num_global}, but data.views makes {len(batch['views'])} views"
            )

    def project(self, views: Sequence[Tensor]) -> Tensor:
        """V views (B, C, h, w) -> (V, B, D); views of the same size go through the encoder in one pass."""
        passes = [torch.cat(list(same)) for _, same in groupby(views, key=lambda view: view.shape)]
        z = self.projector(torch.cat([self.encoder(x) for x in passes]))  # (V * B, D)
        return z.view(len(views), -1, z.shape[1])

    def directions(self, dim: int, device: torch.device) -> Tensor:
        """The directions of this step, (dim, slices): the same on every rank, unlike draws of ``randn``.

        Always the same in evaluation, so that the loss curve reflects the model and not the draw.
        """
        step = self.global_step if self.training else -1
        return random_directions(dim, self.slices, mix_seed(run_seed(), step + 1), device)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z = self.project(batch["views"])  # (V, B, D)
        directions = self.directions(z.shape[2], z.device)
        prediction = prediction_loss(z, self.num_global)
        gaussianity = sigreg(z, directions, self.t_max, self.points, lambda x: self.gather(x).rows)
        loss = (1 - self.sigreg_weight) * prediction + self.sigreg_weight * gaussianity
        return {"loss": loss, "prediction": prediction, "sigreg": gaussianity}
