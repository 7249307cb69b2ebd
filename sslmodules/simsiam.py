"""SimSiam (Chen & He 2020, https://arxiv.org/abs/2011.10566).

A predictor maps the projection of one view to that of the other, which is held fixed (stop-gradient). Neither
negatives nor a momentum copy are needed; without the stop-gradient the features collapse at once.

Differs from the official code: the layer before the projector's last batch norm has no bias, where the
official code has a frozen one, which the norm cancels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder
from sslmodules.optim import decay_groups


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """D(p, stopgrad(z)) = -cos(p, z), mean over the batch (Chen & He 2020).

    Args:
        prediction: (B, D) predictions p; any scale, normalized here, in float32 or better.
        target: (B, D) projections z of the other view; they get no gradient.

    Returns:
        Scalar in [-1, 1].
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return -F.cosine_similarity(full_precision(prediction), full_precision(target.detach()), dim=1).mean()


def spread(z: Tensor) -> Tensor:
    """The paper's collapse indicator: mean standard deviation of unit vectors over the batch, times sqrt(D).

    Args:
        z: (B, D) projections; any scale.

    Returns:
        Scalar: 0 = all rows point in the same direction, about 1 = spread over the sphere.
    """
    unit = F.normalize(full_precision(z.detach()), dim=1)
    return unit.std(0, correction=0).mean() * math.sqrt(z.shape[1])


def simsiam_heads(
    in_features: int, projector_hidden: int | None, projector_out: int, layers: int, predictor_hidden: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Projector, with batch norm after each layer, and predictor.

    Args:
        in_features: width of the features.
        projector_hidden: width of the projector's hidden layers; None = ``in_features``.
        projector_out: width of projections and predictions.
        layers: layers of the projector.
        predictor_hidden: width of the predictor's bottleneck.
    """
    check_at_least(
        1,
        projector_out=projector_out,
        projector_layers=layers,
        predictor_hidden=predictor_hidden,
        projector_hidden=projector_hidden,
    )
    widths = [in_features, *[projector_hidden or in_features] * (layers - 1), projector_out]
    projector = mlp(widths, last_norm=True, last_affine=False)
    return projector, mlp([projector_out, predictor_hidden, projector_out])


def groups_with_constant_predictor(encoder: nn.Module, projector: nn.Module, predictor: nn.Module) -> Any:
    """Groups for the optimizer; the predictor's have a constant learning rate."""
    rest = decay_groups(nn.Sequential(encoder, projector))
    return rest + [{**group, "constant_lr": True} for group in decay_groups(predictor)]


class SimSiam(SSLModule):
    """SimSiam: predict the projection of the other view, which gets no gradient.

    The predictor's learning rate is constant; warm-up and decay apply to the rest.

    Args:
        encoder: (B, C, H, W) -> (B, num_features). The paper's ResNets have ``zero_init_residual``.
        projector_hidden: width of the projector's hidden layers; None = ``encoder.num_features``, as in the
            official code.
        projector_out: width of projections and predictions.
        projector_layers: 3 as in the paper, 2 in its CIFAR-10 experiments.
        predictor_hidden: width of the predictor's bottleneck, a quarter of ``projector_out`` in the paper.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True  # through the batch norms of its heads
    batch_keys = ("views",)
    two_views = True

    def __init__(
        self,
        encoder: Encoder,
        projector_hidden: int | None = None,
        projector_out: int = 2048,
        projector_layers: int = 3,
        predictor_hidden: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.projector, self.predictor = simsiam_heads(
            encoder.num_features, projector_hidden, projector_out, projector_layers, predictor_hidden
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return groups_with_constant_predictor(self.encoder, self.projector, self.predictor)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # one view at a time, as in the official code: batch statistics are those of one view
        z1, z2 = (
            self.projector(self.encoder(view)) for view in batch["views"][:2]
        )  # (B, projector_out) each
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return {"loss": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, "z_spread": spread(z1)}
