"""Triplet loss without labels (FaceNet: Schroff et al. 2015, https://arxiv.org/abs/1503.03832).

An anchor has to be closer to its positive than to a negative, by a margin, in squared distance on the unit
sphere. The positive is the other view of the same image, negatives are the views of all other images of the
global batch; mining picks one.

Differs from FaceNet: identities are images, not people, so each anchor has one positive; the loss is the mean
over anchors, satisfied ones included, not the sum. ``batch_hard`` is from Hermans et al. 2017
(https://arxiv.org/abs/1703.07737).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_one_of, check_positive, check_within
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder

Mining = Literal["semi_hard", "batch_hard"]


def mine_distances(
    z1: Tensor,
    z2: Tensor,
    mining: Mining = "semi_hard",
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Squared distances of each local view to its positive and to its mined negative.

    ``semi_hard`` (Schroff et al. 2015): the nearest negative that is farther away than the positive; if all
    are nearer, the farthest one. ``batch_hard`` (Hermans et al. 2017): the nearest negative.

    Args:
        z1: (B, D) embeddings of the first views; any scale, normalized here, in float32 or better.
        z2: (B, D) embeddings of the second views; row i is paired with row i of ``z1``.
        mining: ``semi_hard`` or ``batch_hard``.
        gathered: ``z1`` and ``z2`` of all ranks, each (W * B, D) in rank order and with gradients; None = one
            process.
        offset: first row of ``gathered`` that belongs to this rank.

    Returns:
        Two tensors (2B,), in [0, 4], with gradients to all selected embeddings. With a single image there is
        no negative: its distance is infinite.

    Raises:
        ValueError: ``mining`` is unknown.
    """
    check_one_of(get_args(Mining), mining=mining)
    with torch.autocast(z1.device.type, enabled=False):
        local = F.normalize(full_precision(torch.cat([z1, z2])), dim=1)  # (2B, D)
        everyone = (
            local if gathered is None else F.normalize(full_precision(torch.cat(gathered)), dim=1)
        )  # (2N, D)
        b, n = len(z1), len(everyone) // 2
        distance = 2 - 2 * local @ everyone.T  # (2B, 2N)
        row = torch.arange(b, device=z1.device) + offset  # position among the N first views
        itself, positive = torch.cat([row, row + n]), torch.cat([row + n, row])
        to_positive = distance.gather(1, positive[:, None])  # (2B, 1)
        # neither the view itself nor its positive is a negative
        negatives = distance.scatter(1, torch.stack([itself, positive], 1), float("inf"))
        if mining == "batch_hard":
            return to_positive[:, 0], negatives.min(1).values
        beyond = negatives.masked_fill(negatives <= to_positive, float("inf")).min(1).values
        farthest = negatives.masked_fill(negatives.isinf(), float("-inf")).max(1).values
        return to_positive[:, 0], torch.where(beyond.isinf() & farthest.isfinite(), farthest, beyond)


def triplet_loss(to_positive: Tensor, to_negative: Tensor, margin: float = 0.2) -> Tensor:
    """Mean of max(0, d_positive - d_negative + margin) over all anchors (Schroff et al. 2015: the sum).

    The mean is over all anchors, not only those with a positive loss: that mean would hardly fall, as
    satisfied anchors drop out.

    Args:
        to_positive: (n,) squared distances to the positives.
        to_negative: (n,) squared distances to the negatives.
        margin: alpha > 0; 0.2 in the paper.

    Returns:
        Scalar.

    Raises:
        ValueError: ``margin`` is not positive.
    """
    check_positive(margin=margin)
    return F.relu(to_positive - to_negative + margin).mean()


class Triplet(SSLModule):
    """Triplet: two views of an image should be closer, by a margin, than a mined negative.

    Other logged terms: ``active``, the share of triplets that violate the margin, and ``collapsed``, 1 if all
    mined distances are 0, so that the loss equals the margin; this also gives a warning.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        margin: alpha of ``triplet_loss``, in (0, 4): squared distances on the unit sphere are at most 4.
        mining: ``semi_hard`` (FaceNet) or ``batch_hard`` (Hermans et al. 2017), which collapses more easily
            early in training.
        projector_hidden: width of the projector's hidden layers, if any.
        projector_out: width of the embeddings z; 128 in the paper.
        projector_layers: linear layers of the projector, batch norm and ReLU between them; 1 = the paper's
            linear map.
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
        margin: float = 0.2,
        mining: Mining = "semi_hard",
        projector_hidden: int = 512,
        projector_out: int = 128,
        projector_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within(0, 4, "()", margin=margin)
        check_one_of(get_args(Mining), mining=mining)
        check_at_least(
            1,
            projector_hidden=projector_hidden,
            projector_out=projector_out,
            projector_layers=projector_layers,
        )
        self.encoder = encoder
        self.projector = mlp(
            [encoder.num_features, *[projector_hidden] * (projector_layers - 1), projector_out]
        )
        self.margin, self.mining = margin, mining
        self.warned = False

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = self.projector(self.encoder(torch.cat(batch["views"][:2]))).chunk(2)  # (B, D) each
        all1, offset = self.gather(z1)  # (N, D)
        gathered = (all1, self.gather(z2).rows)
        to_positive, to_negative = mine_distances(z1, z2, self.mining, gathered, offset)
        loss = triplet_loss(to_positive, to_negative, self.margin)
        return {
            "loss": loss,
            "active": (to_positive - to_negative + self.margin > 0).float().mean(),
            "collapsed": (torch.maximum(to_positive, to_negative).max() < 1e-3 * self.margin).float(),
        }

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.warned or self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # only on logged steps: reading the term waits for the device
        if self.trainer.callback_metrics.get("train/collapsed", 0) == 1:
            self.warned = True
            rank_zero_warn(
                f"all embeddings are equal at step {self.global_step}: the loss is the margin {self.margin} "
                "and its gradient vanishes. Use mining semi_hard, a lower learning rate or a larger margin"
            )
