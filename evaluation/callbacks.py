"""Callbacks that evaluate during training: probes and collapse metrics.

The loaders are ``[val, bank]`` and ``validation_step`` returns ``{"features": (B, D)}``. No callback here
iterates a loader, touches the method's loss, or calls its ``forward`` with gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from datamodules.base import data_of
from datamodules.checks import check_at_least, check_positive
from evaluation.accuracy import top1
from evaluation.measures.health import alignment, collapse_report
from evaluation.media import log_texts
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import fit_linear_probe
from sslmodules.networks.sharding import with_whole_weights


def gather_in_order(local: Tensor, trainer: Trainer) -> Tensor | None:
    """All ranks' rows in the order of ``ShardSampler`` (rank r has rows r, r + W, ...), on rank 0 only.
    Args:
        local: (n_r, ...) rows of this rank; numbers may differ by one between ranks.

    Returns:
        (sum of n_r, ...) on rank 0, None on the others.
    """
    if trainer.world_size == 1:
        return local
    counts = trainer.strategy.all_gather(torch.tensor(len(local), device=local.device)).flatten()  # (W,)
    longest = int(counts.max())
    if len(local) < longest:
        local = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    if not trainer.is_global_zero:
        distributed.gather(local.contiguous(), dst=0)
        return None
    everyone = local.new_empty(trainer.world_size, *local.shape)  # (W, longest, ...)
    distributed.gather(local.contiguous(), list(everyone.unbind()), dst=0)
    # after interleaving, the padding of ranks with fewer rows comes after the last real row
    return everyone.transpose(0, 1).flatten(0, 1)[: int(counts.sum())]


class MetricsCallback(Callback):
    """A callback that lists the metrics it logs, so that monitors can be checked before training."""

    def metrics(self, data: Any) -> list[str]:
        """Names of the metrics logged for a DataModule."""
        return []


class FeatureProbe(MetricsCallback):
    """At validation: a linear probe and weighted kNN, fitted anew on the bank and evaluated on val.

    Logs ``val/linear_top1`` and ``val/knn_top1``: accuracies of the current encoder, over all ranks, with
    each sample counted once. Both use validation data and fixed settings; the test split is left to
    ``eval.py``. On data without labels it prints a note once and does nothing.

    Args:
        every_n_validations: run at every n-th validation.
        l2: L2 penalty of the linear probe, on standardized features.
        knn_k: number of neighbors (20 in Caron et al. 2021); at most the bank's size is used.
        knn_temperature: T of the votes exp(similarity / T).
    """

    def __init__(
        self, every_n_validations: int = 1, l2: float = 1e-4, knn_k: int = 20, knn_temperature: float = 0.07
    ) -> None:
        check_at_least(1, every_n_validations=every_n_validations, knn_k=knn_k)
        check_positive(l2=l2, knn_temperature=knn_temperature)
        self.every_n_validations, self.l2, self.knn_k, self.knn_temperature = (
            every_n_validations,
            l2,
            knn_k,
            knn_temperature,
        )
        self.validations = 0
        self.rows: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def metrics(self, data: Any) -> list[str]:
        return [] if data.num_classes is None else ["val/linear_top1", "val/knn_top1"]

    def state_dict(self) -> dict[str, int]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.validations = state_dict["validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._num_classes(trainer) is None:
            rank_zero_info("This data has no labels: training without probes.")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = {0: [], 1: []}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and self._num_classes(trainer) is not None:
            self.rows[dataloader_idx].append((outputs["features"], batch["label"]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_classes = self._num_classes(trainer)
        if trainer.sanity_checking or num_classes is None:
            return
        self.validations += 1
        if self.validations % self.every_n_validations:
            return
        val, bank = (self._collect(trainer, i) for i in (0, 1))
        accuracies = [0.0, 0.0]
        if val is not None and bank is not None:
            probe = fit_linear_probe(*bank, num_classes, l2=self.l2)
            k = min(self.knn_k, len(bank[0]))
            votes = knn_predict(val[0], *bank, num_classes, k=k, temperature=self.knn_temperature)
            accuracies = [top1(probe.predict(val[0]), val[1]), top1(votes, val[1])]
        # numbers, because tensors would be received in the memory of GPU 0
        linear, knn = trainer.strategy.broadcast(accuracies)
        # every rank logs the same value, because every rank's checkpoint callback decides by it
        pl_module.log_dict({"val/linear_top1": linear, "val/knn_top1": knn})
        self.rows = {}

    def _collect(self, trainer: Trainer, dataloader_idx: int) -> tuple[Tensor, Tensor] | None:
        """Labeled features of all ranks on rank 0, None on the others."""
        parts = (torch.cat(rows) for rows in zip(*self.rows[dataloader_idx], strict=True))
        features, labels = (gather_in_order(rows, trainer) for rows in parts)
        if features is None or labels is None:
            return None
        known = labels >= 0
        return features[known], labels[known]

    @staticmethod
    def _num_classes(trainer: Trainer) -> int | None:
        data = data_of(trainer)
        return None if data is None else data.num_classes


class OnlineLinearProbe(MetricsCallback):
    """A linear head trained on each training batch's features: a curve over steps, at extra cost.

    It embeds the clean ``input`` in eval mode without gradients, and has its own head and optimizer: the
    backbone's gradients, batch statistics, clipping and gradient scaling are bit for bit the same with and
    without it. Its accuracy lags behind the true one, because the encoder keeps changing: report
    ``FeatureProbe`` or ``eval.py``. Logs ``train/online_top1``.

    Args:
        lr: learning rate of its Adam optimizer.
    """

    def __init__(self, lr: float = 1e-3) -> None:
        check_positive(lr=lr)
        self.lr = lr
        self.head: nn.Module | None = None
        self.restored: dict[str, Any] | None = None

    def metrics(self, data: Any) -> list[str]:
        return [] if data.num_classes is None else ["train/online_top1"]

    def state_dict(self) -> dict[str, Any]:
        if self.head is None:
            return {}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict or None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        num_classes = None if data is None else data.num_classes
        if num_classes is None:
            rank_zero_info("This data has no labels: training without an online probe.")
            return
        width: Any = pl_module.encoder.num_features  # type: ignore[union-attr]
        with torch.random.fork_rng(
            devices=[]
        ):  # building the head must not change the method's random numbers
            linear = nn.Linear(int(width), num_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        # only for its running statistics: the head sees standardized features, whatever their scale
        self.head = nn.Sequential(nn.BatchNorm1d(int(width), affine=False), linear).to(pl_module.device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.lr)
        if self.restored:
            self.head.load_state_dict(self.restored["head"])
            self.optimizer.load_state_dict(self.restored["optimizer"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.head is None:
            return
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            features = with_whole_weights(trainer, pl_module, batch["input"]).flatten(1).float()
        for module, training in modes.items():
            module.training = training
        labels = batch["label"]
        with torch.enable_grad():
            logits = self.head(features)
            # -1 = unknown label: excluded from the loss and the accuracy
            loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / (
                labels >= 0
            ).sum().clamp(min=1)
            self.optimizer.zero_grad()
            loss.backward()
        if trainer.world_size > 1:
            for parameter in self.head.parameters():
                parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self.optimizer.step()
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            right = (logits.argmax(1) == labels).sum() / (labels >= 0).sum().clamp(min=1)
            pl_module.log("train/online_top1", right)


class CollapseMetrics(MetricsCallback):
    """Collapse diagnostics on validation features: RankMe, feature std, alignment and uniformity.

    Logs ``val/rankme`` (at most min(N, D)), ``val/feature_std`` (1 if isotropic, 0 if collapsed),
    ``val/uniformity`` and, with views, ``val/alignment`` of the first two. A collapsed representation is
    reported in the terminal and in the loggers (``warning``), with the measured value and advice.

    Args:
        max_samples: maximum number of validation samples; the cost grows with its square.
    """

    def __init__(self, max_samples: int = 2048) -> None:
        check_at_least(2, max_samples=max_samples)
        self.max_samples = max_samples
        self.features: list[Tensor] = []
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.warned = False

    def metrics(self, data: Any) -> list[str]:
        return [f"val/{name}" for name in ("collapsed", "rankme", "feature_std", "uniformity", "alignment")]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.features, self.pairs = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (
            trainer.sanity_checking
            or dataloader_idx != 0
            or sum(map(len, self.features)) * trainer.world_size >= self.max_samples
        ):
            return
        self.features.append(outputs["features"])
        views = batch.get("views", [])
        if len(views) >= 2 and views[0].shape == views[1].shape:
            with trainer.precision_plugin.val_step_context():
                pair = with_whole_weights(trainer, lambda *pair: [*map(pl_module, pair)], *views[:2])
            h1, h2 = (h.flatten(1).float() for h in pair)
            self.pairs.append((h1, h2))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.features:
            return
        features = gather_in_order(torch.cat(self.features), trainer)
        pairs = [gather_in_order(torch.cat(h), trainer) for h in zip(*self.pairs, strict=True)]
        values: dict[str, Any] = {}
        if features is not None and len(features) >= 2:
            values = collapse_report(features[: self.max_samples])
            if "rankme" in values and pairs:
                values["alignment"] = alignment(*pairs)  # type: ignore[arg-type]
        values = trainer.strategy.broadcast(values)  # numbers and text: see ``FeatureProbe``
        if not values:
            return
        reason = values["collapsed"]
        values["collapsed"] = float(reason is not None)
        pl_module.log_dict({f"val/{name}": float(v) for name, v in values.items() if name != "samples"})
        if reason and not self.warned:
            self.warned = True
            text = (
                f"the representation has collapsed at step {trainer.global_step}: {reason}. Probes will be "
                "at chance level. Check the learning rate, the stop-gradient and the batch size"
            )
            rank_zero_warn(text)
            if trainer.is_global_zero:
                log_texts(trainer, "warning", ["warning"], [[text]])
        self.features, self.pairs = [], []
