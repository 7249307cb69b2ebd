"""I-JEPA (Assran et al. 2023, https://arxiv.org/abs/2301.08243).

From the patches of a context block, a predictor predicts the features that a slowly moving copy of the
encoder computes for the patches of several target blocks. The only augmentation is a crop; no pixels are
reconstructed.

Differs from the official code: the encoder has a class token, which the predictor does not see; every image
has the same number of context and target patches, drawn at random from its blocks (``IJEPAViews``). Features
are the mean patch token of the target encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_within
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy
from sslmodules.networks.encoder import Encoder, PatchEncoder, require
from sslmodules.networks.vit import PatchPredictor
from sslmodules.optim import raise_weight_decay


def normalized_targets(tokens: Tensor, targets: Tensor) -> Tensor:
    """The target encoder's tokens at the target patches, each normalized over its features.
    Args:
        tokens: (B, N, D), computed from the FULL image.
        targets: (B, M, L) int64, patches of each block.

    Returns:
        (B, M, L, D), float32 or better, without gradient.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        normalized = F.layer_norm(full_precision(tokens.detach()), tokens.shape[-1:])
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return normalized[rows, targets]


class IJEPA(SSLModule):
    """I-JEPA: predict the features of hidden blocks from those of a visible one.

    Weight decay follows a half cosine from the optimizer's own value to ``final_weight_decay``.

    Args:
        encoder: a ``ViTEncoder``, which encodes the context; the target encoder is a copy.
        predictor_width: width of the predictor's tokens.
        predictor_depth: number of its blocks; 6 for ViT-B, 12 for larger encoders.
        predictor_heads: number of its attention heads.
        momentum: initial momentum of the target encoder; rises linearly to 1.
        final_weight_decay: value at the end of the run; None = constant. A weight decay of 0 stays 0.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder cannot skip patches, or an option is out of range.
    """

    encoder: PatchEncoder
    batch_keys = ("context", "targets")

    def __init__(
        self,
        encoder: PatchEncoder,
        predictor_width: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int = 12,
        momentum: float = 0.996,
        final_weight_decay: float | None = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, PatchEncoder)
        check_within(0, 1, momentum=momentum)
        check_at_least(0, final_weight_decay=final_weight_decay)
        self.encoder = encoder
        width = encoder.num_features
        self.predictor = PatchPredictor(
            encoder.grid, width, width, predictor_width, predictor_depth, predictor_heads
        )
        self.teacher = MomentumCopy(encoder)
        self.momentum, self.final_weight_decay = momentum, final_weight_decay

    @property
    def feature_encoder(self) -> Encoder:
        """The target encoder."""
        return self.teacher.net  # type: ignore[return-value]

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features): the mean patch token of the target encoder."""
        return self.teacher.net.forward_visible(x)[:, 1:].mean(1)  # type: ignore[operator]

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        patches = self.encoder.grid[0] * self.encoder.grid[1]
        height, width = batch["views"][0].shape[2:]
        there = height * width // self.encoder.patch_size**2
        if there != patches:
            raise ConfigError(
                f"encoder has {patches} patches, but views of {height}x{width} pixels have {there}: set its "
                "image_size and patch_size as those of IJEPAViews"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x, context, targets = batch["views"][0], batch["context"], batch["targets"]
        seen = self.encoder.forward_visible(x, context)[:, 1:]  # (B, K, D)
        prediction = self.predictor(seen, context, targets)  # (B, M, L, D)
        with torch.no_grad():
            tokens = self.teacher.net.forward_visible(x)[:, 1:]  # type: ignore[operator]
        target = normalized_targets(tokens, targets)
        # before training it is the variance of the normalized targets, the error of predicting 0
        return {"loss": F.smooth_l1_loss(full_precision(prediction), target)}

    def update_teacher(self) -> None:
        self.teacher.update(self.encoder, self.momentum + (1 - self.momentum) * self.progress())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.final_weight_decay is not None:
            raise_weight_decay(optimizer, self.progress(), self.final_weight_decay)
