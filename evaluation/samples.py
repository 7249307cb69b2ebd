"""Callbacks that show the first validation samples: images, texts, spectrograms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from datamodules.audio.mel import valid_frames
from datamodules.audio.module import AudioDataModule
from datamodules.base import SSLDataModule, data_of
from datamodules.checks import check_at_least
from evaluation.features import names_of_classes
from evaluation.media import log_image, log_sound, log_texts
from evaluation.pictures import rows_of_images, titled
from runtime.optional import offers
from sslmodules.base import seed_noise
from sslmodules.networks import class_attention


@contextmanager
def fixed_noise(device: torch.device) -> Iterator[None]:
    """Images draw the same noise every time, and leave the method's random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_noise(device, 3)
        yield


def log_columns(
    trainer: Trainer,
    tag: str,
    columns: list[Tensor],
    titles: Sequence[str] = (),
    labels: Tensor | None = None,
) -> None:
    """An image with a row per sample.

    Args:
        columns: each (n, C, H, W), standardized as the data's; small ones are enlarged.
        titles: of the columns.
        labels: (n,) of the samples, whose classes are named left of the rows.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = row_names(data, labels)
    log_image(trainer, tag, rows_of_images([data.unstandardize(c) for c in columns], titles, names))


def row_names(data: Any, labels: Tensor | None) -> list[str]:
    """The class of each sample, "" where it is unknown; no names for data without classes."""
    if labels is None or data.num_classes is None:
        return []
    classes = names_of_classes(data)
    return [classes[i] if i >= 0 else "" for i in labels.tolist()]


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
    """Images at validation: the views, and what the method makes of an image, as far as batch and method
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
        x, n, labels = batch["input"], self.num_samples, batch.get("label")
        if x.ndim != 4 or isinstance(trainer.datamodule, AudioDataModule):  # type: ignore[attr-defined]
            return
        if views:
            titles = ["input", *(f"view {i + 1}" for i in range(len(views)))]
            log_columns(trainer, "views", [x, *views], titles, labels)
        if offers(module, "reconstruct"):
            prediction = module.reconstruct(batch).to(x.dtype)
            gray = trainer.datamodule.standardize(torch.full_like(x, 0.5))  # type: ignore[attr-defined]
            shown = self._columns(x, batch, prediction, gray)
            log_columns(trainer, "reconstruction", list(shown.values()), list(shown), labels)
        if offers(module, "sample"):
            samples = module.sample(n * n).to(x.dtype)
            log_columns(trainer, "samples", list(samples.unflatten(0, (n, n)).unbind(1)))
        if offers(module, "interpolate"):
            log_columns(trainer, "interpolations", list(module.interpolate(x, n).to(x.dtype).unbind(1)))
        attention = class_attention(module.feature_encoder, x)
        if attention is not None:  # (n, heads, h, w), shares of patches
            attention = F.interpolate(
                attention / attention.amax((2, 3), keepdim=True), size=x.shape[2:], mode="nearest"
            )
            maps = [head.expand_as(x).to(x.dtype) for head in attention.split(1, dim=1)]
            columns = [x, *map(trainer.datamodule.standardize, maps)]  # type: ignore[attr-defined]
            titles = ["input", *(f"head {i + 1}" for i in range(len(maps)))]
            log_columns(trainer, "attention", columns, titles, labels)

    @staticmethod
    def _columns(x: Tensor, batch: dict[str, Tensor], prediction: Tensor, gray: Tensor) -> dict[str, Tensor]:
        """By title."""
        if "mask" in batch:
            hidden, filled = (torch.where(batch["mask"], under, x) for under in (gray, prediction))
            return {"input": x, "hidden": hidden, "prediction": prediction, "filled": filled}
        if "corrupted" in batch:
            return {"damaged": batch["corrupted"], "prediction": prediction, "input": x}
        return {"input": x, "prediction": prediction}


