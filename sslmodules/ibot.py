"""iBOT (Zhou et al. 2022, https://arxiv.org/abs/2111.07832).

DINO between the class tokens of different views, and between the patch tokens of one view: blocks of patches
are hidden from the student, which predicts the teacher's distribution for each of them. The teacher sees all
patches. One head is used for class tokens and patches.

Differs from the official code: the last layer is always normalized, as in this project's DINO; class and
patches have the same temperatures; masks are those of ``MaskedMultiCrop``. Probes see the class token of the
teacher's encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.dino import DINOHead, dino_loss, teacher_probabilities, warmed_up, without_dropout
from sslmodules.networks import MomentumCopy, cosine_momentum
from sslmodules.networks.encoder import Encoder, PatchEncoder, require
from sslmodules.optim import clip_each, raise_weight_decay
from sslmodules.swav import check_views, encode_views, entropy


def masked_patch_loss(logits: Tensor, targets: Tensor, hidden: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy of student and teacher at hidden patches (Zhou et al. 2022, Eq. 2).

    Args:
        logits: (G, N, K) of the student, which did not see the hidden patches, for G views.
        targets: (G, N, K) of ``teacher_probabilities`` for the same views; they get no gradient.
        hidden: (G, N) bool, True = hidden.
        temperature: temperature of the student; the paper's 0.1.

    Returns:
        Scalar: the mean over the hidden patches of each view, then over views. A view without hidden patches
        counts as 0, as in the official code.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(logits.device.type, enabled=False):
        scores = F.log_softmax(full_precision(logits) / temperature, dim=-1)
        return mean_over_hidden(-(targets.detach() * scores).sum(2), hidden)


def mean_over_hidden(values: Tensor, hidden: Tensor) -> Tensor:
    """Values of patches (G, N), those of ``hidden`` (G, N) -> scalar: mean of each view, then over views.

    A view without hidden patches counts as 0, as in the official code.
    """
    return ((values * hidden).sum(1) / hidden.sum(1).clamp(min=1)).mean()


def check_hidden_patches(method: str, encoder: PatchEncoder, batch: Batch) -> None:
    """Raise ConfigError for views that a multi-crop method cannot use, or a mask of other patches.

    Args:
        method: name for the message.
        encoder: has the patches that the mask must have.
        batch: ``views`` and ``mask``.
    """
    check_views(method, encoder, batch["views"])
    view, size = batch["views"][0], encoder.patch_size
    patches = (view.shape[2] // size) * (view.shape[3] // size)
    if (given := tuple(batch["mask"].shape)) != (len(view), 2, patches):
        raise ConfigError(
            f"{method} needs a mask for the {patches} patches of {size}x{size} pixels of both global views, "
            f"{(len(view), 2, patches)}, got {given}: set data.views to MaskedMultiCrop with the "
            "encoder's patch_size"
        )


def student_outputs(
    encoder: PatchEncoder,
    head: nn.Module,
    mask_token: Tensor,
    whole: Tensor,
    hidden: Tensor,
    local: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The student's outputs for class tokens and patches, by one head for both.

    Args:
        encoder, head: the student's.
        mask_token: (1, 1, D), takes the place of hidden patches.
        whole: (2 B, C, H, W), both global views, one after the other.
        hidden: (2 B, N) bool, True = hidden: the student does not see these patches of ``whole``.
        local: V - 2 views (B, C, h, w), which it sees whole.

    Returns:
        (V, B, K) of class tokens, and (2 B, N, K) of the patches of the global views.
    """
    seen = encoder.forward_masked(whole, hidden, mask_token)  # (2 B, 1 + N, D)
    crops = [encode_views(encoder, local)] if local else []
    classes = head(torch.cat([seen[:, 0], *crops])).unflatten(0, (2 + len(local), -1))
    return classes, head(seen[:, 1:].flatten(0, 1)).unflatten(0, hidden.shape)


