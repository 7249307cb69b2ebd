"""Every use of Lightning's private attributes, each with its reason.

Nothing else touches them (tests/test_lightning_internals.py), so a new version of Lightning can break no
other file. Of the project it imports only ``runtime.construction``: any package may import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins import HyperparametersMixin
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers import subprocess_script

from runtime.construction import record


def trainer_of(module: LightningModule | LightningDataModule) -> Trainer | None:
    """The Trainer, or None. ``LightningModule.trainer`` raises an error without one."""
    return module.trainer if isinstance(module, LightningDataModule) else module._trainer


class PlainHyperparameters(HyperparametersMixin):
    """Keeps the constructor's arguments as ``torch.load(weights_only=True)`` can read them: see ``record``.

    ``save_hyperparameters`` has no hook of its own: its ``ignore`` takes names, not kinds of values.
    """

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(record(self, hp))


def set_hyperparameters(module: HyperparametersMixin, values: dict[str, Any]) -> None:
    """What a checkpoint of ``module`` will hold, with the name of its class, which LightningCLI would add."""
    module._set_hparams(values)


def synchronizes_batch_norm(trainer: Trainer) -> bool:
    """Will batch norm be converted (``sync_batchnorm``, several processes)? No public attribute shows it."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None


def log_no_hyperparameters(*objects: HyperparametersMixin) -> None:
    """Lightning hands no hyper-parameters of these to the loggers. Its switch for that came with version 2.6,
    and switches off the graph of the network as well.
    """
    for each in objects:
        each._log_hyperparams = False


def keep_own_signal_handlers(trainer: Trainer) -> None:
    """Lightning installs no handlers and does not vote on SIGTERM: ``Preemption`` does both.

    Its handlers end with status 0 and, under SLURM, save in the middle of a step. For its vote the host waits
    for the GPU in every step. Neither has a switch.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def do_not_observe_processes() -> None:
    """Lightning does not start its thread that silently kills all processes of a run when one of them dies;
    ``peers.Watch`` reports which one died. Lightning has no option for it.
    """
    subprocess_script._launch_process_observer = lambda child_processes: None


def log_at_global_step(trainer: Trainer) -> None:
    """Log at the step that was taken. Resumed at the end of an epoch, Lightning counts one step too many."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def accumulates(trainer: Trainer) -> bool:
    """Is the last batch part of an optimizer step that is still to come?"""
    return trainer.fit_loop._should_accumulate()


def do_not_count_steps(optimizer: LightningOptimizer) -> None:
    """In manual optimization: ``global_step`` counts the other optimizer's steps only.

    Lightning counts the steps of all optimizers, which would halve ``max_steps`` and the schedules.
    """
    optimizer._on_before_step = optimizer._on_after_step = lambda: None


def resolved_config(cli: LightningCLI) -> dict[str, Any]:
    """What was parsed, as plain values; available in ``before_instantiate_classes``, where the run folder is
    chosen.
    """
    cli._dump_config()
    return cli.config_dump


@contextmanager
def before_this_batch(trainer: Trainer) -> Iterator[None]:
    """In ``on_train_batch_start``: the loop's state between two batches, as a checkpoint must hold it.

    Lightning has counted the coming batch already, and has noted whether it is the epoch's last.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    is_last = progress.is_last_batch
    progress.current.ready -= 1
    progress.total.ready -= 1
    progress.is_last_batch = False
    yield
    progress.current.ready += 1
    progress.total.ready += 1
    progress.is_last_batch = is_last


def repeat_validation_when_resumed(trainer: Trainer) -> None:
    """Inside of a validation: a checkpoint written now makes the resumed run validate anew.

    Lightning goes on to the next epoch, unless a validation batch was begun and not processed.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def validate_now(trainer: Trainer) -> None:
    """In ``on_train_epoch_end`` or ``on_train_start``: validate, and log it at the last step.

    Lightning validates after a batch, which is too early for a callback that stops the run at the end of the
    epoch, and never where a run is resumed that has no batch left.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = trainer.global_step - 1
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped = trainer.global_step


class EpochsFromOne(RichProgressBar):
    """Counts epochs from one, as the project's lines do.

    Lightning shows the last of 60 epochs as "Epoch 59/59", and no hook changes that.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + ("" if epochs in (None, -1) else f"/{epochs}")
        return text.ljust(len(self.validation_description))  # or the two bars flicker


def hide_events_from(logger: TensorBoardLogger, step: int) -> None:
    """TensorBoard hides what earlier event files hold for ``step`` and later ones.

    An argument of the ``SummaryWriter``, which is made at the first write; the logger takes it in its
    constructor only, before the step is known.
    """
    logger._kwargs["purge_step"] = step
