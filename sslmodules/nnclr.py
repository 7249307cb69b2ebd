"""NNCLR (Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548).

Contrastive learning in which the positive of a view is not the other view but that view's nearest neighbor
among the embeddings of earlier batches, which are kept in a queue (the support set): another image, most
likely of the same kind.

Differs from the paper: any optimizer can be used instead of LARS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check, check_at_least, check_positive
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder


@torch.no_grad()
def nearest_neighbors(z: Tensor, support: Tensor) -> Tensor:
    """The most similar row of the support set for each embedding, outside the graph.

    Args:
        z: (B, D) embeddings; any scale.
        support: (Q, D) unit vectors.

    Returns:
        (B, D) rows of ``support`` with the largest cosine similarity.
    """
    with torch.autocast(z.device.type, enabled=False):
        return support[(full_precision(z) @ support.to(full_precision(z).dtype).T).argmax(1)]


def neighbor_loss(neighbors: Tensor, p: Tensor, temperature: float = 0.1, offset: int = 0) -> Tensor:
    """Cross entropy of identifying a neighbor's prediction among those of all samples (Dwibedi et al. 2021).

    For the neighbor n_i of one view of sample i, and the predictions p_k of the other views of N samples::

        -log( exp(n_i p_i / T) / sum_k exp(n_i p_k / T) ),   the mean over the local neighbors

    Args:
        neighbors: (B, D) unit vectors.
        p: (N, D) predictions of all ranks, in rank order and with gradients; any scale, normalized here, in
            float32 or better.
        temperature: T > 0; the paper's 0.1.
        offset: row of ``p`` where the predictions for the local neighbors begin.

    Returns:
        Scalar. Its mean over ranks is the loss of one process with the joined batch.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(p.device.type, enabled=False):
        p = F.normalize(full_precision(p), dim=1)
        own = torch.arange(len(neighbors), device=p.device) + offset  # column of each neighbor's prediction
        return F.cross_entropy(neighbors.to(p.dtype) @ p.T / temperature, own)


class NNCLR(SSLModule):
    """NNCLR: contrast the nearest neighbor of one view with the prediction of the other.

    The queue contains the projections of the first views of all ranks in rank order, newest first, and is the
    same on every rank. Beside the loss, ``neighbor_similarity`` is the mean cosine of a projection and its
    neighbor.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        temperature: temperature of ``neighbor_loss``.
        queue_size: number of projections in the queue; a multiple of the global batch.
        projector_hidden: width of the projector's two hidden layers.
        projector_out: width of projections and predictions.
        predictor_hidden: width of the predictor's hidden layer.
        **kwargs: ``SSLModule``'s.
    """

    couples_batch = True
    batch_keys = ("views",)
    two_views = True
    equal_buffers = ("queue", "queue_filled")
    queue: Tensor  # (queue_size, projector_out) unit vectors, newest first
    queue_filled: Tensor  # () int64, number of real projections; the rest are the initial random vectors

    def __init__(
        self,
        encoder: Encoder,
        temperature: float = 0.1,
        queue_size: int = 98304,
        projector_hidden: int = 2048,
        projector_out: int = 256,
        predictor_hidden: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature)
        check_at_least(
            1,
            queue_size=queue_size,
            projector_hidden=projector_hidden,
            projector_out=projector_out,
            predictor_hidden=predictor_hidden,
        )
        self.encoder = encoder
        widths = [encoder.num_features, projector_hidden, projector_hidden, projector_out]
        self.projector = mlp(widths, last_norm=True)
        self.predictor = mlp([projector_out, predictor_hidden, projector_out])
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projector_out), dim=1))
        self.register_buffer("queue_filled", torch.zeros((), dtype=torch.long))
        self.temperature, self.queue_size = temperature, queue_size

    def check_batch_size(self, global_batch: int) -> None:
        super().check_batch_size(global_batch)
        expected = f"a multiple of the global batch of {global_batch} (batch_size x processes)"
        check(self.queue_size % global_batch == 0, "queue_size", expected, self.queue_size)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # view by view: batch statistics are those of one view
        z1, z2 = (self.projector(self.encoder(view)) for view in batch["views"][:2])  # (B, D) each
        p1, offset = self.gather(self.predictor(z1))  # (W * B, D)
        p2, _ = self.gather(self.predictor(z2))
        n1, n2 = nearest_neighbors(z1, self.queue), nearest_neighbors(z2, self.queue)  # (B, D) each
        loss = neighbor_loss(n1, p2, self.temperature, offset)
        loss = (loss + neighbor_loss(n2, p1, self.temperature, offset)) / 2
        similarity = F.cosine_similarity(z1.detach(), n1.to(z1.dtype)).mean()
        if self.training:  # after the queue was used: a view is not its own neighbor
            self._push(self.gather(z1.detach()).rows)
        return {
            "loss": loss,
            "neighbor_similarity": similarity,
            "queue_fill": self.queue_filled / self.queue_size,
        }

    @torch.no_grad()
    def _push(self, z: Tensor) -> None:
        """Add the newest projections, drop the oldest."""
        z = F.normalize(full_precision(z), dim=1).to(self.queue.dtype)
        self.queue = torch.cat([z, self.queue])[: self.queue_size]
        self.queue_filled = (self.queue_filled + len(z)).clamp(max=self.queue_size)
