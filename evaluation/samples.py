"""Callbacks that log images, texts and spectrograms of the first validation samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
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
from sslmodules.networks.encoder import PatchEncoder
from sslmodules.networks.sharding import is_sharded, with_whole_weights


@contextmanager
def fixed_noise(device: torch.device) -> Iterator[None]:
    """Give the block the same random numbers every time, and restore the random state afterwards."""
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
    """Log an image with a row per sample.

    Args:
        columns: each (n, C, H, W), standardized like the data; small images are enlarged.
        titles: titles of the columns.
        labels: (n,) labels of the samples; the classes are shown left of the rows.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = row_names(data, labels)
    log_image(trainer, tag, rows_of_images([data.unstandardize(c) for c in columns], titles, names))


def row_names(data: Any, labels: Tensor | None) -> list[str]:
    """The class of each sample, "" if unknown; no names for data without classes."""
    if labels is None or data.num_classes is None:
        return []
    classes = names_of_classes(data)
    return [classes[i] if i >= 0 else "" for i in labels.tolist()]


def columns_of_patches(
    data: Any, patch_size: int, batch: dict[str, Tensor], views: list[Tensor]
) -> dict[str, Tensor]:
    """Columns by title: views, and what is left of them where the method hides patches, the rest in gray.

    Args:
        data: standardizes gray as the views.
        patch_size: side of a patch in pixels.
        batch: ``mask`` (n, 2, N) of the first two views, or ``context`` (n, K) and ``targets`` (n, M, L) of
            the first one; patches are numbered row by row. There are no columns for other batches, such as
            one with a mask of pixels.
        views: each (n, C, H, W), standardized.
    """

    def in_gray(view: Tensor, hidden: Tensor) -> Tensor:
        """Hide patches (n, N) bool of a view."""
        rows = hidden.unflatten(1, (1, view.shape[2] // patch_size, -1))  # (n, 1, h, w)
        pixels = rows.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
        return torch.where(pixels, data.standardize(torch.full_like(view, 0.5)), view)

    columns: dict[str, Tensor] = {}
    mask = batch.get("mask")
    if not views:
        return columns
    if mask is not None and mask.ndim == 3:
        for i, hidden in enumerate(mask.unbind(1)):
            columns |= {f"view {i + 1}": views[i], f"view {i + 1}, hidden": in_gray(views[i], hidden)}
    elif mask is None and "context" in batch and "targets" in batch:
        n, patches = len(views[0]), views[0].shape[2] * views[0].shape[3] // patch_size**2
        everything = torch.ones(n, patches, dtype=torch.bool, device=views[0].device)
        columns["view 1"] = views[0]
        for key in ("context", "targets"):
            columns[key] = in_gray(views[0], everything.scatter(1, batch[key].flatten(1), False))
    return columns


class FirstSamples(Callback, ABC):
    """Logs media of the first validation samples; subclasses implement ``show``.

    Args:
        num_samples: number of samples.
        every_n_epochs: log at validations of every n-th epoch, the first and the last.

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
        first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
        shards = is_sharded(trainer)
        if not (due and first and (trainer.is_global_zero or shards)):
            return
        few = {k: v[: self.num_samples] for k, v in batch.items() if isinstance(v, Tensor)}
        views = [view[: self.num_samples] for view in batch.get("views", [])]
        if shards:  # all processes take part in each forward pass, so all need the same samples
            shared = trainer.strategy.broadcast(move_data_to_device((few, views), torch.device("cpu")))
            few, views = move_data_to_device(shared, pl_module.device)
        with trainer.precision_plugin.val_step_context(), fixed_noise(pl_module.device), torch.no_grad():
            with_whole_weights(trainer, partial(self.show, trainer, pl_module), few, views)

    @abstractmethod
    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        """Log the samples. ``batch`` and ``views`` are cut to ``num_samples``; the random state is fixed."""


class ImageGrid(FirstSamples):
    """Images at validation: views, and what the method can show of an image.

    One row per sample; small images are enlarged so that pixels can be seen. Data other than images is
    skipped. By tag:

    - ``views``: input, view 1, view 2, ...
    - ``hidden_patches``, where patches of views are hidden: the global views, each beside itself with hidden
      patches in gray; of I-JEPA the view, its context and its targets.
    - ``reconstruction``, from ``reconstruct(batch)``: with a mask, the input, the input with hidden parts in
      gray, the prediction, and the input with the hole filled; with a corrupted image, that image, the
      prediction and the input; otherwise input and prediction.
    - ``samples``, from ``sample(n) -> (n, C, H, W)``: a square of samples, from the same noise every time.
    - ``interpolations``, from ``interpolate(x, steps) -> (B, steps, C, H, W)``: a row from each image to the
      next.
    - ``attention``, of the ViT that gives the features: input, and the class token's attention in each head
      of the last block (white = most).

    Args:
        num_samples: number of rows.
        every_n_epochs: log at validations of every n-th epoch, the first and the last.
    """

    def __init__(self, num_samples: int = 8, every_n_epochs: int = 1) -> None:
        super().__init__(num_samples, every_n_epochs)

    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        x, n, labels = batch["input"], self.num_samples, batch.get("label")
        if x.ndim != 4 or isinstance(data, AudioDataModule):
            return
        if views:
            titles = ["input", *(f"view {i + 1}" for i in range(len(views)))]
            log_columns(trainer, "views", [x, *views], titles, labels)
        if isinstance(module.encoder, PatchEncoder) and (
            shown := columns_of_patches(data, module.encoder.patch_size, batch, views)
        ):
            log_columns(trainer, "hidden_patches", list(shown.values()), list(shown), labels)
        if offers(module, "reconstruct"):
            prediction = module.reconstruct(batch).to(x.dtype)
            shown = self._columns(x, batch, prediction, data.standardize(torch.full_like(x, 0.5)))
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
            titles = ["input", *(f"head {i + 1}" for i in range(len(maps)))]
            log_columns(trainer, "attention", [x, *map(data.standardize, maps)], titles, labels)

    @staticmethod
    def _columns(x: Tensor, batch: dict[str, Tensor], prediction: Tensor, gray: Tensor) -> dict[str, Tensor]:
        """Columns of the reconstruction by title."""
        if "mask" in batch:
            hidden, filled = (torch.where(batch["mask"], under, x) for under in (gray, prediction))
            return {"input": x, "hidden": hidden, "prediction": prediction, "filled": filled}
        if "corrupted" in batch:
            return {"damaged": batch["corrupted"], "prediction": prediction, "input": x}
        return {"input": x, "prediction": prediction}


class Continuations(FirstSamples):
    """Continuations at validation, sampled by methods with ``complete`` (images) or ``extend`` (tokens).

    The first half of the first validation samples is kept. In TensorBoard:

    - tokens (Text tab, ``continuations``): the beginning in bold, then what ``extend(tokens, length)`` adds.
    - images (``completions``): input, its upper half, and three completions of that half.

    Args:
        num_samples: number of samples to continue.
        length: number of tokens to add to a text.
        temperature: sampling temperature; 1 is the model's own distribution.
        top_k: sample from this many likeliest tokens; None = all.
        every_n_epochs: log at validations of every n-th epoch, the first and the last.
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


HIDDEN = (0.25, 0.32, 0.71)
"""The color of hidden patches of a spectrogram, red, green and blue; padding is black."""


def as_shown(columns: list[Tensor], data: AudioDataModule) -> list[Tensor]:
    """Standardized log-mel, each (B, 1, M, T), unstandardized; -inf where the first has padding frames."""
    sound = (columns[0] != 0).any(2, keepdim=True)
    return [data.unstandardize(c.float()).masked_fill(~sound, float("-inf")) for c in columns]


def spectrogram_image(
    columns: list[Tensor], height: int = 120, titles: Sequence[str] = (), names: Sequence[str] = ()
) -> Tensor:
    """Spectrograms as one image, separated by white lines: a row per clip, high frequencies at the top.

    Args:
        columns: each (n, 1, M, T), log-mel in the same units, -inf where there is nothing to show and NaN
            where it is hidden. Black to white is the range of the first column; -inf is black, NaN is blue.
        height: height of a spectrogram in pixels, rounded to a multiple of M if possible.
        titles: above each column; empty = none.
        names: left of each row; empty = none.

    Returns:
        (3, H, W) in [0, 1].
    """
    sound = columns[0][columns[0].isfinite()]
    low, high = (float(sound.amin()), float(sound.amax())) if len(sound) else (0.0, 1.0)
    enlarge = max(1, height // columns[0].shape[2])
    rows = torch.cat(
        [F.pad(c.flip(2), (1, 1, 1, 1), value=high) for c in columns], 3
    )  # (n, 1, M + 2, sum of T)
    gray = ((rows - low) / max(high - low, 1e-6)).clamp(0, 1)
    image = F.interpolate(gray, scale_factor=enlarge, mode="nearest").transpose(0, 1).flatten(1, 2)
    image = torch.where(image.isnan(), torch.tensor(HIDDEN)[:, None, None], image)
    cell = (enlarge * columns[0].shape[2], enlarge * columns[0].shape[3])
    return titled(image, cell, 2 * enlarge, titles, names)


class Spectrograms(FirstSamples):
    """Spectrograms and audio of clips at validation; data other than audio is skipped. By tag:

    - ``spectrograms``, from ``fill(batch) -> (B, 1, M, T)``: input, masked input, and input with the hidden
      patches predicted.
    - ``continuations`` (image and audio), from ``continue_clip(x, steps)``: the clip, and its first half
      continued. In the Audio tab, ``clip`` is the whole clip as recorded, ``continued`` its first half with
      the method's continuation; both go through the log-mel spectrogram, so that they can be compared.

    Args:
        num_samples: number of rows.
        every_n_epochs: log at validations of every n-th epoch, the first and the last.
    """

    def __init__(self, num_samples: int = 4, every_n_epochs: int = 1) -> None:
        super().__init__(num_samples, every_n_epochs)

    def show(self, trainer: Trainer, module: Any, batch: dict[str, Tensor], views: list[Tensor]) -> None:
        data, x = trainer.datamodule, batch["input"]  # type: ignore[attr-defined]
        if not isinstance(data, AudioDataModule):
            return
        if offers(module, "fill"):
            masked = x.masked_fill(batch["mask"], float("nan"))
            columns = {"input": x, "hidden in blue": masked, "filled": module.fill(batch)}
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
