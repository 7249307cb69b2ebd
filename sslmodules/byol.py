"""BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733).

From one view of an image, the online network predicts what a slowly moving copy of itself (the target)
projects from the other view. There are no negatives: the predictor and the moving target prevent collapse.

Differs from the official code: the target starts as a copy of the online network instead of from another
seed; features are evaluated without fine-tuning the batch-norm statistics; any optimizer can be used instead
of LARS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_within
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy, cosine_momentum, mlp
from sslmodules.networks.encoder import Encoder


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos(p, z), mean over the batch (Grill et al. 2020).
    Args:
        prediction: (B, D) predictions p; any scale, normalized here, in float32 or better.
        target: (B, D) target projections z; they get no gradient.

    Returns:
        Scalar in [0, 4]. The method's loss is the sum of both directions, in [0, 8] as in the official code.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        p, z = full_precision(prediction), full_precision(target.detach())
        return 2 - 2 * F.cosine_similarity(p, z, dim=1).mean()


class BYOL(SSLModule):
    """BYOL: predict the target network's projection of the other view.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        momentum: initial momentum of the target, in [0, 1]; rises to 1 over the run by a cosine. The paper
            uses 0.996 for 1000 epochs and 0.99 for 100 and 300.
        hidden: width of the hidden layer of projector and predictor.
        out: width of projections and predictions.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True  # through the batch norms of its heads, without which it may collapse
    batch_keys = ("views",)
    two_views = True

    def __init__(
        self, encoder: Encoder, momentum: float = 0.996, hidden: int = 4096, out: int = 256, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_within(0, 1, momentum=momentum)
        check_at_least(1, hidden=hidden, out=out)
        width = encoder.num_features
        self.encoder = encoder
        self.projector = mlp([width, hidden, out], last_bias=False)
        self.predictor = mlp([out, hidden, out], last_bias=False)
        self.teacher = MomentumCopy(nn.Sequential(self.encoder, self.projector))
        self.momentum = momentum

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # one view at a time, as in the official code: batch statistics are those of one view
        view1, view2 = batch["views"][:2]
        z1, z2 = self.teacher(view1), self.teacher(view2)  # (B, out) each, outside the graph
        p1 = self.predictor(self.projector(self.encoder(view1)))  # (B, out)
        p2 = self.predictor(self.projector(self.encoder(view2)))
        return {"loss": regression_loss(p1, z2) + regression_loss(p2, z1)}

    def update_teacher(self) -> None:
        self.teacher.update(
            nn.Sequential(self.encoder, self.projector), cosine_momentum(self.progress(), self.momentum)
        )
