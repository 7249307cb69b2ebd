"""DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294).

A student sees all views of an image, its teacher (a momentum copy) only the global ones; the student matches
the teacher's distribution over prototypes. Centering and sharpening of the teacher's output, not negatives,
prevent collapse.

Differs from the official code: the last layer is always normalized (``norm_last_layer``). As there, the
teacher has no stochastic depth, and the teacher's encoder is evaluated.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive, check_within
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy, cosine_momentum
from sslmodules.networks.encoder import Encoder
from sslmodules.optim import clip_each, raise_weight_decay
from sslmodules.swav import check_views, encode_views, entropy, swapped_cross_entropy


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's targets: centered, sharpened, without gradient (Caron et al. 2021, section 3.1).

    Args:
        logits: (2, B, K) of the teacher for the global views.
        center: (1, K) running mean of earlier logits, not including this batch.
        temperature: softmax temperature; the paper's rises from 0.04 to 0.07.

    Returns:
        (2, B, K) probabilities, float32 or better.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(logits.device.type, enabled=False):
        return F.softmax((full_precision(logits) - full_precision(center)) / temperature, dim=-1).detach()


def dino_loss(logits: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy of student and teacher over pairs of different views (Caron et al. 2021, Eq. 3).

    Args:
        logits: (V, B, K) of the student for all views, global ones first.
        targets: (2, B, K) of ``teacher_probabilities`` for the global views; they get no gradient.
        temperature: temperature of the student; the paper's 0.1.

    Returns:
        Scalar, the mean over 2 (V - 1) pairs of views and the batch.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(logits.device.type, enabled=False):
        return swapped_cross_entropy(
            F.log_softmax(full_precision(logits) / temperature, dim=-1), targets.detach()
        )


def warmed_up(epoch: int, epochs: int, first: float, last: float) -> float:
    """From ``first`` in epoch 0 to ``last`` in epoch ``epochs - 1``, then constant.

    It depends on the epoch alone, so a resumed run needs no state.
    """
    share = min(1.0, epoch / max(1, epochs - 1)) if epochs else 1.0
    return first + share * (last - first)


def dino_mlp(in_features: int, hidden: int, out_features: int, layers: int) -> nn.Sequential:
    """Linear layers with GELU in between and no batch norm: (..., in_features) -> (..., out_features)."""
    widths = [in_features, *[hidden] * (layers - 1), out_features]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(widths[i], widths[i + 1]), nn.GELU()]
    for module in modules:
        if isinstance(module, nn.Linear):
            # 0.02 at the official code's width of 2048; at other widths signals keep the same size
            nn.init.trunc_normal_(module.weight, std=0.02 * (2048 / module.in_features) ** 0.5)
            nn.init.zeros_(module.bias)
    return nn.Sequential(*modules[:-1])


class DINOHead(nn.Module):
    """Projector of student and teacher: MLP with GELU, without batch norm; unit vector; normalized layer.
    The last layer is the official weight norm with its gain frozen at 1: cosines with K prototypes.

    Args:
        in_features: width of the features.
        hidden: width of the hidden layers.
        bottleneck: width of the unit vector.
        out_features: K.
        layers: number of layers of the MLP.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        out_features: int = 65536,
        layers: int = 3,
    ):
        super().__init__()
        self.mlp = dino_mlp(in_features, hidden, bottleneck, layers)
        self.last_layer = nn.Linear(bottleneck, out_features, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """(B, in_features) -> (B, K) in [-1, 1]."""
        z = self.mlp(h)
        # half precision's rounding of a cosine, divided by a temperature of 0.04, would be a tenth of a logit
        with torch.autocast(z.device.type, enabled=False):
            z, weight = (
                F.normalize(full_precision(z), dim=1),
                F.normalize(full_precision(self.last_layer.weight), dim=1),
            )
            return z @ weight.T


def without_dropout(module: nn.Module) -> None:
    """Turn off dropout and stochastic depth: the teacher is in training mode for its batch norms only."""
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        elif isinstance(child, DropPath):
            child.drop_prob = 0.0


class DINO(SSLModule):
    """DINO: self-distillation without labels.

    Other logged terms, in nats: ``teacher_entropy`` (log K = uniform collapse) and ``mean_entropy`` of the
    batch's mean target (0 = collapse to one prototype).

    Weight decay follows a half cosine from the optimizer's own value to ``final_weight_decay``.

    Args:
        encoder: (B, C, H, W) -> (B, num_features), for all view sizes. Used as the student; the teacher is a
            copy.
        num_prototypes: K, the output width.
        student_temperature: softmax temperature of the student.
        teacher_temperature: softmax temperature of the teacher after its warm-up. The official code's default
            is 0.04 throughout.
        warmup_teacher_temperature: value in the first epoch.
        teacher_temperature_epochs: epochs of that warm-up.
        center_momentum: momentum of the center's moving average over global batches.
        momentum: initial momentum of the teacher; rises to 1 by a half cosine. The official code recommends
            0.9995 at batch 256.
        projector_hidden: width of the projector's hidden layers.
        projector_layers: layers of the MLP before the last layer.
        bottleneck: width of the unit vector that the prototypes are compared with.
        freeze_last_layer_epochs: number of epochs during which the prototypes are frozen.
        clip_norm: scales each parameter's gradient down to this norm, each separately; None = no clipping.
        final_weight_decay: value at the end of the run; None = constant. A weight decay of 0 stays 0.
        **kwargs: ``SSLModule``'s.
    """

    batch_keys = ("views",)
    equal_buffers = ("center",)
    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        num_prototypes: int = 65536,
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
            teacher_temperature_epochs=teacher_temperature_epochs,
            freeze_last_layer_epochs=freeze_last_layer_epochs,
            final_weight_decay=final_weight_decay,
        )
        self.encoder = encoder
        self.projector = DINOHead(
            encoder.num_features,
            projector_hidden,
            bottleneck,
            num_prototypes,
            projector_layers,
        )
        self.teacher = MomentumCopy(self.student())
        without_dropout(self.teacher)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.teacher_temperature_epochs = teacher_temperature_epochs
        self.center_momentum, self.momentum = center_momentum, momentum
        self.freeze_last_layer_epochs, self.clip_norm = freeze_last_layer_epochs, clip_norm
        self.final_weight_decay = final_weight_decay
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    def student(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)

    @property
    def feature_encoder(self) -> Encoder:
        """The teacher's encoder; in the paper it is better than the student's and is the one evaluated."""
        return self.teacher.net[0]  # type: ignore[index]

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        check_views(type(self).__name__, self.encoder, batch["views"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        student = self.projector(encode_views(self.encoder, views)).unflatten(
            0, (len(views), -1)
        )  # (V, B, K)
        teacher = self.teacher(torch.cat(views[:2])).unflatten(0, (2, -1))  # (2, B, K), no gradient
        targets = teacher_probabilities(teacher, self.center, self.current_teacher_temperature())
        if (
            self.training
        ):  # after use: a center that includes this batch would remove what its samples have in common
            self.update_center(teacher)
        return {
            "loss": dino_loss(student, targets, self.student_temperature),
            "teacher_entropy": entropy(targets),
            "mean_entropy": entropy(targets.mean((0, 1))),
        }

    @torch.no_grad()
    def update_center(self, logits: Tensor) -> None:
        """center <- m * center + (1 - m) * mean of the teacher's logits (2, B, K) of all ranks."""
        mean = self.gather(full_precision(logits).mean((0, 1))[None]).rows.mean(0)  # (K,)
        self.center.lerp_(mean[None].to(self.center.dtype), 1 - self.center_momentum)

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
            # None, not zero: with a zero gradient, momentum and weight decay would still change it
            self.projector.last_layer.weight.grad = None
        if self.final_weight_decay is not None:
            raise_weight_decay(optimizer, self.progress(), self.final_weight_decay)
