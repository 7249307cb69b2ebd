"""Sound in TensorBoard: spectrograms as pictures, and continuations to be heard."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from datamodules.audio import AudioDataModule
from datamodules.mel import valid_frames
from evaluation.callbacks import log_picture, own_noise


def picture(columns: list[Tensor], height: int = 120) -> Tensor:
    """Spectrograms as one picture: a row per clip, high frequencies at the top, white = the loudest of the first column.

    Args:
        columns: each (n, 1, M, T), log-mel in the same units.
        height: of a spectrogram in pixels; a multiple of M as far as that goes.

    Returns:
        (1, H, W) in [0, 1].
    """
    low, high = columns[0].amin(), columns[0].amax()
    enlarge = max(1, height // columns[0].shape[2])
    rows = torch.cat([F.pad(c.flip(2), (2, 2, 1, 1), value=float(low)) for c in columns], 3)  # (n, 1, M + 2, sum of T)
    grey = ((rows - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return F.interpolate(grey, scale_factor=enlarge, mode="nearest").transpose(0, 1).flatten(1, 2)


class Spectrograms(Callback):
    """At validation, of clips; data that is not audio is passed over. By tag:

    - ``spectrograms``, of ``fill(batch) -> (B, 1, M, T)``: input, masked, input with the hidden patches predicted.
    - ``continuations`` (picture and sound), of ``continue_clip(x, steps)``: the clip, and its first half continued. In the
      Audio tab ``clip`` is the first half and the rest as recorded, ``continued`` what the method makes of it; both go
      through the log-mel spectrogram, so that they can be compared.

    Args:
        num_samples: rows.
        every_n_epochs: draw at validations of every n-th epoch and of the first and last.
    """

    def __init__(self, num_samples: int = 4, every_n_epochs: int = 1) -> None:
        for name, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_samples, self.every_n_epochs = num_samples, every_n_epochs

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
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not (due and first and isinstance(data, AudioDataModule)):
            return
        few = {k: v[: self.num_samples] for k, v in batch.items() if isinstance(v, Tensor)}
        x = few["input"]
        with trainer.precision_plugin.val_step_context(), own_noise(pl_module.device), torch.no_grad():
            if hasattr(pl_module, "fill"):
                filled = pl_module.fill(few)  # type: ignore[operator]
                masked = x.masked_fill(few["mask"], float(x.min()))
                self._draw(trainer, "spectrograms", [x, masked, filled])
            if hasattr(pl_module, "continue_clip"):
                self._continue(trainer, pl_module, data, x)

    def _continue(self, trainer: Trainer, module: Any, data: AudioDataModule, x: Tensor) -> None:
        continued = torch.zeros_like(x)
        for row, length in enumerate(valid_frames(x).tolist()):
            half = length // 2
            if half <= module.ahead:
                continue
            continued[row : row + 1, :, :, :length] = module.continue_clip(x[row : row + 1, :, :, :half], length - half)
            if row == 0:
                self._play(trainer, "clip", data, x[:1, :, :, :length])
                self._play(trainer, "continued", data, continued[:1, :, :, :length])
        self._draw(trainer, "continuations", [x, continued])

    @staticmethod
    def _draw(trainer: Trainer, tag: str, columns: list[Tensor]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        log_picture(trainer, tag, picture([data.unstandardise(c.float()) for c in columns]).cpu())

    @staticmethod
    def _play(trainer: Trainer, tag: str, data: AudioDataModule, x: Tensor) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                rate = data.scale.sample_rate
                logger.experiment.add_audio(tag, data.waveform(x)[0].cpu()[None], trainer.global_step, sample_rate=rate)
