"""What a run tells while it trains: a progress bar with the probe's accuracy, and where the time goes."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

#: Logged name -> name on the terminal, in the order shown.
SHOWN = {"train/loss": "loss", "val/linear_top1": "linear", "val/knn_top1": "kNN"}


class ProgressBar(RichProgressBar):
    """Rich progress bar with the loss and the last probe accuracies; a line per validation where there is no terminal."""

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
            metrics = " ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {trainer.global_step} {metrics}",
                flush=True,
            )


class Throughput(Callback):
    """Logs ``time/samples_per_s`` (all ranks) and ``time/data_wait_share`` (0 to 1) over the steps since the last log.

    The data wait is the time between the end of a training step and the start of the next: fetching, moving, and launching the
    views. The clock is the host's, so nothing waits for the device; validation is left out.
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
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
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=trainer.global_step)
            self.reset()
