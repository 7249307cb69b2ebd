"""SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882).

Each of the two global views is assigned to prototypes under the constraint that all prototypes are used
equally (Sinkhorn-Knopp); every other view of the image has to predict that assignment, its code. Local views
are cheap extra predictors (multi-crop).

Differs from the official code: the queue is shared by all processes and stored in the checkpoint, instead of
in a file per process; Sinkhorn-Knopp runs on logarithms; any optimizer can be used instead of LARC.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check, check_at_least, check_positive
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder
from sslmodules.networks.timm_encoder import patch_layer


def check_views(method: str, encoder: Encoder, views: Sequence[Tensor]) -> None:
    """Reject views that a multi-crop method cannot use.

    Args:
        method: name for the message.
        encoder: checked for a fixed image size, which timm's ViTs have by default.
        views: V tensors (B, C, h, w), global ones first.

    Raises:
        ValueError: fewer than two views, two global views of different sizes, or sizes that the encoder does
            not accept.
    """
    if len(views) < 2:
        raise ConfigError(
            f"{method} needs two global views in views, got {len(views)}: use MultiCrop, TwoViews or a preset"
        )
    sizes = [tuple(view.shape[-2:]) for view in views]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{method} needs global views (the first two of views) of equal size, got {sizes[0]} and "
            f"{sizes[1]}"
        )
    patches = patch_layer(encoder)
    if patches is None:
        return
    fixed, patch = patches.img_size, patches.patch_size
    if patches.strict_img_size and (wrong := [size for size in sizes if size != fixed]):
        raise ConfigError(
            f"{method}: encoder takes images of {fixed} only, but views has {wrong[0]}: set any_size: true "
            "for TimmEncoder"
        )
    if wrong := [size for size in sizes if any(n % p for n, p in zip(size, patch, strict=True))]:
        raise ConfigError(
            f"{method}: the sizes of views must be multiples of the encoder's patches {patch}, got {wrong[0]}"
        )


def encode_views(encoder: Encoder, views: Sequence[Tensor]) -> Tensor:
    """Features of all views, with one encoder pass per run of views of the same size, as officially.
    Args:
        encoder: (n, C, h, w) -> (n, D) for each size.
        views: V tensors (B, C, h, w); h and w may differ between them.

    Returns:
        (V * B, D), view after view.
    """
    runs = groupby(views, key=lambda view: view.shape[-2:])
    return torch.cat([encoder(torch.cat(list(run))) for _, run in runs])


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Equipartitioned codes by Sinkhorn-Knopp on exp(scores / epsilon) (Caron et al. 2020, section 3.1).

    Alternately, every prototype gets the same total weight over the samples, and every sample the same over
    the prototypes. Samples come last, so each code sums to one; prototypes are used equally only in the
    limit. Computed in log space.

    Args:
        scores: (N, K) similarities of ALL samples of the global batch to the prototypes.
        epsilon: smoothness of the codes; the paper's 0.05. Codes become hard as it approaches 0.
        iterations: the paper's 3.

    Returns:
        (N, K) codes, outside the graph, float32 or better; rows sum to 1.

    Raises:
        ValueError: ``epsilon`` is not positive or ``iterations`` is below 1.
    """
    check_positive(epsilon=epsilon)
    check_at_least(1, iterations=iterations)
    with torch.autocast(scores.device.type, enabled=False):
        # logarithms, since exp(1 / 0.05) overflows float16, and with a small epsilon also float32
        log_q = full_precision(scores) / epsilon  # (N, K)
        for _ in range(iterations):
            log_q = log_q - torch.logsumexp(log_q, dim=0)
            log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
        return log_q.exp()


def swapped_cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """Every view predicts the target of each global view except itself; mean over those pairs and the batch.

    For a target q of view g and the prediction p of view v != g of the same image, both over K prototypes:
    -sum_k q_k log p_k.

    Args:
        log_p: (V, B, K) log-probabilities of all views, global ones first.
        targets: (G, B, K) probabilities of the first G views, without gradient.

    Returns:
        Scalar.
    """
    others = (
        log_p.sum(0) - log_p[: len(targets)]
    )  # (G, B, K): for each target, the sum over the views that predict it
    return -(targets * others).sum(2).mean() / (len(log_p) - 1)


