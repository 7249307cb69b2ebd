"""SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709).

Two augmented views of an image have to be identified as a pair among all other views of the batch. The
projector is discarded after training; features are the encoder's.

Differs from the official code: ``nt_xent`` is the paper's mean over 2N views, where the code sums the means
of both directions, which is twice as much; any optimizer can be used instead of LARS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import projection_mlp
from sslmodules.networks.encoder import Encoder


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.1,
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
) -> Tensor:
    """Normalized temperature-scaled cross entropy (Chen et al. 2020, Eq. 1), mean over the 2B local views.

    For view i with its positive j, among the 2N views of the global batch::

        l(i, j) = -log( exp(sim(i, j) / T) / sum_{k != i} exp(sim(i, k) / T) ),   sim = cosine similarity

    Args:
        z1: (B, D) projections of the first views; any scale, normalized here, in float32 or better.
        z2: (B, D) projections of the second views; row i is paired with row i of ``z1``.
        temperature: T > 0; the paper's best on ImageNet is 0.1, on CIFAR-10 0.5.
        gathered: ``z1`` and ``z2`` of all ranks, each (W * B, D) in rank order and with gradients; None = one
            process.
        offset: first row of ``gathered`` that belongs to this rank.

    Returns:
        Scalar. Its mean over ranks equals the single-process loss of the joined batch.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(z1.device.type, enabled=False):
        local = F.normalize(full_precision(torch.cat([z1, z2])), dim=1)  # (2B, D)
        everyone = (
            local if gathered is None else F.normalize(full_precision(torch.cat(gathered)), dim=1)
        )  # (2N, D)
        b, n = len(z1), len(everyone) // 2
        row = torch.arange(b, device=z1.device) + offset  # position among the N first views
        itself, positive = torch.cat([row, row + n]), torch.cat([row + n, row])
        logits = local @ everyone.T / temperature  # (2B, 2N)
        logits = logits.scatter(1, itself[:, None], float("-inf"))  # a view is not its own negative
        return F.cross_entropy(logits, positive)


class SimCLR(SSLModule):
    """SimCLR: contrast two views of an image with all other views of the global batch.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        temperature: temperature of ``nt_xent``.
        projector_hidden: width of the projector's hidden layers; None = ``encoder.num_features``, as in the
            paper.
        projector_out: width of the projections z.
        projector_layers: 2 as in the paper, 3 in SimCLR v2.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True
    batch_keys = ("views",)
    two_views = True

    def __init__(
        self,
        encoder: Encoder,
        temperature: float = 0.1,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        projector_layers: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature)
        check_at_least(1, projector_layers=projector_layers)
        width = encoder.num_features
        self.encoder = encoder
        self.projector = projection_mlp(width, projector_hidden or width, projector_out, projector_layers)
        self.temperature = temperature

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.projector(self.encoder(torch.cat(batch["views"][:2]))).chunk(2)  # (B, D) each
        all1, offset = self.gather(z1)  # (W * B, D)
        gathered = None if all1 is z1 else (all1, self.gather(z2).rows)
        return {"loss": nt_xent(z1, z2, self.temperature, gathered, offset)}
