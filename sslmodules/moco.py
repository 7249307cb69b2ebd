"""MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297).

A query (one view) has to identify its key (the other view) among the keys of earlier batches in a queue (He
et al. 2019, https://arxiv.org/abs/1911.05722). Keys come from a momentum copy of the network, which keeps the
queue consistent.

Differs from the official code: the momentum copy is updated after each optimizer step instead of before the
next batch, which is the same sequence. Images are not shuffled between GPUs for batch norm: either the
statistics are those of all GPUs (``--trainer.sync_batchnorm true``), or ``batch_norm_groups`` shuffles within
each device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check, check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from runtime.lightning_internals import synchronizes_batch_norm
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import MomentumCopy
from sslmodules.networks.encoder import Encoder


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE: each query against its key and a shared set of negatives (He et al. 2019), batch mean.
    For a query q with its key k+, and K negatives k_i::

        -log( exp(q k+ / T) / (exp(q k+ / T) + sum_i exp(q k_i / T)) )

    Args:
        q: (B, D) queries; any scale, normalized here, in float32 or better.
        k: (B, D) keys; row i is paired with row i of ``q``; normalized as well.
        negatives: (K, D) unit vectors.
        temperature: T > 0; 0.07 in MoCo, 0.2 in MoCo v2.

    Returns:
        Scalar.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    check_positive(temperature=temperature)
    with torch.autocast(q.device.type, enabled=False):
        q, k = F.normalize(full_precision(q), dim=1), F.normalize(full_precision(k), dim=1)
        positive = (q * k).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, q @ negatives.to(q.dtype).T], dim=1) / temperature  # (B, 1 + K)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


class MoCo(SSLModule):
    """MoCo v2: contrast a query with its key and with a queue of earlier keys.

    The queue contains the keys of all ranks in rank order, newest first, and is the same on every rank.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        temperature: temperature of ``info_nce``.
        momentum: momentum of the key encoder, in [0, 1), constant.
        queue_size: number of keys in the queue; a multiple of the global batch.
        projector_hidden: width of the projector's hidden layer; None = ``encoder.num_features``, as in the
            paper.
        projector_out: width of queries and keys.
        batch_norm_groups: 1 = statistics of the whole batch. More: each device's batch is split into this
            many groups with their own statistics, keys in random order, so that a query and its key share
            none (as the official code does between GPUs).
        **kwargs: ``SSLModule``'s.
    """

    batch_keys = ("views",)
    two_views = True
    equal_buffers = ("queue", "queue_filled")
    queue: Tensor  # (queue_size, projector_out) unit vectors, newest first
    queue_filled: Tensor  # () int64, number of real keys; the rest are the initial random vectors

    def __init__(
        self,
        encoder: Encoder,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue_size: int = 65536,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        batch_norm_groups: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature)
        check_within(0, 1, "[)", momentum=momentum)
        check_at_least(
            1,
            queue_size=queue_size,
            projector_out=projector_out,
            batch_norm_groups=batch_norm_groups,
            projector_hidden=projector_hidden,
        )
        width = encoder.num_features
        hidden = projector_hidden or width
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, projector_out)
        )  # no batch norm
        self.teacher = MomentumCopy(nn.Sequential(self.encoder, self.projector))
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projector_out), dim=1))
        self.register_buffer("queue_filled", torch.zeros((), dtype=torch.long))
        self.temperature, self.momentum, self.queue_size = temperature, momentum, queue_size
        self.batch_norm_groups = batch_norm_groups

    def check_batch_size(self, global_batch: int) -> None:
        super().check_batch_size(global_batch)
        expected = f"a multiple of the global batch of {global_batch} (batch_size x processes)"
        check(self.queue_size % global_batch == 0, "queue_size", expected, self.queue_size)
        per_device = global_batch // self.world_size
        if self.batch_norm_groups > 1:
            expected = f"at most half of each device's batch of {per_device} (a group needs two samples)"
            check(
                2 * self.batch_norm_groups <= per_device,
                "batch_norm_groups",
                expected,
                self.batch_norm_groups,
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.batch_norm_groups > 1 and synchronizes_batch_norm(self.trainer):
            raise ConfigError(
                f"batch_norm_groups {self.batch_norm_groups} gives each group its own statistics, but "
                "trainer.sync_batchnorm true shares them among all processes: give --trainer.sync_batchnorm "
                "false, or --model.batch_norm_groups 1"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        queries, keys = batch["views"][:2]
        q = self._in_groups(nn.Sequential(self.encoder, self.projector), queries)  # (B, D)
        k = self._keys(keys)  # (B, D)
        terms = {
            "loss": info_nce(q, k, self.queue, self.temperature),
            "queue_fill": self.queue_filled / self.queue_size,
        }
        if self.training:  # after the queue was used: a key is not a negative of its own query
            self._push(self.gather(k).rows)
        return terms

    def update_teacher(self) -> None:
        self.teacher.update(nn.Sequential(self.encoder, self.projector), self.momentum)

    def _in_groups(self, network: nn.Module, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), in ``batch_norm_groups`` passes during training."""
        if not self.training or self.batch_norm_groups == 1:
            return network(x)
        return torch.cat(
            [network(part) for part in x.tensor_split(self.batch_norm_groups)]
        )  # sizes differ by at most one

    @torch.no_grad()
    def _keys(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) unit vectors of the momentum copy, outside the graph."""
        if self.training and self.batch_norm_groups > 1:
            order = self.rand(len(x)).argsort()
            k = self._in_groups(self.teacher, x[order])[order.argsort()]
        else:
            k = self.teacher(x)
        return F.normalize(full_precision(k), dim=1)

    @torch.no_grad()
    def _push(self, keys: Tensor) -> None:
        """Add the newest keys, drop the oldest, in a new tensor: this step's graph still needs the old
        one.
        """
        self.queue = torch.cat([keys.to(self.queue.dtype), self.queue])[: self.queue_size]
        self.queue_filled = (self.queue_filled + len(keys)).clamp(max=self.queue_size)
