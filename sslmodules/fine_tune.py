"""Fine-tuning: an encoder and a classifier, trained on labels.

The encoder starts from pre-trained weights (``--init_from``); without them it is trained from scratch, as a
baseline. With ``freeze`` the encoder is not trained: the classic linear probe by SGD. The settings are those
of the MAE paper's appendix (He et al. 2022, https://arxiv.org/abs/2111.06377): layer-wise decay of
the learning rate (Clark et al. 2020), stochastic depth, mixup (Zhang et al. 2018), CutMix (Yun et al. 2019)
and label smoothing.

Differs from MAE's code: MixUp and CutMix are torchvision's, with one draw per batch; if both are on, each
step draws one of them. Samples without a label are ignored.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from datamodules.audio.mel import valid_frames
from datamodules.base import Batch, Padding, SSLDataModule, check_padding
from datamodules.checks import check, check_at_least, check_one_of, check_positive, check_within
from datamodules.errors import ConfigError
from datamodules.samplers import labels_of
from runtime.optional import offers
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy, PixelTokens, SequenceEncoder
from sslmodules.networks.classifier import Head, depths, make_head, masked_mean, set_drop_path
from sslmodules.networks.encoder import CausalEncoder, Encoder, MapEncoder, TokenEncoder
from sslmodules.optim import decay_groups, layer_groups


def soft_cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Tensor
) -> Tensor:
    """Cross entropy with soft targets and a weight for each class.

    With hard targets, in one process, it is ``F.cross_entropy(..., weight=weights,
    label_smoothing=smoothing)``.

    Args:
        logits: (B, K).
        target: (B, K) share of each class; rows of zeros are ignored.
        weights: (K,) weight of each class.
        smoothing: share of the target that is spread over all classes.
        total: divisor: the sum of the samples' weights over all ranks, divided by the number of ranks.

    Returns:
        Scalar; its mean over ranks is that of one process with the joined batch.
    """
    log_p = full_precision(logits).log_softmax(1)
    known = target.sum(1, keepdim=True)  # 1, or 0 without a label
    spread = (1 - smoothing) * target + smoothing * known / logits.shape[1]
    return -(spread * weights * log_p).sum() / total.clamp(min=1e-12)


class FineTune(SSLModule):
    """FineTune: an encoder and a classifier trained on labels; from scratch, or from weights (--init_from).

    Args:
        encoder: ``input`` -> (B, num_features).
        num_classes: K.
        head: ``linear`` or ``mlp`` on the features, or ``attentive``: one query over tokens or positions.
        pooling: features are the ``encoder``'s own, or the ``mean`` of its tokens without padding.
            For sequences and audio frames it is always the mean.
        pixels: converts images to tokens, for the encoder of a GPT that was trained on pixels.
        padding: the data's: the padding token for the encoder of a GPT, ``frames`` for an image encoder on
            audio.
        freeze: train the classifier only, on features in eval mode.
        layer_decay: factor of the learning rate from each block to the one before it; 1 = the same for all.
        drop_path: for a ViT, share of samples that skip the last block; lower for earlier blocks.
        dropout: share of the features set to 0 before the classifier.
        label_smoothing: share of the target that is spread over all classes.
        mixup: alpha of the Beta distribution; 0 = off.
        cutmix: the same for CutMix; if both are on, each step draws one of them.
        class_weights: weight of each class in the loss; None = 1.
        ema: decay of a running mean of all weights, which is then evaluated; None = no mean.
        **kwargs: ``SSLModule``'s.

    Raises:
        ConfigError: an option is out of range, or needs something that the encoder lacks.
    """

    class_weights: Tensor
    reads_labels = True
    best_metric = ("val/top1", "max")

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        head: Head = "linear",
        pooling: Literal["encoder", "mean"] = "encoder",
        pixels: PixelTokens | None = None,
        padding: Padding = None,
        freeze: bool = False,
        layer_decay: float = 1.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: list[float] | None = None,
        ema: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least(2, num_classes=num_classes)
        check_at_least(0, mixup=mixup, cutmix=cutmix)
        check_within(0, 1, "(]", layer_decay=layer_decay)
        check_within(0, 1, "[)", drop_path=drop_path, dropout=dropout, label_smoothing=label_smoothing)
        check_within(0, 1, ema=ema)
        check_one_of(("encoder", "mean"), pooling=pooling)
        self.encoder, self.pixels, self.padding, self.frozen = encoder, pixels, padding, freeze
        self.num_classes, self.label_smoothing, self.layer_decay = num_classes, label_smoothing, layer_decay
        self.over_tokens = head == "attentive"
        self.mean_of_tokens = pooling == "mean" or isinstance(encoder, SequenceEncoder)
        if (self.over_tokens or self.mean_of_tokens) and not offers(encoder, "tokens"):
            option = "head" if self.over_tokens else "pooling"
            raise ConfigError(
                f"{option} {head if self.over_tokens else pooling} needs an encoder with tokens "
                f"or positions, but {type(encoder).__name__} gives one vector: choose another"
            )
        if self.mean_of_tokens and encoder.token_width != encoder.num_features:
            raise ConfigError(
                f"pooling mean needs tokens as wide as features, and those of {type(encoder).__name__} have "
                f"{encoder.token_width} and {encoder.num_features}: leave it out"
            )
        if layer_decay < 1:
            depths(encoder)
        if drop_path:
            set_drop_path(encoder, drop_path)
        if freeze:
            encoder.requires_grad_(False)
        if class_weights is not None:
            check(len(class_weights) == num_classes, "class_weights", f"{num_classes} numbers", class_weights)
            check_positive(class_weights=class_weights)
        weights = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.dropout = nn.Dropout(dropout)
        width = encoder.token_width if self.over_tokens else encoder.num_features
        self.classifier = make_head(head, width, num_classes)
        self.mixing = [mix(alpha=a) for mix, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a]
        self.couples_batch = bool(self.mixing)
        self.ema = ema
        self.average = None if ema is None else MomentumCopy(nn.ModuleList([encoder, self.classifier]))

    # ---- the model -----------------------------------------------------------------------------------------

    @property
    def feature_encoder(self) -> Encoder:
        """The running mean of the encoder, if there is one."""
        return self.encoder if self.average is None else self.average.net[0]  # type: ignore[index]

    @property
    def best_classifier(self) -> nn.Module:
        """The running mean of the classifier, if there is one."""
        return self.classifier if self.average is None else self.average.net[1]  # type: ignore[index]

    def _prepared(self, x: Tensor) -> Tensor:
        """``input`` in the form that the encoder accepts."""
        if self.pixels is not None:
            return self.pixels(x)
        if x.ndim == 4 and self.encoder.in_channels == x.shape[1] + 1:  # from inpainting: an empty mask
            return torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        return x

    def _tokens(self, encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.padding == "frames" and isinstance(encoder, MapEncoder):
            return encoder.tokens(x, valid_frames(x))
        tokens, valid = encoder.tokens(x)
        if isinstance(self.padding, int):
            valid = valid & (x != self.padding)[:, : valid.shape[1]]
        return tokens, valid

    def _features(self, encoder: Encoder, x: Tensor) -> Tensor:
        if self.mean_of_tokens:
            return masked_mean(*self._tokens(encoder, x))
        return encoder(x)

    def _scores(self, encoder: Encoder, classifier: nn.Module, x: Tensor) -> Tensor:
        """``input`` -> (B, K), before the softmax."""
        x = self._prepared(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.over_tokens:
                h, valid = self._tokens(encoder, x)
            else:
                h = self._features(encoder, x)
        return classifier(self.dropout(h), valid) if self.over_tokens else classifier(self.dropout(h))

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``input`` -> what an attentive head sees: tokens (B, N, D), and which are no padding (B, N)."""
        return self._tokens(self.feature_encoder, self._prepared(x))

    def embed(self, x: Tensor) -> Tensor:
        return self._features(self.feature_encoder, self._prepared(x))

    def classify(self, x: Tensor) -> Tensor:
        return self._scores(self.feature_encoder, self.best_classifier, x)

    # ---- training ------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the first view, or of ``input`` in eval mode or without views; accuracy if
        unmixed.
        """
        label = batch["label"]
        known = label >= 0
        dtype = full_precision(self.class_weights).dtype
        target = F.one_hot(label.clamp(min=0), self.num_classes).to(dtype) * known[:, None]  # (B, K)
        mixed = self.training and bool(self.mixing)
        if self.training:
            x = batch["views"][0] if batch.get("views") else batch["input"]
            if mixed:
                x, target = self.mixing[int(torch.randint(len(self.mixing), ()))](x, target)
            scores = self._scores(self.encoder, self.classifier, x)
        else:
            scores = self.classify(batch["input"])
        total = (target * self.class_weights).sum()
        total = self.gather(total[None]).rows.mean()
        loss = soft_cross_entropy(scores, target, self.class_weights, self.label_smoothing, total)
        if mixed:
            return {"loss": loss}
        right = (scores.argmax(1) == label).sum() / known.sum().clamp(min=1)
        return {"loss": loss, "top1": right}

    def averaged_over(self, batch: Batch) -> dict[str, float]:
        label = batch["label"]
        known = label[label >= 0]
        return {"loss": float(self.class_weights[known].sum()), "top1": float(len(known))}

    def update_teacher(self) -> None:
        if self.average is None or self.ema is None:
            return
        source = nn.ModuleList([self.encoder, self.classifier])
        self.average.update(source, self.ema)
        for mine, theirs in zip(self.average.net.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)  # batch-norm statistics are running means already

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups for each depth, with and without weight decay, and their share of the learning rate."""
        groups = decay_groups(self)
        if self.layer_decay == 1:
            return groups
        return layer_groups(groups, *depths(self.encoder), self.layer_decay)

    def train(self, mode: bool = True) -> FineTune:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def check_data(self, data: SSLDataModule) -> None:
        name = type(data).__name__
        if isinstance(self.encoder, TokenEncoder) and data.padding is None:
            raise ConfigError(
                f"{type(self.encoder).__name__} ignores token 0, which is text in {name}: give --data.views "
                "MaskedTokens, as in its pre-training"
            )
        counts = self.over_tokens or self.mean_of_tokens
        if counts and isinstance(self.encoder, (CausalEncoder, MapEncoder)) and self.pixels is None:
            check_padding(self.padding, data)
        if data.num_classes is None:
            raise ConfigError(f"FineTune learns from labels, but {name} has none: give data with classes")
        if data.num_classes != self.num_classes:
            raise ConfigError(
                f"{name} has {data.num_classes} classes, but num_classes is {self.num_classes}: give "
                f"--model.num_classes {data.num_classes}"
            )
        labels = labels_of(data.dataset("train"))
        if labels is not None and not (labels >= 0).any():
            raise ConfigError(
                f"FineTune learns from labels, but no training sample of {name} has one: give data whose "
                "training split is labeled"
            )

    def check_batch(self, batch: Batch) -> None:
        if "label" not in batch:
            raise ConfigError(f"FineTune needs 'label' in the batch, which has only {', '.join(batch)}")
        if self.mixing and batch["input"].ndim != 4:
            raise ConfigError("mixup and cutmix need images, which this data does not have: leave them out")
