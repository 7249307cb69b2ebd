"""Callbacks of every run: progress bar, throughput, finite loss."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from datamodules.base import data_of
from datamodules.errors import ConfigError
from evaluation.media import last_step
from runtime.checkpoints import LAST
from runtime.lightning_internals import EpochsFromOne
from sslmodules.networks.sharding import gradient_norm, sum_of_shards

#: Logged name -> name on the terminal, in the order shown.
SHOWN = {"train/loss": "loss", "val/linear_top1": "linear", "val/knn_top1": "kNN"}


class ProgressBar(EpochsFromOne):
    """Rich progress bar with the loss and the last probe accuracies; without a terminal, a line per
    validation.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self.latest: dict[str, float] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        for key, name in SHOWN.items():
            if key in trainer.callback_metrics:
                self.latest[name] = trainer.callback_metrics[key].item()
        return {name: f"{self.latest[name]:.3f}" for name in SHOWN.values() if name in self.latest}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero and not trainer.sanity_checking and not Console().is_terminal:
            metrics = " ".join(
                f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items()
            )
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {trainer.global_step} "
                f"{metrics}",
                flush=True,
            )


class Throughput(Callback):
    """Logs throughput, the share of time spent waiting for data, and GPU memory.

    ``time/samples_per_s`` (all ranks) and ``time/data_wait_share`` (0 to 1) are over the steps since the last
    log; on a GPU, ``time/gpu_memory_gib`` is the peak memory of rank 0's tensors so far. The data wait is the
    time between the end of a training step and the start of the next: fetching, moving, and launching the
    views. The clock is the host's, so nothing waits for the device. Validation is excluded.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples, self.waited, self.busy = 0, 0.0, 0.0
        self.mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.waited, self.mark = self.waited + now - self.mark, now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.busy, self.mark = self.busy + now - self.mark, now
        self.samples += len(batch["input"]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            total = self.busy + self.waited
            rates = {
                "time/samples_per_s": self.samples / total,
                "time/data_wait_share": self.waited / total,
                "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
            if pl_module.device.type == "cuda":
                rates["time/gpu_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            if (data := data_of(trainer)) is not None and data.max_unreadable:
                rates["train/unreadable_files"] = len(data.unreadable_files())
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=last_step(trainer))
            self.reset()


class _Reading(NamedTuple):
    """Loss and gradient norm of a step, being copied to the host."""

    step: int
    epoch: int
    optimizer: int  # its place among the trainer's
    lr: float
    values: Tensor  # (2,) float32 on the host; valid once `arrived`
    arrived: torch.cuda.Event | None


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values on the host; from CUDA without waiting, valid once the event has occurred."""
    if values.device.type != "cuda":
        return values, None
    host = values.to("cpu", non_blocking=True)  # to pinned memory
    arrived = torch.cuda.Event(blocking=True)  # a waiting host sleeps
    arrived.record()
    return host, arrived