def swav_loss(scores: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Swapped prediction over several crops (Caron et al. 2020, Eq. 2, multi-crop in section 3.2).

    Args:
        scores: (V, B, K) dot products of unit projections with unit prototypes, global views first.
        codes: (2, B, K) codes of the two global views; they get no gradient.
        temperature: softmax temperature of the predictions; the paper's 0.1.

    Returns:
        Scalar, the mean over 2 (V - 1) pairs of views and the batch.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(scores.device.type, enabled=False):
        return swapped_cross_entropy(
            F.log_softmax(full_precision(scores) / temperature, dim=2), codes.detach()
        )


def entropy(p: Tensor) -> Tensor:
    """Mean entropy in nats of distributions along the last dimension; 0 log 0 = 0."""
    return torch.special.entr(p).sum(-1).mean()


def count_the_queue_again(module: nn.Module, _: Any) -> None:
    """Called after a state has been loaded."""
    module.queue_filled = None  # type: ignore[assignment]


class SwAV(SSLModule):
    """SwAV: predict the equipartitioned cluster assignment of one view from another.

    Sinkhorn-Knopp runs over the projections of all processes. Other logged terms: ``code_entropy`` in nats
    (log K = uninformative codes), ``prototypes_used`` (exponential of the entropy of the mean prediction, K =
    all used equally).

    Args:
        encoder: (B, C, H, W) -> (B, num_features), for all view sizes.
        num_prototypes: K. Should not exceed the number of samples assigned together: the global batch plus
            the queue, if any.
        temperature: softmax temperature of the predictions.
        epsilon: smoothness in ``sinkhorn``.
        sinkhorn_iterations: iterations of ``sinkhorn``.
        projector_hidden: width of the projector's hidden layer.
        projector_out: width of the projections z.
        freeze_prototypes_steps: number of optimizer steps during which the prototypes are frozen; the paper's
            epoch of 313.
        queue_size: number of earlier projections, over all processes, that are assigned together with the
            batch; 0 = none. For small batches: the official code uses 3,840 at batch 256. A multiple of the
            global batch.
        queue_start_epoch: epoch from which the queue is filled; it is used once it is full.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True
    batch_keys = ("views",)
    writes_weights = True
    equal_buffers = ("queue",)
    queue: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        projector_hidden: int = 2048,
        projector_out: int = 128,
        freeze_prototypes_steps: int = 313,
        queue_size: int = 0,
        queue_start_epoch: int = 15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature, epsilon=epsilon)
        check_at_least(2, num_prototypes=num_prototypes)
        check_at_least(
            1,
            sinkhorn_iterations=sinkhorn_iterations,
            projector_hidden=projector_hidden,
            projector_out=projector_out,
        )
        check_at_least(
            0,
            freeze_prototypes_steps=freeze_prototypes_steps,
            queue_size=queue_size,
            queue_start_epoch=queue_start_epoch,
        )
        self.encoder = encoder
        self.projector = mlp([encoder.num_features, projector_hidden, projector_out])
        self.prototypes = nn.Linear(projector_out, num_prototypes, bias=False)
        self.temperature, self.epsilon, self.sinkhorn_iterations = temperature, epsilon, sinkhorn_iterations
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.queue_size, self.queue_start_epoch = queue_size, queue_start_epoch
        # projections of the first and of the second global views, newest first, zero = not filled yet
        self.register_buffer("queue", torch.zeros(2, queue_size, projector_out) if queue_size else None)
        # the filled part, kept on the host, so that no step waits for the device; None = to be counted
        self.queue_filled: int | None = None
        self.register_load_state_dict_post_hook(count_the_queue_again)

    def check_batch_size(self, global_batch: int) -> None:
        super().check_batch_size(global_batch)
        expected = f"a multiple of the global batch of {global_batch} (batch_size x processes)"
        check(self.queue_size % global_batch == 0, "queue_size", expected, self.queue_size)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        check_views(type(self).__name__, self.encoder, batch["views"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        z = self.projector(encode_views(self.encoder, views))  # (V * B, D)
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(full_precision(z), dim=1)
            prototypes = self.unit_prototypes()
            scores = (z @ prototypes.T).unflatten(0, (len(views), -1))  # (V, B, K)
            codes = self.codes(z.unflatten(0, (len(views), -1))[:2], prototypes)
        used = F.softmax(scores.detach() / self.temperature, dim=2).mean((0, 1))
        return {
            "loss": swav_loss(scores, codes, self.temperature),
            "code_entropy": entropy(codes),
            "prototypes_used": entropy(used).exp(),
        }

    def unit_prototypes(self) -> Tensor:
        """(K, D) prototypes of unit length.

        In training they are written back, so the optimizer continues from there; the gradient is the one
        without normalization, as in the official code.
        """
        weight = self.prototypes.weight
        with torch.no_grad():
            unit = F.normalize(full_precision(weight), dim=1)
            if not self.training:
                return unit
            weight.copy_(unit)
        return full_precision(weight)

    @torch.no_grad()
    def codes(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """Codes of the global views, each computed over the same view of all processes and the queue.
        Args:
            z: (2, B, D) unit projections of this process.
            prototypes: (K, D), unit.

        Returns:
            (2, B, K) of this process.
        """
        b = z.shape[1]
        rows, place = self.gather(z.transpose(0, 1))  # (W * B, 2, D)
        everyone = rows.transpose(0, 1)  # (2, W * B, D)
        assigned = everyone
        # only a full queue: zeros would be assigned like samples
        if self.queue is not None and self.training and self._filled() == self.queue_size:
            assigned = torch.cat([everyone, self.queue.to(z.dtype)], dim=1)
        codes = [
            sinkhorn(view @ prototypes.T, self.epsilon, self.sinkhorn_iterations)[place : place + b]
            for view in assigned
        ]
        if self.queue is not None and self.training and self.current_epoch >= self.queue_start_epoch:
            self.queue.copy_(torch.cat([everyone, self.queue.to(z.dtype)], dim=1)[:, : self.queue_size])
            self.queue_filled = min(self.queue_size, self._filled() + len(rows))
        return torch.stack(codes)

    def _filled(self) -> int:
        """Number of projections in the queue; only the first call after loading waits for the device."""
        if self.queue_filled is None:
            assert self.queue is not None
            self.queue_filled = int(self.queue.any(2).all(0).sum())
        return self.queue_filled

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step < self.freeze_prototypes_steps:
            # None, not zero: with a zero gradient, momentum and weight decay would still change them
            self.prototypes.weight.grad = None
