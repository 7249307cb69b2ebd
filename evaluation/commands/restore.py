"""Fills in hidden or damaged parts of a user's images."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Batch, SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.decode import image_files, image_size, read_image
from datamodules.images.module import ImageDataModule
from datamodules.seeding import mix_seed
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import (
    BATCH,
    check_able,
    check_target,
    pixels_of,
    shown_images,
    write_picture,
)
from evaluation.measures.reconstruction import psnr
from sslmodules import SSLModule

HIDDEN_FROM = 26
"""A mask pixel of at least this value (of 255) hides: a tenth, so that resizing uncovers no damage."""


class RestoreCommand(Command):
    """restore RUN IMAGES: fill in the hidden or damaged parts of an image, or of a folder of images."""

    options: ClassVar = {
        "images": {"metavar": "IMAGES", "type": "path", "help": "an image or a folder of them"},
        "--mask": {
            "metavar": "IMAGE",
            "type": "path",
            "help": "white = hidden (default: what the run's own mask hides)",
        },
        "--truth": {
            "metavar": "IMAGES",
            "type": "path",
            "help": "the undamaged images, same names, to measure PSNR",
        },
    }
    output = "the folder restored/ in the run folder"
    overwrite = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        output = given.output or run.folder / f"restored{run.suffix}"
        images = find_images(given.images, given.mask, given.truth)
        check_folder(output, images, given.overwrite)
        for line in restore(run.module, run.data, images, output, run.device, run.seed):
            say(line)
        return 0


class SourceImages(NamedTuple):
    """What to restore. Files are matched by name without extension, which also names the result."""

    files: dict[str, str]
    truths: dict[str, str]  # a truth for each file, or empty
    mask: Path | None


def find_images(source: Path, mask: Path | None = None, truth: Path | None = None) -> SourceImages:
    """The image ``source``, or the images directly in the folder ``source``.

    Args:
        source: a file or a folder.
        mask: an image of the same shape as each of them.
        truth: the undamaged image, or a folder with images of the same names.

    Raises:
        ConfigError: two images of the same name, one without truth, or with another shape than its mask or
            truth.
    """
    files, truths = _by_stem(source, "IMAGES"), {}
    if mask is not None:
        for file in files.values():
            _check_same_frame("--mask", str(mask), file)
    if truth is not None:
        truths = _by_stem(truth, "--truth")
        if len(files) == len(truths) == 1:  # two files given by name belong together
            truths = dict(zip(files, truths.values(), strict=True))
        for stem, file in files.items():
            if stem not in truths:
                raise ConfigError(f"--truth {truth} has no image named {stem} for {file}")
            _check_same_frame("--truth", truths[stem], file)
    return SourceImages(files, truths, mask)


def check_folder(output: Path, images: SourceImages, overwrite: bool) -> None:
    """Check the results' folder: not that of the images, and no file replaced without ``overwrite``."""
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise ConfigError(f"--output {output}: expected a folder, new or not, in a folder that exists")
    if any(output.resolve() == Path(file).parent.resolve() for file in images.files.values()):
        raise ConfigError(f"--output {output} is the folder of the images: choose another one")
    if output.is_dir():
        for stem in images.files:
            check_target(_result(output, stem), ".png", overwrite)


