"""The callbacks that save checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, Timer

from runtime.checkpoints import BEST, LAST
from runtime.lightning_internals import log_at_global_step, validate_now


class _RunCheckpoint(ModelCheckpoint):
    """One file in the run's checkpoint folder, wherever that folder is now."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = os.path.realpath(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score: Lightning drops it for a run whose folder has moved."""
        assert self.dirpath is not None
        folder = str(self.dirpath)

        def here(path: str) -> str:
            return os.path.join(folder, Path(path).name) if path else path

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": models, "dirpath": folder})


class BestCheckpoint(_RunCheckpoint):
    """``best.ckpt``: the weights of the best validation.

    Args:
        monitor: a logged metric, such as ``val/knn_top1``. Validations that do not log it are skipped.
        mode: whether the highest ("max") or the lowest ("min") value is best.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"]) -> None:
        super().__init__(
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            save_on_train_epoch_end=False,  # after the validation: last.ckpt must contain the new score
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(_RunCheckpoint):
    """``last.ckpt`` at the end of each epoch, after all callbacks whose state it saves."""

    def __init__(self) -> None:
        super().__init__(
            filename=Path(LAST).stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class KeepConfig(Callback):
    """Stores the configuration in ``last.ckpt``, from which a damaged ``config.yaml`` can be rewritten.

    Args:
        config: plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config


class Ending(Checkpoint):
    """Validates at the end of a run, whatever the validation interval, and records who ended it early.

    A resumed run logs at the right step and repeats an interrupted validation, even if it has no step left to
    train. It is a ``Checkpoint`` because Lightning calls those after all other callbacks, when ``Timer`` and
    ``EarlyStopping`` have decided.

    Attributes:
        stopped: why the run ended before its last epoch and step; None if it did not. Stored in
            ``last.ckpt``, so that the next start knows that the run is finished.
        validating: whether a validation is in progress; also stored in ``last.ckpt``.
    """

    def __init__(self) -> None:
        self.stopped: str | None = None
        self.validating = False
        self.resumed = False
        self.validated_at = -1  # step of the last complete validation
        self.lifted: tuple[int, bool] | None = None  # limits of the run, lifted while it starts

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "validating": self.validating}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped = state_dict["stopped"]
        self.validating = state_dict.get("validating", False)  # earlier versions have no such entry

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped is not None:
            trainer.should_stop = True
        if self.validating:  # Lightning does nothing if no step is left
            self.lifted = (trainer.max_steps, trainer.should_stop)
            trainer.fit_loop.epoch_loop.max_steps, trainer.should_stop = -1, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validate_in_last_epoch(trainer)  # also if a run is resumed within it
        if self.lifted is None:
            return
        trainer.fit_loop.epoch_loop.max_steps, trainer.should_stop = self.lifted
        self.lifted = None
        if trainer.fit_loop.done:
            validate_now(trainer)
            if not 0 < trainer.max_steps <= trainer.global_step:
                self.stopped = self.stopped or _reason(trainer)
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / LAST)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validate_in_last_epoch(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.resumed = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.resumed:
            log_at_global_step(trainer)
            self.resumed = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _may_stop(trainer, trainer.current_epoch) or 0 < trainer.max_steps <= trainer.global_step:
            _validate_every_epoch(trainer)
            trainer.should_stop = True  # makes Lightning validate after any batch
        elif trainer.is_last_batch and trainer.check_val_every_n_epoch is None and _in_last_epoch(trainer):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = not trainer.sanity_checking

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = False
        if not trainer.sanity_checking:
            self.validated_at = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        complete = _in_last_epoch(trainer) or 0 < trainer.max_steps <= trainer.global_step
        if not complete and _may_stop(trainer, trainer.current_epoch + 1):
            self.stopped = _reason(trainer)
            if self.validated_at < trainer.global_step:  # asked to stop only at the end of the epoch
                validate_now(trainer)

    @staticmethod
    def _validate_in_last_epoch(trainer: Trainer) -> None:
        if _in_last_epoch(trainer):
            _validate_every_epoch(trainer)


def _in_last_epoch(trainer: Trainer) -> bool:
    return trainer.current_epoch + 1 == trainer.max_epochs


def _validate_every_epoch(trainer: Trainer) -> None:
    if trainer.check_val_every_n_epoch is not None:  # None: by steps only
        trainer.check_val_every_n_epoch = 1


def _may_stop(trainer: Trainer, epochs: int) -> bool:
    """Whether a callback asked to stop, and the minimum numbers of epochs and steps are reached."""
    enough = epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and enough


def _reason(trainer: Trainer) -> str:
    """Who asked to stop and why, in words."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            remaining = callback.time_remaining()
            if remaining is not None and remaining <= 0:
                return "time limit reached"
        if isinstance(callback, EarlyStopping):
            message = getattr(callback, "stopping_reason_message", None)  # lightning 2.6 has it
            if message is None and callback.wait_count >= callback.patience:
                message = f"{callback.monitor} did not improve in {callback.patience} checks"
            if message is not None:
                return f"EarlyStopping: {message.removesuffix('Signaling Trainer to stop.').rstrip('. ')}"
    return "a callback has set trainer.should_stop"
