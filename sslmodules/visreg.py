"""VISReg (Wu et al. 2026, https://arxiv.org/abs/2606.02572).

All views of an image are pulled to the mean of its global views, and the embeddings of each view are kept
centered, at unit scale and Gaussian in shape. Scale and shape are separate terms: shape is measured on
standardized embeddings, as the sliced Wasserstein distance to a normal distribution. No teacher, no
predictor, no schedule.

Differs from the paper: the embeddings of all processes are gathered before they are sorted, so that several
processes have the loss of one; in the paper each process sorts its own batch, which gives a different loss.
Directions come from the run's seed and the step, the same on every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_within
from datamodules.errors import ConfigError
from datamodules.seeding import mix_seed, run_seed
from sslmodules.base import SSLModule, full_precision
from sslmodules.lejepa import prediction_loss, random_directions
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder
from sslmodules.swav import encode_views

EPSILON = 1e-4  # added to the standard deviation before dividing by it


def center_term(z: Tensor) -> Tensor:
    """(Mean over the samples)^2: (V, N, D) -> scalar, the mean over views and dimensions."""
    return z.mean(1).square().mean()


def scale_term(z: Tensor) -> Tensor:
    """(1 - standard deviation over the samples)^2: (V, N, D) -> scalar, the mean over views and dimensions.

    The standard deviation is the biased one. The gradient does not vanish as it approaches 0.
    """
    return (1 - z.std(1, correction=0)).square().mean()


def shape_term(z: Tensor, directions: Tensor) -> Tensor:
    """Squared distance of standardized and sorted projections from normal quantiles (Wu et al. 2026).

    Along each direction the N samples of a view are sorted; the i-th of them should be the quantile of the
    standard normal distribution at i / (N + 1). No gradient reaches the standard deviation by which
    embeddings are divided: it belongs to ``scale_term``.

    Args:
        z: (V, N, D) embeddings of the GLOBAL batch, in float32 or better.
        directions: (D, M) unit columns.

    Returns:
        Scalar, the mean over views, samples and directions.
    """
    deviation = z.std(1, correction=0, keepdim=True).detach()
    standardized = (z - z.mean(1, keepdim=True)) / (deviation + EPSILON)
    ordered = (standardized @ directions.to(z.dtype)).sort(dim=1).values  # (V, N, M)
    n = z.shape[1]
    places = torch.arange(1, n + 1, device=z.device, dtype=z.dtype) / (n + 1)
    return (ordered - torch.special.ndtri(places)[:, None]).square().mean()


class VISReg(SSLModule):
    """VISReg: (1 - lambda) * prediction of the global views + lambda * (center + scale + shape).

    Args:
        encoder: (B, C, H, W) -> (B, num_features), for all view sizes.
        regularization_weight: lambda in [0, 1]; the paper uses 0.9 for ImageNet and 0.6 for small data. Not
            comparable to LeJEPA's lambda, whose regularizer has another scale.
        num_global: number of global views, which come first.
        slices: number M of random directions, redrawn at each step.
        projector_hidden: width of the projector's hidden layers; the defaults of this and the next two are
            the authors' for small data.
        projector_out: width D of the embeddings z.
        projector_layers: linear layers of the projector, batch norm and an activation between them.
        projector_gelu: GELU instead of ReLU, as the authors have it for ImageNet.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)

    def __init__(
        self,
        encoder: Encoder,
        regularization_weight: float = 0.9,
        num_global: int = 2,
        slices: int = 4096,
        projector_hidden: int = 2048,
        projector_out: int = 128,
        projector_layers: int = 3,
        projector_gelu: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within(0, 1, regularization_weight=regularization_weight)
        check_at_least(
            1,
            num_global=num_global,
            slices=slices,
            projector_hidden=projector_hidden,
            projector_out=projector_out,
            projector_layers=projector_layers,
        )
        self.encoder = encoder
        widths = [encoder.num_features, *[projector_hidden] * (projector_layers - 1), projector_out]
        self.projector = mlp(widths, activation=nn.GELU if projector_gelu else nn.ReLU)
        self.regularization_weight, self.num_global, self.slices = regularization_weight, num_global, slices

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if len(batch["views"]) < self.num_global:
            raise ConfigError(
                f"num_global is {self.num_global}, but data.views makes {len(batch['views'])} views"
            )

    def directions(self, dim: int, device: torch.device) -> Tensor:
        """The directions of this step, (dim, slices): equal on all ranks, and constant in evaluation."""
        step = self.global_step if self.training else -1
        return random_directions(dim, self.slices, mix_seed(run_seed(), step + 1), device)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        z = self.projector(encode_views(self.encoder, views)).unflatten(0, (len(views), -1))  # (V, B, D)
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z)
            prediction = prediction_loss(z, self.num_global)
            everyone = self.gather(z.transpose(0, 1)).rows.transpose(0, 1)  # (V, W * B, D)
            center, scale = center_term(everyone), scale_term(everyone)
            shape = shape_term(everyone, self.directions(z.shape[2], z.device))
            weight = self.regularization_weight
            loss = (1 - weight) * prediction + weight * (center + scale + shape)
        return {"loss": loss, "prediction": prediction, "center": center, "scale": scale, "shape": shape}
