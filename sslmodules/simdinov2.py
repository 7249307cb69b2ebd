"""SimDINOv2 (Wu et al. 2025, https://arxiv.org/abs/2502.10385).

SimDINO for the class tokens, and iBOT's patch objective without prototypes: blocks of patches are hidden from
the student, whose embedding of each of them is pulled to the teacher's, which sees all patches. The coding
rate of the class tokens' embeddings is the only term against collapse. One head for class tokens and patches.

Differs from the official code: the embeddings of all processes are gathered before the coding rate, as in
this project's SimDINO; masks are those of ``MaskedMultiCrop``; the learning rate of the patch projection is
that of its depth. Probes see the class token of the teacher's encoder.
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
from sslmodules.ibot import check_hidden_patches, mean_over_hidden, student_outputs, teacher_outputs
from sslmodules.networks import MomentumCopy, cosine_momentum
from sslmodules.networks.classifier import depths
from sslmodules.networks.encoder import Encoder, PatchEncoder, require
from sslmodules.optim import decay_groups, layer_groups, raise_weight_decay
from sslmodules.simdino import cross_view_similarity, expansion


def hidden_similarity(student: Tensor, teacher: Tensor, hidden: Tensor) -> Tensor:
    """Mean cosine of the student's and the teacher's embeddings of hidden patches (Wu et al. 2025).

    Args:
        student: (G, N, D) unit vectors of G views, whose hidden patches the student did not see.
        teacher: (G, N, D) unit vectors for the same views; they get no gradient.
        hidden: (G, N) bool, True = hidden.

    Returns:
        Scalar in [-1, 1]: the mean over the hidden patches of each view, then over views. A view without
        hidden patches counts as 0, as in the official code.
    """
    return mean_over_hidden((student * teacher.detach()).sum(2), hidden)


class SimDINOv2(SSLModule):
    """SimDINOv2: SimDINO with a loss on hidden patches.

    The loss is ``-cross_view_similarity - rate_weight * expansion - patch_weight * hidden_similarity``.

    Weight decay follows a half cosine from the optimizer's own value to ``final_weight_decay``.

    Args:
        encoder: a ``ViTEncoder``, (B, C, H, W) -> (B, 1 + N, num_features), for all view sizes. Used as the
            student; the teacher is a copy.
        epsilon: the coding rate's, > 0. A smaller value helps against spikes in the loss; a larger one, which
            small batches need, weakens the rate against the similarities.
        rate_weight: weight of the expansion.
        patch_weight: weight of the similarity of hidden patches.
        momentum: initial momentum of the teacher; rises to 1 by a half cosine.
        projector_hidden: width of the projector's hidden layers.
        projector_layers: its number of layers.
        projector_out: width D of the embeddings.
        layer_decay: factor of the learning rate from each block to the one before it; 1 = the same for all.
        clip_norm: scales the gradient of the encoder, and that of the projector, down to this norm; None = no
            clipping.
        final_weight_decay: value at the end of the run; None = constant. A weight decay of 0 stays 0.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder has no patch tokens, or an option is out of range.
    """

    encoder: PatchEncoder
    couples_batch = True
    batch_keys = ("views", "mask")

    def __init__(
        self,
        encoder: PatchEncoder,
        epsilon: float = 0.05,
        rate_weight: float = 1.0,
        patch_weight: float = 1.0,
        momentum: float = 0.9,
        projector_hidden: int = 2048,
        projector_layers: int = 3,
        projector_out: int = 256,
        layer_decay: float = 0.9,
        clip_norm: float | None = 3.0,
        final_weight_decay: float | None = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, PatchEncoder)
        check_positive(epsilon=epsilon, clip_norm=clip_norm)
        check_within(0, 1, momentum=momentum)
        check_within(0, 1, "(]", layer_decay=layer_decay)
        check_at_least(
            0, rate_weight=rate_weight, patch_weight=patch_weight, final_weight_decay=final_weight_decay
        )
        check_at_least(
            1,
            projector_hidden=projector_hidden,
            projector_layers=projector_layers,
            projector_out=projector_out,
        )
        width = encoder.num_features
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.projector = dino_mlp(width, projector_hidden, projector_out, projector_layers)
        self.teacher = MomentumCopy(self.student())
        without_dropout(self.teacher)
        self.epsilon, self.rate_weight, self.patch_weight = epsilon, rate_weight, patch_weight
        self.momentum, self.layer_decay = momentum, layer_decay
        self.clip_norm, self.final_weight_decay = clip_norm, final_weight_decay

    def student(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)

    @property
    def feature_encoder(self) -> Encoder:
        """The teacher's encoder."""
        return self.teacher.net[0]  # type: ignore[index]

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        check_hidden_patches(type(self).__name__, self.encoder, batch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        whole, local = torch.cat(batch["views"][:2]), batch["views"][2:]  # (2 B, C, H, W)
        hidden = batch["mask"].transpose(0, 1).flatten(0, 1)  # (2 B, N)
        student = student_outputs(self.encoder, self.projector, self.mask_token, whole, hidden, local)
        teacher = teacher_outputs(self.teacher, whole)
        with torch.autocast(whole.device.type, enabled=False):
            classes, patches = (F.normalize(full_precision(z), dim=2) for z in student)
            targets, patch_targets = (F.normalize(full_precision(z), dim=2) for z in teacher)
            similarity = cross_view_similarity(classes, targets)  # of (V, B, D) and (2, B, D)
            patch_similarity = hidden_similarity(patches, patch_targets, hidden)  # of (2 B, N, D)
            mean = (classes[:2] + targets) / 2  # (2, B, D)
            rate = expansion(self.gather(mean.transpose(0, 1)).rows.transpose(0, 1), self.epsilon)
        loss = -similarity - self.rate_weight * rate - self.patch_weight * patch_similarity
        return {
            "loss": loss,
            "similarity": similarity,
            "expansion": rate,
            "patch_similarity": patch_similarity,
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups for each depth, with and without weight decay, and their share of the learning rate."""
        groups = decay_groups(self)
        if self.layer_decay == 1:
            return groups
        depth, last = depths(self.encoder)
        return layer_groups(groups, {**depth, self.mask_token: 0}, last, self.layer_decay)

    def update_teacher(self) -> None:
        self.teacher.update(self.student(), cosine_momentum(self.progress(), self.momentum))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip_norm is not None:
            for part in ([*self.encoder.parameters(), self.mask_token], self.projector.parameters()):
                nn.utils.clip_grad_norm_(part, self.clip_norm)
        if self.final_weight_decay is not None:
            raise_weight_decay(optimizer, self.progress(), self.final_weight_decay)
