"""Pictures at validation: one base for those of images, sound and text, and the image grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from datamodules.audio.module import AudioDataModule
from datamodules.checks import check_at_least
from sslmodules.base import seed_noise
from sslmodules.networks import class_attention


def last_step(trainer: Trainer) -> int:
    """The step that was made last, counted from 0 as Lightning logs it: a resumed run hides and repeats what
    is logged at later ones, and nothing else.
    """
    return max(0, trainer.global_step - 1)


def log_picture(trainer: Trainer, tag: str, image: Tensor) -> None:
    """Write an image (C, H, W) in [0, 1] to TensorBoard, if that is the logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, last_step(trainer))


@contextmanager
def fixed_noise(device: torch.device) -> Iterator[None]:
    """Pictures draw the same noise every time, and leave the method's random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_noise(device, 3)
        yield


def log_columns(trainer: Trainer, tag: str, columns: list[Tensor]) -> None:
    """A picture with a row per sample and a column for each (n, C, H, W), standardized as the data's; small
    ones enlarged.
    """
    side = max(column.shape[-1] for column in columns)
    size = side * max(1, 64 // side)  # a whole multiple keeps pixels square
    shown = [
        F.interpolate(trainer.datamodule.unstandardize(c).float(), size=(size, size), mode="nearest")  # type: ignore[attr-defined]
        for c in columns
    ]
    rows = torch.stack(shown, dim=1).flatten(0, 1)  # (n * columns, C, S, S)
    log_picture(trainer, tag, make_grid(rows.cpu(), nrow=len(columns), padding=2, pad_value=0.5))


class FirstSamples(Callback, ABC):
    """What can be seen or heard of the first samples at validation; a subclass gives ``show``.

    Args:
        num_samples: how many.
        every_n_epochs: at validations of every n-th epoch and of the first and last.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, num_samples: int, every_n_epochs: int) -> None:
        check_at_least(1, num_samples=num_samples, every_n_epochs=every_n_epochs)
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
        due = (
            trainer.current_epoch % self.every_n_epochs == 0
            or trainer.current_epoch + 1 == trainer.max_epochs
        )
        first = (
            batch_idx == 0 and dataloader_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking
        )
        if not (due and first):
            return
        few = {k: v[: self.num_samples] for k, v in batch.items() if isinstance(v, Tensor)}
        views = [view[: self.num_samples] for view in batch.get("views", [])]
        with trainer.precision_plugin.val_step_context(), fixed_noise(pl_module.device), torch.no_grad():
            self.show(trainer, pl_module, few, views)

    @abstractmethod
    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        """Log it. ``batch`` and ``views`` are cut to ``num_samples``; draws have a random state of their
        own.
        """


class ImageGrid(FirstSamples):
    """Pictures at validation: the views, and what the method makes of an image, as far as batch and method
    have them.

    A row per sample, small images enlarged so that pixels can be seen; data that is not images is passed
    over. By tag:

    - ``views``: input, view 1, view 2, ...
    - ``reconstruction``, of ``reconstruct(batch)``: with a mask: input, the same with gray where it is
      hidden, prediction, input with the hole filled; with a corrupted image: that, prediction, input;
      otherwise input and prediction.
    - ``samples``, of ``sample(n) -> (n, C, H, W)``: a square of them, from the same noise every time.
    - ``interpolations``, of ``interpolate(x, steps) -> (B, steps, C, H, W)``: a row from each image to the
      next.
    - ``attention`` of a ViT, the one that gives the features: input, and for each head of the last block
      where the class token looks (white = most).

    Args:
        num_samples: rows.
        every_n_epochs: draw at validations of every n-th epoch and of the first and last.
    """

    def __init__(self, num_samples: int = 8, every_n_epochs: int = 1) -> None:
        super().__init__(num_samples, every_n_epochs)

    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        x, n = batch["input"], self.num_samples
        if x.ndim != 4 or isinstance(trainer.datamodule, AudioDataModule):  # type: ignore[attr-defined]
            return
        if views:
            log_columns(trainer, "views", [x, *views])
        if hasattr(module, "reconstruct"):
            prediction = module.reconstruct(batch).to(x.dtype)
            gray = trainer.datamodule.standardize(torch.full_like(x, 0.5))  # type: ignore[attr-defined]
            log_columns(trainer, "reconstruction", self._columns(x, batch, prediction, gray))
        if hasattr(module, "sample"):
            samples = module.sample(n * n).to(x.dtype)
            log_columns(trainer, "samples", list(samples.unflatten(0, (n, n)).unbind(1)))
        if hasattr(module, "interpolate"):
            log_columns(trainer, "interpolations", list(module.interpolate(x, n).to(x.dtype).unbind(1)))
        attention = class_attention(module.feature_encoder, x)
        if attention is not None:  # (n, heads, h, w), shares of patches
            attention = F.interpolate(
                attention / attention.amax((2, 3), keepdim=True), size=x.shape[2:], mode="nearest"
            )
            maps = [head.expand_as(x).to(x.dtype) for head in attention.split(1, dim=1)]
            log_columns(trainer, "attention", [x, *map(trainer.datamodule.standardize, maps)])  # type: ignore[attr-defined]

    @staticmethod
    def _columns(x: Tensor, batch: dict[str, Tensor], prediction: Tensor, gray: Tensor) -> list[Tensor]:
        if "mask" in batch:
            mask = batch["mask"]
            return [x, torch.where(mask, gray, x), prediction, torch.where(mask, prediction, x)]
        return [batch["corrupted"], prediction, x] if "corrupted" in batch else [x, prediction]
