"""Every use of Lightning's private attributes, each with its reason.

No other file uses them (tests/test_lightning_internals.py), so a new version of Lightning can break only this
one. It imports only ``runtime.construction`` from the project, so any package may import it.
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
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

from runtime.construction import record


def trainer_of(module: LightningModule | LightningDataModule) -> Trainer | None:
    """The Trainer, or None. ``LightningModule.trainer`` raises an error without one."""
    return module.trainer if isinstance(module, LightningDataModule) else module._trainer


class PlainHyperparameters(HyperparametersMixin):
    """Stores the constructor's arguments so that ``torch.load(weights_only=True)`` can read them.

    See ``record``. ``save_hyperparameters`` has no hook for this: its ``ignore`` takes names, not kinds of
    values.
    """

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(record(self, hp))


def set_hyperparameters(module: HyperparametersMixin, values: dict[str, Any]) -> None:
    """Set the hyper-parameters that checkpoints of ``module`` store, with the name of its class.

    LightningCLI would add that name itself.
    """
    module._set_hparams(values)


def synchronizes_batch_norm(trainer: Trainer) -> bool:
    """Whether batch norm will be converted (``sync_batchnorm``, several processes): no public attribute."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None


def saves_one_file(strategy: FSDPStrategy) -> bool:
    """Whether the checkpoints of FSDP are one file, not a folder with a file of each process."""
    return strategy._state_dict_type == "full"


def log_no_hyperparameters(*objects: HyperparametersMixin) -> None:
    """Keep Lightning from logging these hyper-parameters.

    Its own switch exists since version 2.6 only, and also turns off the graph of the network.
    """
    for each in objects:
        each._log_hyperparams = False


def keep_own_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from installing signal handlers and voting on SIGTERM; ``Preemption`` does both.

    Lightning's handlers end with status 0 and, under SLURM, save in the middle of a step. For its vote, the
    host waits for the GPU in every step. Neither can be switched off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def do_not_observe_processes() -> None:
    """Keep Lightning from starting a thread that silently kills all processes of a run when one dies.

    ``peers.Watch`` reports which one died. Lightning has no option for it.
    """
    subprocess_script._launch_process_observer = lambda child_processes: None


def log_at_global_step(trainer: Trainer) -> None:
    """Log at the actual step: resumed at the end of an epoch, Lightning counts one step too many."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def accumulates(trainer: Trainer) -> bool:
    """Whether the last batch belongs to an optimizer step that is still to come."""
    return trainer.fit_loop._should_accumulate()


def do_not_count_steps(optimizer: LightningOptimizer) -> None:
    """In manual optimization: exclude this optimizer's steps from ``global_step``.

    Lightning counts the steps of all optimizers, which would halve ``max_steps`` and the schedules.
    """
    optimizer._on_before_step = optimizer._on_after_step = lambda: None


def resolved_config(cli: LightningCLI) -> dict[str, Any]:
    """The parsed configuration as plain values, for ``before_instantiate_classes``, which chooses the
    folder.
    """
    cli._dump_config()
    return cli.config_dump


@contextmanager
def before_this_batch(trainer: Trainer) -> Iterator[None]:
    """In ``on_train_batch_start``: restore the loop's state between two batches, for a checkpoint.

    Lightning has already counted the coming batch, and recorded whether it is the epoch's last.
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
    """During a validation: make a run resumed from a checkpoint written now validate again.

    Lightning continues with the next epoch, unless a validation batch was started but not processed.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def validate_now(trainer: Trainer) -> None:
    """In ``on_train_epoch_end`` or ``on_train_start``: validate, and log at the last step.

    Lightning validates after a batch, which is too early for a callback that stops the run at the end of the
    epoch, and never if a resumed run has no batch left.
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
        return text.ljust(len(self.validation_description))  # otherwise the two bars flicker


def hide_events_from(logger: TensorBoardLogger, step: int) -> None:
    """Make TensorBoard hide the entries of earlier event files for ``step`` and later ones.

    It is an argument of the ``SummaryWriter``, created at the first write; the logger accepts it only in its
    constructor, before the step is known.
    """
    logger._kwargs["purge_step"] = step