class Continuations(FirstSamples):
    """Continuations at validation, drawn by methods that offer ``complete`` (images) or ``extend`` (tokens).

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
        data = data_of(trainer)
        if x.ndim == 4 and offers(module, "complete"):
            self._pictures(trainer, module, x)
        elif x.ndim == 2 and offers(module, "extend") and data is not None and offers(data, "to_text"):
            self._texts(trainer, module, data, x)

    def _pictures(self, trainer: Trainer, module: Any, x: Tensor) -> None:
        upper = x.clone()
        upper[:, :, x.shape[2] // 2 :] = 0.5
        drawn = [module.complete(x, 0.5, **self.options).to(x.dtype) for _ in range(3)]
        log_columns(trainer, "completions", [x, upper, *drawn], ["input", "given", *["drawn"] * 3])

    def _texts(self, trainer: Trainer, module: Any, data: SSLDataModule, x: Tensor) -> None:
        kept = max(1, x.shape[1] // 2)
        tokens = module.extend(x[:, :kept], self.length, **self.options)
        shown = [[data.to_text(row[:kept]), data.to_text(row[kept:])] for row in tokens.cpu()]
        log_texts(trainer, "continuations", ["beginning", "continuation"], shown)


def as_shown(columns: list[Tensor], data: AudioDataModule) -> list[Tensor]:
    """Standardized log-mel, each (B, 1, M, T), in its own units, -inf where the first one has padding
    frames.
    """
    sound = (columns[0] != 0).any(2, keepdim=True)
    return [data.unstandardize(c.float()).masked_fill(~sound, float("-inf")) for c in columns]


def spectrogram_image(
    columns: list[Tensor], height: int = 120, titles: Sequence[str] = (), names: Sequence[str] = ()
) -> Tensor:
    """Spectrograms as one image with white lines between: a row per clip, high frequencies at the top.

    Args:
        columns: each (n, 1, M, T), log-mel in the same units, -inf where nothing is to be seen. Black to
            white is the range of the first column; -inf is black.
        height: of a spectrogram in pixels; a multiple of M as far as that goes.
        titles: above each column; empty = none.
        names: left of each row; empty = none.

    Returns:
        (1, H, W) in [0, 1], or (3, H', W') with titles or names.
    """
    sound = columns[0][columns[0].isfinite()]
    low, high = (float(sound.amin()), float(sound.amax())) if len(sound) else (0.0, 1.0)
    enlarge = max(1, height // columns[0].shape[2])
    rows = torch.cat(
        [F.pad(c.flip(2), (1, 1, 1, 1), value=high) for c in columns], 3
    )  # (n, 1, M + 2, sum of T)
    gray = ((rows - low) / max(high - low, 1e-6)).clamp(0, 1)
    image = F.interpolate(gray, scale_factor=enlarge, mode="nearest").transpose(0, 1).flatten(1, 2)
    cell = (enlarge * columns[0].shape[2], enlarge * columns[0].shape[3])
    return titled(image, cell, 2 * enlarge, titles, names)


class Spectrograms(FirstSamples):
    """At validation, of clips; data that is not audio is passed over. By tag:

    - ``spectrograms``, of ``fill(batch) -> (B, 1, M, T)``: input, masked, input with the hidden patches
      predicted.
    - ``continuations`` (image and audio), of ``continue_clip(x, steps)``: the clip, and its first half
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
        if offers(module, "fill"):
            masked = x.masked_fill(batch["mask"], float("-inf"))
            columns = {"input": x, "masked": masked, "filled": module.fill(batch)}
            self._draw(trainer, "spectrograms", columns, batch.get("label"))
        if offers(module, "continue_clip"):
            columns = {"input": x, "first half continued": self._continued(trainer, module, data, x)}
            self._draw(trainer, "continuations", columns, batch.get("label"))

    def _continued(self, trainer: Trainer, module: Any, data: AudioDataModule, x: Tensor) -> Tensor:
        continued = torch.zeros_like(x)
        for row, length in enumerate(valid_frames(x).tolist()):
            half = length // 2
            if half < module.shortest_clip:
                continue
            continued[row : row + 1, :, :, :length] = module.continue_clip(
                x[row : row + 1, :, :, :half], length - half
            )
            if row == 0:
                self._play(trainer, "clip", data, x[:1, :, :, :length])
                self._play(trainer, "continued", data, continued[:1, :, :, :length])
        return continued

    @staticmethod
    def _draw(trainer: Trainer, tag: str, columns: dict[str, Tensor], labels: Tensor | None) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        shown = [c.cpu() for c in as_shown(list(columns.values()), data)]
        log_image(trainer, tag, spectrogram_image(shown, titles=list(columns), names=row_names(data, labels)))

    @staticmethod
    def _play(trainer: Trainer, tag: str, data: AudioDataModule, x: Tensor) -> None:
        log_sound(trainer, tag, data.waveform(x)[0].cpu(), data.scale.sample_rate)
