"""SimDINO (Wu et al. 2025, https://arxiv.org/abs/2502.10385).

DINO without prototypes, centering or temperatures: the student's embedding of a view is pulled to the
teacher's embedding of another view, and the coding rate of the global views' embeddings keeps them spread
out.

Differs from the official code: the embeddings of all processes are gathered before the coding rate, so that
several processes have the loss of one; there, by default, each process uses its own covariance (which failed
with 16 images per GPU). Probes see the teacher's encoder, as in DINO.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive, check_within
from sslmodules.base import SSLModule, full_precision
from sslmodules.dino import dino_mlp, without_dropout
from sslmodules.emp_ssl import coding_rate
from sslmodules.networks import MomentumCopy, cosine_momentum
from sslmodules.networks.encoder import Encoder
from sslmodules.optim import clip_each, raise_weight_decay
from sslmodules.swav import check_views, encode_views


def cross_view_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine of each teacher embedding with the student's embeddings of the OTHER views.

    Args:
        student: (V, B, D) unit vectors of all views, global ones first.
        teacher: (2, B, D) unit vectors of the global views; they get no gradient.

    Returns:
        Scalar in [-1, 1], the mean over 2 (V - 1) pairs of views and the batch.
    """
    others = student.sum(0) - student[:2]  # (2, B, D): for each teacher view, the sum over the others
    return (teacher.detach() * others).sum(2).mean() / (len(student) - 1)


def expansion(z: Tensor, epsilon: float = 0.05) -> Tensor:
    """Coding rate of each global view's embeddings, times (D + N) / (D N) (Wu et al. 2025).

    Args:
        z: (2, N, D) embeddings of the GLOBAL batch: the mean of the student's and the teacher's.
        epsilon: see ``coding_rate``.

    Returns:
        Scalar, the mean over views.
    """
    n, d = z.shape[1:]
    return (d + n) / (d * n) * coding_rate(z, epsilon).mean()


class SimDINO(SSLModule):
    """SimDINO: DINO with embeddings in place of prototypes, and a coding rate against collapse.

    The loss is ``-cross_view_similarity - rate_weight * expansion``.

    Weight decay follows a half cosine from the optimizer's own value to ``final_weight_decay``.

    Args:
        encoder: (B, C, H, W) -> (B, num_features), for all view sizes. Used as the student; the teacher is a
            copy.
        epsilon: the coding rate's, > 0; 0.05 in the official command. A smaller value helps against spikes in
            the loss.
        rate_weight: weight of the expansion.
        momentum: initial momentum of the teacher; rises to 1 by a half cosine.
        projector_hidden: width of the projector's hidden layers.
        projector_layers: its number of layers.
        projector_out: width D of the embeddings.
        clip_norm: scales each parameter's gradient down to this norm, each separately; None = no clipping.
        final_weight_decay: value at the end of the run; None = constant. A weight decay of 0 stays 0.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)

    def __init__(
        self,
        encoder: Encoder,
        epsilon: float = 0.05,
        rate_weight: float = 1.0,
        momentum: float = 0.996,
        projector_hidden: int = 2048,
        projector_layers: int = 3,
        projector_out: int = 256,
        clip_norm: float | None = 3.0,
        final_weight_decay: float | None = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(epsilon=epsilon, clip_norm=clip_norm)
        check_within(0, 1, momentum=momentum)
        check_at_least(0, rate_weight=rate_weight, final_weight_decay=final_weight_decay)
        check_at_least(
            1,
            projector_hidden=projector_hidden,
            projector_layers=projector_layers,
            projector_out=projector_out,
        )
        self.encoder = encoder
        self.projector = dino_mlp(encoder.num_features, projector_hidden, projector_out, projector_layers)
        self.teacher = MomentumCopy(self.student())
        without_dropout(self.teacher)
        self.epsilon, self.rate_weight, self.momentum = epsilon, rate_weight, momentum
        self.clip_norm, self.final_weight_decay = clip_norm, final_weight_decay

    def student(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)

    @property
    def feature_encoder(self) -> Encoder:
        """The teacher's encoder."""
        return self.teacher.net[0]  # type: ignore[index]

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        check_views(type(self).__name__, self.encoder, batch["views"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        student = self.projector(encode_views(self.encoder, views)).unflatten(0, (len(views), -1))
        teacher = self.teacher(torch.cat(views[:2])).unflatten(0, (2, -1))  # (2, B, D), no gradient
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (F.normalize(full_precision(z), dim=2) for z in (student, teacher))
            similarity = cross_view_similarity(student, teacher)
            mean = (student[:2] + teacher) / 2  # (2, B, D)
            rate = expansion(self.gather(mean.transpose(0, 1)).rows.transpose(0, 1), self.epsilon)
        loss = -similarity - self.rate_weight * rate
        return {"loss": loss, "similarity": similarity, "expansion": rate}

    def update_teacher(self) -> None:
        self.teacher.update(self.student(), cosine_momentum(self.progress(), self.momentum))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip_norm is not None:
            clip_each(self.parameters(), self.clip_norm)
        if self.final_weight_decay is not None:
            raise_weight_decay(optimizer, self.progress(), self.final_weight_decay)
