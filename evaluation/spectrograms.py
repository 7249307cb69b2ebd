"""Sound in TensorBoard: spectrograms as pictures, and continuations to be heard."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from datamodules.audio.mel import valid_frames
from datamodules.audio.module import AudioDataModule
from evaluation.media import FirstSamples, last_step, log_picture


def as_shown(columns: list[Tensor], data: AudioDataModule) -> list[Tensor]:
    """Standardized log-mel, each (B, 1, M, T), in its own units, -inf where the first one has padding
    frames.
    """
    sound = (columns[0] != 0).any(2, keepdim=True)
    return [data.unstandardize(c.float()).masked_fill(~sound, float("-inf")) for c in columns]


def picture(columns: list[Tensor], height: int = 120) -> Tensor:
    """Spectrograms as one picture with white lines between: a row per clip, high frequencies at the top.

    Args:
        columns: each (n, 1, M, T), log-mel in the same units, -inf where nothing is to be seen. Black to
            white is the range of the first column; -inf is black.
        height: of a spectrogram in pixels; a multiple of M as far as that goes.

    Returns:
        (1, H, W) in [0, 1].
    """
    sound = columns[0][columns[0].isfinite()]
    low, high = (float(sound.amin()), float(sound.amax())) if len(sound) else (0.0, 1.0)
    enlarge = max(1, height // columns[0].shape[2])
    rows = torch.cat(
        [F.pad(c.flip(2), (1, 1, 1, 1), value=high) for c in columns], 3
    )  # (n, 1, M + 2, sum of T)
    gray = ((rows - low) / max(high - low, 1e-6)).clamp(0, 1)
    return F.interpolate(gray, scale_factor=enlarge, mode="nearest").transpose(0, 1).flatten(1, 2)


class Spectrograms(FirstSamples):
    """At validation, of clips; data that is not audio is passed over. By tag:

    - ``spectrograms``, of ``fill(batch) -> (B, 1, M, T)``: input, masked, input with the hidden patches
      predicted.
    - ``continuations`` (picture and sound), of ``continue_clip(x, steps)``: the clip, and its first half
      continued. In the Audio tab ``clip`` is the first half and the rest as recorded, ``continued`` what the
      method makes of it; both go through the log-mel spectrogram, so that they can be compared.

    Args:
        num_samples: rows.
        every_n_epochs: draw at validations of every n-th epoch and of the first and last.
    """

    def __init__(self, num_samples: int = 4, every_n_epochs: int = 1) -> None:
        super().__init__(num_samples, every_n_epochs)

    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        data, x = trainer.datamodule, batch["input"]  # type: ignore[attr-defined]
        if not isinstance(data, AudioDataModule):
            return
        if hasattr(module, "fill"):
            masked = x.masked_fill(batch["mask"], float("-inf"))
            self._draw(trainer, "spectrograms", [x, masked, module.fill(batch)])
        if hasattr(module, "continue_clip"):
            self._continue(trainer, module, data, x)

    def _continue(self, trainer: Trainer, module: Any, data: AudioDataModule, x: Tensor) -> None:
        continued = torch.zeros_like(x)
        for row, length in enumerate(valid_frames(x).tolist()):
            half = length // 2
            if half <= module.ahead:
                continue
            continued[row : row + 1, :, :, :length] = module.continue_clip(
                x[row : row + 1, :, :, :half], length - half
            )
            if row == 0:
                self._play(trainer, "clip", data, x[:1, :, :, :length])
                self._play(trainer, "continued", data, continued[:1, :, :, :length])
        self._draw(trainer, "continuations", [x, continued])

    @staticmethod
    def _draw(trainer: Trainer, tag: str, columns: list[Tensor]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        log_picture(trainer, tag, picture(as_shown(columns, data)).cpu())

    @staticmethod
    def _play(trainer: Trainer, tag: str, data: AudioDataModule, x: Tensor) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                rate = data.scale.sample_rate
                logger.experiment.add_audio(
                    tag, data.waveform(x)[0].cpu()[None], last_step(trainer), sample_rate=rate
                )
