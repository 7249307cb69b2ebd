"""MoCo v3 (Chen et al. 2021, https://arxiv.org/abs/2104.02057).

The prediction for each view has to identify the other view's key, computed by a momentum copy, among the keys
of the batch. A large batch replaces the queue. With a ViT, freezing the random patch projection keeps
training stable.

Differs from the official code: the momentum copy is updated after each optimizer step instead of before the
next keys, which is the same sequence, with the schedule one step behind; ViTs are timm's, with timm's
position embedding and initialization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy, cosine_momentum, mlp
from sslmodules.networks.encoder import Encoder


def contrastive_loss(q: Tensor, keys: Tensor, temperature: float = 1.0, offset: int = 0) -> Tensor:
    """2T times the cross entropy of each query's key among all keys (Chen et al. 2021, Algorithm 1).
    For query i with similarities s_ij = cos(q_i, k_j) to the N keys of the global batch::

        -2T log( exp(s_ii / T) / sum_j exp(s_ij / T) ),   the mean over the local queries

    Args:
        q: (B, D) queries of this process; any scale, normalized here, in float32 or better.
        keys: (W * B, D) keys of all processes in rank order; they get no gradient.
        temperature: T > 0; 1.0 for ResNet-50 in the official code, 0.2 for ViTs.
        offset: first row of ``keys`` that belongs to the local queries.

    Returns:
        Scalar. Its mean over ranks equals the single-process loss of the joined batch.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(q.device.type, enabled=False):
        q, keys = F.normalize(full_precision(q), dim=1), F.normalize(full_precision(keys.detach()), dim=1)
        own = torch.arange(len(q), device=q.device) + offset  # column of each query's key
        return 2 * temperature * F.cross_entropy(q @ keys.T / temperature, own)


class MoCoV3(SSLModule):
    """MoCo v3: contrast the prediction for one view with the keys of the other views of the global batch.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        temperature: temperature of ``contrastive_loss``; the official code uses 1.0 for ResNet-50, 0.2 for
            ViTs.
        momentum: initial momentum of the key encoder, in [0, 1]; rises to 1 over the run by a cosine.
        hidden: width of the hidden layers of projector and predictor.
        out: width of projections and predictions.
        projector_layers: 2 for ResNets, 3 for ViTs.
        predictor_last_norm: batch norm after the predictor's last layer: False for ResNets, True for ViTs.
        stop_grad_conv1: freeze the patch projection of a ViT at its initialization; an error for other
            encoders.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True
    batch_keys = ("views",)
    two_views = True

    def __init__(
        self,
        encoder: Encoder,
        temperature: float = 1.0,
        momentum: float = 0.99,
        hidden: int = 4096,
        out: int = 256,
        projector_layers: int = 2,
        predictor_last_norm: bool = False,
        stop_grad_conv1: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature)
        check_within(0, 1, momentum=momentum)
        check_at_least(1, hidden=hidden, out=out, projector_layers=projector_layers)
        if stop_grad_conv1:
            freeze_patch_projection(encoder)
        width = encoder.num_features
        self.encoder = encoder
        # no layer has a bias, as in the official code
        self.projector = mlp(
            [width, *[hidden] * (projector_layers - 1), out], last_norm=True, last_affine=False
        )
        self.predictor = mlp(
            [out, hidden, out], last_norm=predictor_last_norm, last_affine=False, last_bias=False
        )
        self.teacher = MomentumCopy(nn.Sequential(self.encoder, self.projector))
        self.temperature, self.momentum = temperature, momentum

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # one view at a time, as in the official code: batch statistics are those of one view
        view1, view2 = batch["views"][:2]
        q1 = self.predictor(self.projector(self.encoder(view1)))  # (B, out)
        q2 = self.predictor(self.projector(self.encoder(view2)))
        k1, offset = self.gather(self.teacher(view1))  # (W * B, out)
        k2, _ = self.gather(self.teacher(view2))
        loss = contrastive_loss(q1, k2, self.temperature, offset)
        loss = loss + contrastive_loss(q2, k1, self.temperature, offset)
        return {"loss": loss}

    def update_teacher(self) -> None:
        self.teacher.update(
            nn.Sequential(self.encoder, self.projector), cosine_momentum(self.progress(), self.momentum)
        )


def freeze_patch_projection(encoder: Encoder) -> None:
    """Freeze the layer that turns patches into tokens, ``patch_embed`` of timm's ViTs.

    Raises:
        ValueError: the encoder has no such layer.
    """
    found = [m for name, m in encoder.named_modules() if name.rpartition(".")[2] == "patch_embed"]
    if not found:
        raise ConfigError(
            f"stop_grad_conv1=True needs a ViT with a patch_embed; {type(encoder).__name__} has none"
        )
    found[0].requires_grad_(False)