@torch.no_grad()
def restore(
    module: SSLModule,
    data: SSLDataModule,
    images: SourceImages,
    output: Path,
    device: torch.device,
    seed: int = 0,
) -> Iterator[str]:
    """Fill in hidden parts of images and save them as ``<name>-restored.png``, at the run's image size.

    Hidden parts are the white part of the mask; without one, for a method trained with masks, what the run's
    own mask hides (the truth is then the image itself); otherwise the whole image is treated as damaged. The
    method sees hidden pixels in the data's mean color; visible pixels are kept unchanged.

    Args:
        module: in eval mode, on ``device``, with ``reconstruct``.
        data: the run's image data set, for size, standardization and masks; its files are not read.
        images: what to restore.
        output: the folder of the results; created if its parent exists.
        device: where to compute.
        seed: seed of the run's own masks.

    Yields:
        Lines for the terminal: each file, with the PSNR of the hidden region if the truth is known.
    """
    check_able(module, "reconstruct", "restore")
    if not isinstance(data, ImageDataModule):
        raise ConfigError(f"restore writes images, but {type(data).__name__} has none")
    mask = None if images.mask is None else _read_mask(images.mask, data).to(device)
    if mask is None and "mask" in module.batch_keys and data.views is None:
        raise ConfigError(
            f"restore: {type(module).__name__} needs to know what is hidden: give --mask IMAGE (white = "
            "hidden)"
        )
    torch.manual_seed(mix_seed(seed, 3))
    total, values, stems = 0.0, 0, list(images.files)
    for index, start in enumerate(range(0, len(stems), BATCH)):
        chosen = stems[start : start + BATCH]
        raw = _read([images.files[stem] for stem in chosen], data).to(device)
        image = data.decode(raw)
        restored, hidden = _restored(module, data, raw, mask, mix_seed(seed, index))
        known = image if mask is None and "mask" in module.batch_keys else None
        if images.truths:
            known = data.decode(_read([images.truths[stem] for stem in chosen], data).to(device))
        output.mkdir(exist_ok=True)
        region = hidden.expand_as(image)
        counts = region.flatten(1).sum(1).tolist()
        if known is not None:
            errors = ((restored - known).square() * region).double().flatten(1).sum(1).tolist()
        for row, (stem, pixels) in enumerate(zip(chosen, pixels_of(restored), strict=True)):
            told = write_picture(_result(output, stem), pixels)
            if known is not None:
                told += f"  {_decibel(errors[row], counts[row])}"
                total, values = total + errors[row], values + counts[row]
            yield told
    if values and len(stems) > 1:
        yield f"{len(stems)} images, all hidden pixels together: {_decibel(total, values)}"


def _restored(
    module: SSLModule, data: ImageDataModule, raw: Tensor, mask: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """The images (B, C, H, W) in [0, 1] with the hidden part predicted, and its mask (B, 1, H, W)."""
    own_mask = mask is None and "mask" in module.batch_keys
    generator = torch.Generator(raw.device).manual_seed(seed) if own_mask else None
    batch: Batch = data.transform({"input": raw}, generator)
    hidden = torch.ones_like(raw[:, :1], dtype=torch.bool)
    if own_mask:
        module.check_batch(batch)
        hidden = batch["mask"]
    elif mask is not None:
        hidden = mask.expand(len(raw), -1, -1, -1)
    if own_mask or mask is not None:
        batch["mask"] = hidden
        # the method must not see the hidden pixels
        batch["input"] = batch["input"].masked_fill(hidden, 0.0)
    batch["corrupted"] = batch["input"]  # the input of denoising methods
    prediction = shown_images(data, module.reconstruct(batch), module)
    return torch.where(hidden, prediction, data.decode(raw)), hidden


# ---- files -------------------------------------------------------------------------------------------------


def _result(output: Path, stem: str) -> Path:
    return output / f"{stem}-restored.png"


def _by_stem(source: Path, option: str) -> dict[str, str]:
    """Image files by name without extension."""
    found: dict[str, str] = {}
    for file in image_files(source):
        stem = Path(file).stem
        if stem in found:
            one, two = (os.path.basename(f) for f in (found[stem], file))
            raise ConfigError(
                f"{option} {source}: {one} and {two} differ only in their extension: rename one"
            )
        found[stem] = file
    return found


def _read(files: list[str], data: ImageDataModule, channels: int | None = None) -> Tensor:
    """(B, C, H, W) uint8: the largest center square of each file at the run's size."""
    depth, height, width = data.image_shape
    if height != width:
        raise ConfigError(
            f"restore reads square images, but images of {type(data).__name__} are {height}x{width}"
        )
    pixels = np.stack([read_image(file, height, channels or depth, height) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _read_mask(file: Path, data: ImageDataModule) -> Tensor:
    """(1, 1, H, W) bool, True = hidden."""
    mask = _read([str(file)], data, channels=1) >= HIDDEN_FROM
    if not mask.any():
        raise ConfigError(
            f"--mask {file} hides nothing: white is hidden, but it has no white at the run's size"
        )
    return mask


def _check_same_frame(option: str, other: str, file: str) -> None:
    """Reject images of different shapes, whose center squares would not match."""
    (width, height), (w, h) = image_size(other), image_size(file)
    if width * h != w * height:
        raise ConfigError(
            f"{option} {other} is {width}x{height}, but {file} is {w}x{h}: expected the same shape"
        )


def _decibel(squared_error: float, values: int) -> str:
    if values == 0:
        return "nothing is hidden"
    return f"PSNR of the hidden region {psnr(squared_error / values):.2f} dB"
