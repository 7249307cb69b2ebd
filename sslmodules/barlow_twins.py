"""Barlow Twins (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230).

The cross-correlation matrix between the projections of two views, computed over the batch, is driven to the
identity: the diagonal makes each dimension invariant to the views, the rest decorrelates the dimensions.

Differs from the official code: there, each process differentiates only its own share of the matrix, so with W
processes the averaged gradient is 1/W of the loss gradient; here it is the loss gradient for any W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.base import Batch
from datamodules.checks import check_at_least
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder


def off_diagonal(x: Tensor) -> Tensor:
    """The off-diagonal elements of a square matrix, row by row.

    Args:
        x: (D, D).

    Returns:
        (D * (D - 1),), a copy.

    Raises:
        ValueError: ``x`` is not square.
    """
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"off_diagonal needs a square matrix, got shape {tuple(x.shape)}")
    d = len(x)
    # without its last element the matrix is D - 1 rows of D + 1 elements, each starting on the diagonal
    return x.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-5) -> Tensor:
    """C_ij between dimension i of the first and dimension j of the second projections, over the batch.

    Each dimension is centered and divided by the square root of its biased variance plus ``eps``, like batch
    norm without scale and shift.

    Args:
        z1: (N, D) projections of the first views, in float32 or better.
        z2: (N, D) projections of the second views; row i is paired with row i of ``z1``.
        eps: added to the variance; 1e-5 in the official code (batch norm's default).

    Returns:
        (D, D), entries in [-1, 1].
    """
    z1, z2 = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (z1, z2))
    return z1.T @ z2 / len(z1)


def barlow_twins_loss(
    z1: Tensor, z2: Tensor, off_diagonal_weight: float = 0.0051
) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance plus redundancy reduction (Zbontar et al. 2021)::

        L = sum_i (1 - C_ii)^2 + lambda * sum_i sum_{j != i} C_ij^2

    Args:
        z1: (N, D) projections of the first views of the GLOBAL batch (its parts have different statistics).
        z2: (N, D) projections of the second views.
        off_diagonal_weight: lambda >= 0; 0.0051 in the paper.

    Returns:
        The loss and its two sums, the second without lambda: three scalars in float32 or better.

    Raises:
        ValueError: ``off_diagonal_weight`` is negative.
    """
    check_at_least(0, off_diagonal_weight=off_diagonal_weight)
    with torch.autocast(z1.device.type, enabled=False):
        c = cross_correlation(full_precision(z1), full_precision(z2))  # (D, D)
        invariance = (1 - c.diagonal()).square().sum()
        redundancy = off_diagonal(c).square().sum()
        return invariance + off_diagonal_weight * redundancy, invariance, redundancy


class BarlowTwins(SSLModule):
    """Barlow Twins: makes the cross-correlation of two views' projections the identity matrix.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        off_diagonal_weight: lambda of ``barlow_twins_loss``.
        projector_hidden: width of the projector's hidden layers.
        projector_out: width D of the projections z.
        projector_layers: linear layers of the projector, batch norm and ReLU between them.
        bias_lr: peak learning rate of biases and norms; None = the optimizer's, as for all other parameters.
            The official code uses 0.0048 next to 0.2 for weights, both times batch size / 256: with LARS the
            rate of weights is relative to their norm, that of biases is not.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)
    two_views = True

    def __init__(
        self,
        encoder: Encoder,
        off_diagonal_weight: float = 0.0051,
        projector_hidden: int = 8192,
        projector_out: int = 8192,
        projector_layers: int = 3,
        bias_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least(0, off_diagonal_weight=off_diagonal_weight, bias_lr=bias_lr)
        check_at_least(1, projector_hidden=projector_hidden, projector_layers=projector_layers)
        check_at_least(2, projector_out=projector_out)
        self.encoder = encoder
        widths = [encoder.num_features, *[projector_hidden] * (projector_layers - 1), projector_out]
        self.projector = mlp(widths, last_bias=False)
        self.off_diagonal_weight, self.bias_lr = off_diagonal_weight, bias_lr

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # one pass per view, as in the official code: the views' recipes differ, and so do their batch
        # statistics
        z1, z2 = (self.projector(self.encoder(view)) for view in batch["views"][:2])  # (B, D) each
        loss, invariance, redundancy = barlow_twins_loss(
            self.gather(z1).rows, self.gather(z2).rows, self.off_diagonal_weight
        )
        return {"loss": loss, "invariance": invariance, "redundancy": redundancy}

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.bias_lr is not None:
            for group in groups:
                if "weight_decay" in group:  # the group without weight decay: biases and norms
                    group["lr"] = self.bias_lr
        return groups