@torch.no_grad()
def teacher_outputs(teacher: MomentumCopy, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole global views (2 B, C, H, W) -> class tokens (2, B, K), patches (2 B, N, K), after the head."""
    net: Any = teacher.net
    encoder, head = net
    tokens = encoder.forward_visible(whole)  # (2 B, 1 + N, D)
    patches = head(tokens[:, 1:].flatten(0, 1)).unflatten(0, (len(tokens), -1))
    return head(tokens[:, 0]).unflatten(0, (2, -1)), patches


class IBOT(SSLModule):
    """iBOT: self-distillation of class tokens across views, and of hidden patches within a view.

    Other logged terms: ``class_loss`` and ``patch_loss``, whose weighted sum is the loss; as in DINO
    ``teacher_entropy`` and ``mean_entropy`` of the class token; ``patch_mean_entropy`` of the batch's mean
    patch target (0 = collapse to one prototype).

    Weight decay follows a half cosine from the optimizer's own value to ``final_weight_decay``.

    Args:
        encoder: a ``ViTEncoder``, (B, C, H, W) -> (B, 1 + N, num_features), for all view sizes. Used as the
            student; the teacher is a copy.
        num_prototypes: K, the output width.
        patch_weight: weight of the patch loss; the class loss has 1.
        student_temperature: softmax temperature of the student.
        teacher_temperature: softmax temperature of the teacher after its warm-up, for class and patches.
        warmup_teacher_temperature: value in the first epoch.
        teacher_temperature_epochs: epochs of that warm-up.
        center_momentum: momentum of the two centers' moving averages over global batches.
        momentum: initial momentum of the teacher; rises to 1 by a half cosine. Use about 0.99 for small
            batches and data.
        projector_hidden: width of the projector's hidden layers.
        projector_layers: layers of the MLP before the last layer.
        bottleneck: width of the unit vector that the prototypes are compared with.
        freeze_last_layer_epochs: number of epochs during which the prototypes are frozen.
        clip_norm: scales each parameter's gradient down to this norm, each separately; None = no clipping.
        final_weight_decay: value at the end of the run; None = constant. A weight decay of 0 stays 0.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder has no patch tokens, or an option is out of range.
    """

    encoder: PatchEncoder
    batch_keys = ("views", "mask")
    equal_buffers = ("center", "patch_center")
    center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        encoder: PatchEncoder,
        num_prototypes: int = 8192,
        patch_weight: float = 1.0,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        teacher_temperature_epochs: int = 30,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        projector_hidden: int = 2048,
        projector_layers: int = 3,
        bottleneck: int = 256,
        freeze_last_layer_epochs: int = 1,
        clip_norm: float | None = 3.0,
        final_weight_decay: float | None = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, PatchEncoder)
        check_positive(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
            clip_norm=clip_norm,
        )
        check_within(0, 1, center_momentum=center_momentum, momentum=momentum)
        check_at_least(
            1, projector_hidden=projector_hidden, projector_layers=projector_layers, bottleneck=bottleneck
        )
        check_at_least(2, num_prototypes=num_prototypes)
        check_at_least(
            0,
            patch_weight=patch_weight,
            teacher_temperature_epochs=teacher_temperature_epochs,
            freeze_last_layer_epochs=freeze_last_layer_epochs,
            final_weight_decay=final_weight_decay,
        )
        width = encoder.num_features
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.projector = DINOHead(width, projector_hidden, bottleneck, num_prototypes, projector_layers)
        self.teacher = MomentumCopy(self.student())
        without_dropout(self.teacher)
        self.patch_weight, self.student_temperature = patch_weight, student_temperature
        self.teacher_temperature = teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_temperature_epochs = teacher_temperature_epochs
        self.center_momentum, self.momentum = center_momentum, momentum
        self.freeze_last_layer_epochs, self.clip_norm = freeze_last_layer_epochs, clip_norm
        self.final_weight_decay = final_weight_decay
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        self.register_buffer("patch_center", torch.zeros(1, num_prototypes))

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
        views, whole = batch["views"], torch.cat(batch["views"][:2])  # (2 B, C, H, W)
        hidden = batch["mask"].transpose(0, 1).flatten(0, 1)  # (2 B, N)
        student, student_patches = student_outputs(
            self.encoder, self.projector, self.mask_token, whole, hidden, views[2:]
        )  # (V, B, K), (2 B, N, K)
        teacher, teacher_patches = teacher_outputs(self.teacher, whole)
        temperature = self.current_teacher_temperature()
        targets = teacher_probabilities(teacher, self.center, temperature)
        patch_targets = teacher_probabilities(teacher_patches, self.patch_center, temperature)
        if self.training:  # after use, as in DINO
            self.update_center(self.center, teacher)
            self.update_center(self.patch_center, teacher_patches)
        class_loss = dino_loss(student, targets, self.student_temperature)
        patch_loss = masked_patch_loss(student_patches, patch_targets, hidden, self.student_temperature)
        return {
            "loss": class_loss + self.patch_weight * patch_loss,
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "teacher_entropy": entropy(targets),
            "mean_entropy": entropy(targets.mean((0, 1))),
            "patch_mean_entropy": entropy(patch_targets.mean((0, 1))),
        }

    @torch.no_grad()
    def update_center(self, center: Tensor, logits: Tensor) -> None:
        """center <- m * center + (1 - m) * mean of the teacher's logits (..., K) of all ranks."""
        mean = self.gather(full_precision(logits).mean((0, 1))[None]).rows.mean(0)  # (K,)
        center.lerp_(mean[None].to(center.dtype), 1 - self.center_momentum)

    def current_teacher_temperature(self) -> float:
        return warmed_up(
            self.current_epoch,
            self.teacher_temperature_epochs,
            self.warmup_teacher_temperature,
            self.teacher_temperature,
        )

    def update_teacher(self) -> None:
        self.teacher.update(self.student(), cosine_momentum(self.progress(), self.momentum))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip_norm is not None:
            clip_each(self.parameters(), self.clip_norm)
        if self.current_epoch < self.freeze_last_layer_epochs:
            self.projector.last_layer.weight.grad = None  # no step at all, as in DINO
        if self.final_weight_decay is not None:
            raise_weight_decay(optimizer, self.progress(), self.final_weight_decay)
