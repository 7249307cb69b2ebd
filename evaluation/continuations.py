"""What a method makes of the beginning of a sample: the rest of a text, or the lower half of a picture."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.checks import check_at_least
from evaluation.media import FirstSamples, last_step, log_columns


class Continuations(FirstSamples):
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
        super().__init__(num_samples, every_n_epochs)
        check_at_least(1, length=length, top_k=top_k)
        check_at_least(0, temperature=temperature)
        self.length, self.options = length, {"temperature": temperature, "top_k": top_k}

    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        x = batch["input"]
        if not hasattr(module, "complete"):
            return
        if x.ndim == 4:
            self._pictures(trainer, module, x)
        elif x.ndim == 2 and hasattr(trainer.datamodule, "to_text"):  # type: ignore[attr-defined]
            self._texts(trainer, module, x)

    def _pictures(self, trainer: Trainer, module: LightningModule, x: Tensor) -> None:
        upper = x.clone()
        upper[:, :, x.shape[2] // 2 :] = 0.5
        drawn = [module.complete(x, 0.5, **self.options).to(x.dtype) for _ in range(3)]  # type: ignore[operator]
        log_columns(trainer, "completions", [x, upper, *drawn])

    def _texts(self, trainer: Trainer, module: LightningModule, x: Tensor) -> None:
        kept = max(1, x.shape[1] // 2)
        tokens = module.extend(x[:, :kept], self.length, **self.options)  # type: ignore[operator]
        to_text = trainer.datamodule.to_text  # type: ignore[attr-defined]
        # HTML, because Markdown knows no bold that begins or ends with a space
        shown = [
            f"<strong>{_quoted(to_text(row[:kept]))}</strong>{_quoted(to_text(row[kept:]))}"
            for row in tokens.cpu()
        ]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("continuations", "\n\n---\n\n".join(shown), last_step(trainer))


def _quoted(text: str) -> str:
    """Text as it is where Markdown is shown: its marks as letters, and line breaks kept."""
    for mark in "\\`*_{}[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", "<br>")
