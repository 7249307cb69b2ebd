"""Saves between two steps, and stops all processes together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from datamodules.checks import check_positive
from runtime.lightning_internals import (
    accumulates,
    before_this_batch,
    keep_own_signal_handlers,
    repeat_validation_when_resumed,
)
from runtime.peers import Exchange, meet
from runtime.signals import Preempted, StopRequest, receiver

PAUSE = 0.25  # minimum seconds between two votes in training
MOST = 10  # maximum number of batches between two votes


class Preemption(Checkpoint):
    """Saves at intervals and on signals, always between two optimizer steps, and ends the run if asked.

    A signal may reach one rank or all, so the ranks vote: after a training batch, and after each validation
    batch that all ranks have, every rank sends the greatest request it has received and reads the greatest of
    all. Votes go through the rendezvous store and are read at the next vote, so no rank waits, and the GPU is
    not involved. All ranks act at the same step, at the latest at the second vote after the signal. If
    batches take less than ``PAUSE`` seconds, there is one vote for as many batches as fit into it, at most
    ``MOST``, because half a millisecond per vote would be some percent of such a step; the number is part of
    the vote, so that all ranks have the same.

    This replaces Lightning's handlers, which end with status 0 and, under SLURM, save in the middle of a
    step, and Lightning's own vote on SIGTERM, for which the host waits for the GPU in every step.

    Saving happens at the start of the next batch, before anything is computed, when all other callbacks have
    processed the previous batch and its values are logged. If asked to end during a validation, the run saves
    its state before it, and a resumed run repeats the validation.

    Args:
        last: the checkpoint.
        every_n_steps: save every so many optimizer steps; None = not by steps.
        every_minutes: save when the last save is this long ago (each epoch's end saves, too); None = not by
            time.

    Raises:
        ValueError: an interval is not positive.
    """

    def __init__(
        self, last: Path, every_n_steps: int | None = None, every_minutes: float | None = None
    ) -> None:
        check_positive(save_every_n_steps=every_n_steps, save_every_minutes=every_minutes)
        self.last, self.every_n_steps, self.every_minutes = last, every_n_steps, every_minutes
        self.request = StopRequest.NONE  # of all ranks; the same on each
        self.ballots: Exchange | None = None  # of all ranks; None for a single process
        self.under_way = False  # whether a vote was sent but not read yet
        self.pace = 1  # training batches between two votes; the same on each rank
        self.batches = 0  # training batches since the last vote
        self.voted_at = time.monotonic()
        self.saved_at = time.monotonic()
        self.common_batches: list[
            float
        ] = []  # number of batches that every rank has, for each validation loader

    # ---- the vote ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        keep_own_signal_handlers(trainer)
        receiver.raises = ()
        if trainer.world_size > 1:
            meet()
            self.ballots = Exchange()
        self._vote(trainer)
        self._count()
        if self.request >= StopRequest.END:  # nothing has been trained since the checkpoint
            raise Preempted(self.request)

    def _vote(self, trainer: Trainer) -> None:
        """Read the pending vote and send the next one."""
        mine = receiver.take()
        if (
            trainer.is_global_zero
            and self.every_minutes
            and time.monotonic() - self.saved_at > 60 * self.every_minutes
        ):
            mine = max(mine, StopRequest.DUE)
        if self.ballots is None:
            self.request = max(self.request, mine)
            return
        self._count()
        now = time.monotonic()
        fit = (
            PAUSE * self.batches / max(now - self.voted_at, 1e-6)
        )  # none in a validation: the next vote follows at once
        self.batches, self.voted_at = 0, now
        self.ballots.send(f"{int(mine)} {min(max(int(fit), 1), MOST)}")
        self.under_way = True

    def _count(self) -> None:
        if self.ballots is not None and self.under_way:
            self.under_way = False
            ballots = [tuple(map(int, line.split())) for line in self.ballots.receive()]
            request, self.pace = (max(column) for column in zip(*ballots, strict=True))
            self.request = max(self.request, StopRequest(request))

    # ---- training ------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.request == StopRequest.NONE:
            return
        with before_this_batch(trainer):
            if not accumulates(trainer):  # otherwise the accumulated gradients would be lost
                self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self.ballots is None or self.batches >= self.pace:
            self._vote(trainer)
        stepped = not accumulates(trainer)
        if self.every_n_steps and stepped and trainer.global_step % self.every_n_steps == 0:
            self.request = max(self.request, StopRequest.DUE)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved(trainer)  # by the callback before this one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._vote(trainer)
        self._count()

    def end_if_asked(self) -> None:
        """Called after the last step: raise Preempted if a rank has been asked to end."""
        if self.request >= StopRequest.END:
            raise Preempted(self.request)

    # ---- validation ----------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self.common_batches = [float(number) for number in batches]
        if self.ballots is not None:
            self._count()  # ballots are read in the order in which they were sent
            lines = self.ballots.share(json.dumps(self.common_batches))
            self.common_batches = [min(column) for column in zip(*map(json.loads, lines), strict=True)]
        self._leave_validation(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx < self.common_batches[dataloader_idx]:
            self._vote(trainer)
            self._leave_validation(trainer)

    def _leave_validation(self, trainer: Trainer) -> None:
        if self.request < StopRequest.END:
            return
        if not trainer.sanity_checking:
            if accumulates(trainer):
                return
            repeat_validation_when_resumed(trainer)
            self._save(trainer)
        raise Preempted(self.request)

    # ---- saving --------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved(trainer)
        self._leave(trainer)

    def _saved(self, trainer: Trainer) -> None:
        self.saved_at = time.monotonic()
        if self.request < StopRequest.END:
            self.request = StopRequest.NONE
            return
        trainer.strategy.checkpoint_io.teardown()  # the last save must finish
        if trainer.is_global_zero:
            print(f"saved {self.last} at step {trainer.global_step}", flush=True)

    def _leave(self, trainer: Trainer) -> None:
        if self.request >= StopRequest.END:
            raise Preempted(self.request)