class FiniteLoss(Callback):
    """Stops training within one step of a non-finite loss or gradient, and before saving non-finite weights.

    On CPU, values are checked before the optimizer step, so the weights are those of the previous step. On
    CUDA, the two numbers are copied to pinned memory without blocking and checked while the device works on
    the next step: the host is never more than one step ahead, and the device never waits. Validation and
    checkpoints, for which the host waits anyway, first check pending values.

    With a gradient scaler (``16-mixed``), which skips steps with infinite gradients, these are an error only
    after ``max_skipped`` skipped steps in a row; a NaN loss is always an error. ``train/skipped_steps``
    counts skipped steps. ``train/grad_norm`` is the norm of all gradients of a step, before clipping; with
    several optimizers, ``train/grad_norm/0`` is that of the first, and so on.

    Args:
        checkpoint: the run's last checkpoint, for the message; None = the one in the run folder.
        max_skipped: skipped steps in a row. Each halves the scale, initially 65536, so 20 leave it below 1.
    """

    def __init__(self, checkpoint: Path | None = None, max_skipped: int = 20) -> None:
        self.checkpoint, self.max_skipped = checkpoint, max_skipped
        self.skipped, self.skipped_in_a_row = 0, 0
        self.loss: Tensor | None = None  # of the batches since the last optimizer step; stays non-finite
        self.step = 0  # of the batch; for a second optimizer, Lightning's counter is one ahead
        self.pending: _Reading | None = None
        self.norm_before: float | None = None
        self.as_built: set[str] = set()  # non-finite from the start, such as a mask of -inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.as_built = set(_not_finite(trainer, pl_module))
        self.checkpoint = self.checkpoint or Path(trainer.default_root_dir) / "checkpoints" / LAST

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.step = trainer.global_step + 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        loss = loss.detach()
        if (scaler := scaler_of(trainer)) is not None:  # for 16-mixed, it has scaled the loss
            loss = loss / scaler.scale(torch.ones_like(loss))
        self.loss = loss if self.loss is None else self.loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # here, not in the backward pass: all ranks have the same gradients by now, so they stop at the same
        # step
        if self.loss is None:
            return
        norm = gradient_norm(trainer, optimizer, self.loss.device)
        values = torch.stack([self.loss.float(), norm])
        self.loss = None
        values, arrived = _to_host(values)
        before = self.pending
        self.pending = _Reading(
            step=self.step,
            epoch=trainer.current_epoch + 1,
            optimizer=trainer.optimizers.index(optimizer),
            lr=float(optimizer.param_groups[0]["lr"]),
            values=values,
            arrived=arrived,
        )
        if before is not None:
            self._look(before, trainer)
        if arrived is None:
            self._look_at_pending(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at_pending(trainer)  # before the best checkpoint is written
        self._look_at_state(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at_pending(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look_at_pending(trainer)
        self._look_at_state(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.loss = self.pending = None

    def _look_at_pending(self, trainer: Trainer) -> None:
        reading, self.pending = self.pending, None
        if reading is not None:
            self._look(reading, trainer)

    def _look(self, reading: _Reading, trainer: Trainer) -> None:
        """Raise ``ConfigError`` for a step with non-finite numbers."""
        if reading.arrived is not None:
            reading.arrived.synchronize()  # from the step before the current one
        loss, norm = reading.values.tolist()
        scaled = scaler_of(trainer) is not None
        if math.isfinite(loss) and math.isfinite(norm):
            self.norm_before, self.skipped_in_a_row = norm, 0
            if reading.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                tag = "train/grad_norm" + (f"/{reading.optimizer}" if len(trainer.optimizers) > 1 else "")
                for logger in trainer.loggers:
                    logger.log_metrics({tag: norm}, step=reading.step - 1)
            return
        if math.isfinite(loss) and scaled:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": self.skipped}, step=reading.step - 1)
            if self.skipped_in_a_row < self.max_skipped:
                return
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else f"the loss is finite ({loss:.4g}) but its gradient is not"
        )
        what += f" in {self.skipped_in_a_row} steps in a row, last" if scaled and math.isfinite(loss) else ""
        before = "" if self.norm_before is None else f" ({self.norm_before:.3g} in the step before)"
        raise ConfigError(
            f"{what} in step {reading.step} (epoch {reading.epoch}): learning rate {reading.lr:.4g}, "
            f"gradient norm {norm:.3g}{before}. {self._advice()}"
        )

    def _look_at_state(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise ``ConfigError`` if weights or statistics that a checkpoint would contain are not finite.

        This can happen with finite losses: batches are normalized by their own variance, while the running
        variance overflows.
        """
        if wrong := [name for name in _not_finite(trainer, module) if name not in self.as_built]:
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else math.nan
            raise ConfigError(
                f"{wrong[0]}{others} of {type(module).__name__} is not finite after step "
                f"{trainer.global_step}: learning rate {lr:.4g}. {self._advice()}"
            )

    def _advice(self) -> str:
        assert self.checkpoint is not None
        kept = (
            f"{self.checkpoint} is from an earlier step"
            if self.checkpoint.is_file()
            else "no checkpoint has been written yet"
        )
        return (
            f"Training stopped; {kept}. Try a lower learning rate, a longer warm-up, "
            "--trainer.gradient_clip_val 1, or --trainer.precision 32-true"
        )


def scaler_of(trainer: Trainer) -> Any:
    """The gradient scaler of 16-mixed; None in another precision."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _not_finite(trainer: Trainer, module: LightningModule) -> list[str]:
    """Names of parameters and buffers that contain NaN or infinity; the host waits for the device once."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    if not tensors:
        return []
    finite = torch.stack([t.detach().isfinite().all().to(module.device) for t in tensors.values()])
    wrong = sum_of_shards(trainer, (~finite).float()).tolist()
    return [name for name, parts in zip(tensors, wrong, strict=True) if parts]
