"""VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

The projections of the views of an image are pulled together; a hinge on the standard deviation over the batch
keeps each dimension from collapsing, and all pairs of dimensions are decorrelated. No normalization of the
projections, no negatives, no teacher.

Of the three conventions in use, this is the official code's: the invariance is the mean over samples AND
dimensions, the variance term is HALF the sum over both views, the covariance term is the sum over both views.
The paper's text sums the squared distance over dimensions and the variance over the views; solo-learn uses
the mean and the sum. Weights cannot be exchanged between them.

More than two views are compared as in the same authors' VICRegL (https://arxiv.org/abs/2210.01571), official
code main_vicregl.py: every view with each of the first two, the global ones. Variance and covariance are
means over the views there; here the covariance is twice the mean, which for two views is VICReg's sum.

Differs from the official code: the covariance is divided by the actual batch size minus one, which matters
for an incomplete batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least
from sslmodules.barlow_twins import off_diagonal
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder


def variance_term(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Hinge on the standard deviation of each dimension: mean_j max(0, gamma - sqrt(Var(z_j) + eps)).

    Args:
        z: (N, D) projections of one view of the global batch, in float32 or better.
        gamma: standard deviation to reach; 1 in the paper.
        eps: added to the variance inside the root to keep the gradient finite at variance 0; 1e-4 in the
            paper.

    Returns:
        Scalar in [0, gamma]. The variance is the unbiased one (a batch of one sample has variance 0).
    """
    variance = z.var(0, correction=min(1, len(z) - 1))  # (D,)
    return F.relu(gamma - (variance + eps).sqrt()).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal elements of the covariance matrix, divided by D.

    Args:
        z: (N, D) projections of one view of the global batch, in float32 or better.

    Returns:
        Scalar. The covariance is the unbiased one, divided by N - 1.
    """
    z = z - z.mean(0)
    covariance = z.T @ z / max(1, len(z) - 1)  # (D, D)
    return off_diagonal(covariance).square().sum() / z.shape[1]


def vicreg_loss(
    z: Sequence[Tensor],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    gathered: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Variance, invariance and covariance (Bardes et al. 2022), in the official code's convention::

        L = lambda * mean_nj (z1 - z2)^2 + mu * (v(z1) + v(z2)) / 2 + nu * (c(z1) + c(z2))

    with v as in ``variance_term`` and c as in ``covariance_term``. For V views, the first term is the mean
    over the 2 (V - 1) pairs of one of the first two views and another view, the second the mean over the
    views, the third twice the mean.

    Args:
        z: V >= 2 projections (B, D), one for each view, global views first; row i of each is of the same
            image. Not normalized: unit vectors have a mean standard deviation of at most 1 / sqrt(D), which
            the hinge could never raise to 1.
        invariance_weight: lambda >= 0; 25 in the paper.
        variance_weight: mu >= 0; 25 in the paper.
        covariance_weight: nu >= 0; 1 in the paper.
        gathered: ``z`` of all ranks, each (W * B, D) with gradients; None = one process.

    Returns:
        ``loss`` and its three terms without weights, all scalars in float32 or better. The mean of ``loss``
        over ranks equals the single-process loss of the joined batch.

    Raises:
        ValueError: a weight is negative, or there are fewer than two views.
    """
    check_weights(invariance_weight, variance_weight, covariance_weight)
    check_at_least(2, views=len(z))
    with torch.autocast(z[0].device.type, enabled=False):
        z = [full_precision(view) for view in z]
        everyone = z if gathered is None else [full_precision(view) for view in gathered]
        # the pair of the first two views counts twice: each of them is the other's partner
        distances = [2 * F.mse_loss(z[0], z[1])]
        distances += [F.mse_loss(first, other) for first in z[:2] for other in z[2:]]
        invariance = torch.stack(distances).sum() / (2 * (len(z) - 1))
        variance = torch.stack([variance_term(view) for view in everyone]).mean()
        covariance = 2 * torch.stack([covariance_term(view) for view in everyone]).mean()
        loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


def check_weights(invariance_weight: float, variance_weight: float, covariance_weight: float) -> None:
    check_at_least(
        0,
        invariance_weight=invariance_weight,
        variance_weight=variance_weight,
        covariance_weight=covariance_weight,
    )


class VICReg(SSLModule):
    """VICReg: invariance to the views, with variance and covariance terms against collapse.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        invariance_weight: lambda of ``vicreg_loss``.
        variance_weight: mu of ``vicreg_loss``.
        covariance_weight: nu of ``vicreg_loss``.
        projector_hidden: width of the projector's (the paper's expander's) hidden layers.
        projector_out: width D of the projections z.
        projector_layers: linear layers of the projector, batch norm and ReLU between them; none after the
            last.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)

    def __init__(
        self,
        encoder: Encoder,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        projector_hidden: int = 8192,
        projector_out: int = 8192,
        projector_layers: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_weights(invariance_weight, variance_weight, covariance_weight)
        check_at_least(1, projector_hidden=projector_hidden, projector_layers=projector_layers)
        check_at_least(2, projector_out=projector_out)
        self.encoder = encoder
        widths = [encoder.num_features, *[projector_hidden] * (projector_layers - 1), projector_out]
        self.projector = mlp(widths, last_bias=False)
        self.weights = (invariance_weight, variance_weight, covariance_weight)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # one pass per view, as in the official code: the views' recipes differ, and so do their batch
        # statistics
        z = [self.projector(self.encoder(view)) for view in batch["views"]]  # V x (B, D)
        return vicreg_loss(z, *self.weights, gathered=[self.gather(view).rows for view in z])
