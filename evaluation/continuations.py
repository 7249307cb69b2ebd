"""What a method makes of the beginning of a sample: the rest of a text, or the lower half of a picture."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from evaluation.callbacks import ImageGrid, last_step, own_noise


class Continuations(Callback):
    """Continuations at validation, drawn by methods that have ``complete(x, keep)``; others are passed over.

    Of the first validation samples the first half is kept. By kind of data, in TensorBoard:

    - tokens (Text tab, ``continuations``): the beginning in bold, then what ``extend(tokens, length)`` adds.
    - images (``completions``): input, its upper half, and three images that begin with it.

    Args:
        num_samples: how many beginnings.
        length: tokens that are added to a text.
        temperature: of the draws; 1 is the model's own distribution.
        top_k: draw among so many likeliest tokens; None for all.
        every_n_epochs: draw at validations of every n-th epoch and of the first and last.
    """

    def __init__(
        self,
        num_samples: int = 4,
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("length", length), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.num_samples, self.length, self.every_n_epochs = num_samples, length, every_n_epochs
        self.options = {"temperature": temperature, "top_k": top_k}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = trainer.current_epoch % self.every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        first = batch_idx == 0 and dataloader_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking
        if not (due and first and hasattr(pl_module, "complete")):
            return
        x = batch["input"][: self.num_samples]
        with trainer.precision_plugin.val_step_context(), own_noise(pl_module.device), torch.no_grad():
            if x.ndim == 4:
                self._pictures(trainer, pl_module, x)
            elif x.ndim == 2 and hasattr(trainer.datamodule, "to_text"):  # type: ignore[attr-defined]
                self._texts(trainer, pl_module, x)

    def _pictures(self, trainer: Trainer, module: LightningModule, x: Tensor) -> None:
        upper = x.clone()
        upper[:, :, x.shape[2] // 2 :] = 0.5
        drawn = [module.complete(x, 0.5, **self.options).to(x.dtype) for _ in range(3)]  # type: ignore[operator]
        ImageGrid._draw(trainer, "completions", [x, upper, *drawn])

    def _texts(self, trainer: Trainer, module: LightningModule, x: Tensor) -> None:
        kept = max(1, x.shape[1] // 2)
        tokens = module.extend(x[:, :kept], self.length, **self.options)  # type: ignore[operator]
        to_text = trainer.datamodule.to_text  # type: ignore[attr-defined]
        # HTML, because Markdown knows no bold that begins or ends with a space
        shown = [f"<strong>{_quoted(to_text(row[:kept]))}</strong>{_quoted(to_text(row[kept:]))}" for row in tokens.cpu()]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("continuations", "\n\n---\n\n".join(shown), last_step(trainer))


def _quoted(text: str) -> str:
    """Text as it is where Markdown is shown: its marks as letters, and line breaks kept."""
    for mark in "\\`*_{}[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", "<br>")
