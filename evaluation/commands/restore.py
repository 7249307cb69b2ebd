"""Fill in what is hidden or damaged in a user's pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Batch, SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.decode import image_files, image_size, read_image
from datamodules.images.module import ImageDataModule
from datamodules.seeding import mix_seed
from evaluation.commands.outputs import (
    BATCH,
    _images_of,
    check_able,
    check_target,
    pixels_of,
    shown_images,
    write_picture,
)
from evaluation.measures.reconstruction import psnr
from sslmodules import SSLModule

HIDDEN_FROM = 26
"""A pixel of a mask picture hides from this value on (of 255), a tenth: where it is made smaller, no damage
is left in.
"""


# ---- restore -----------------------------------------------------------------------------------------------


def _by_stem(source: Path, option: str) -> dict[str, str]:
    """Image files by name without ending: the result's name, and what links a picture to its truth."""
    found: dict[str, str] = {}
    for file in image_files(source):
        stem = Path(file).stem
        if stem in found:
            one, two = (os.path.basename(f) for f in (found[stem], file))
            raise ConfigError(
                f"{option} {source}: {one} and {two} have the same name but for the ending: rename one"
            )
        found[stem] = file
    return found


def _read(files: list[str], data: ImageDataModule, channels: int | None = None) -> Tensor:
    """(B, C, H, W) uint8: the largest center square of each file at the run's size."""
    depth, height, width = data.image_shape
    if height != width:
        raise ConfigError(
            f"--restore reads square pictures, and images of {type(data).__name__} are {height}x{width}"
        )
    pixels = np.stack([read_image(file, height, channels or depth, height) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _check_same_frame(option: str, other: str, file: str) -> None:
    """ValueError unless both pictures have the same shape: the center squares would show different places."""
    (width, height), (w, h) = image_size(other), image_size(file)
    if width * h != w * height:
        raise ConfigError(
            f"{option} {other} is {width}x{height} and {file} is {w}x{h}: expected the same shape"
        )


@torch.no_grad()
def restore(
    module: SSLModule,
    data: SSLDataModule,
    source: Path,
    output: Path,
    device: torch.device,
    mask: Path | None = None,
    truth: Path | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Fill in what is hidden of pictures and save them as ``<name>-restored.png``, at the size of the run's
    images.

    What is hidden: the white part of ``mask``; else, for a method that learnt from masks, what the run's own
    mask hides (the truth is then the picture itself); else the whole picture counts as damaged. The method
    sees hidden pixels as the data's mean color, and visible ones are kept as they are.

    Args:
        module: in eval mode, with ``reconstruct(batch) -> (B, C, H, W)`` in standardized units.
        data: the run's image data set, for size, standardization and masks; its files are not read.
        source: a picture, or a folder of which the pictures directly in it are taken.
        output: the folder of the results; made if its parent exists.
        device: where to compute.
        mask: a picture of the same shape as each of ``source``.
        truth: the undamaged picture, or a folder with pictures of the same names.
        seed: of the run's own masks.

    Yields:
        Lines for the terminal: each file, with the PSNR of the hidden region where the truth is known.
    """
    check_able(module, "reconstruct", "--restore")
    images = _images_of(data, "--restore")
    files = _by_stem(source, "--restore")
    truths: dict[str, str] = {}
    if truth is not None:
        truths = _by_stem(truth, "--truth")
        if len(files) == len(truths) == 1:  # two files given by name belong together
            truths = dict(zip(files, truths.values(), strict=True))
        if absent := [stem for stem in files if stem not in truths]:
            raise ConfigError(f"--truth {truth} has no picture named {absent[0]} for {files[absent[0]]}")
    own_mask = mask is None and "mask" in module.batch_keys
    if own_mask and data.views is None:
        raise ConfigError(
            f"--restore: {type(module).__name__} needs to know what is hidden: give --mask IMAGE (white = "
            "hidden)"
        )
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise ConfigError(f"--output {output}: expected a folder, new or not, in a folder that exists")
    folder_of_source = source if source.is_dir() else source.parent
    if output.resolve() == folder_of_source.resolve():
        raise ConfigError(
            f"--output {output} is the folder of the pictures: choose another, so that they stay apart"
        )
    for stem in files:
        if output.is_dir():
            check_target(output / f"{stem}-restored.png")
    given_mask = None
    if mask is not None:
        given_mask = (_read([str(mask)], images, channels=1) >= HIDDEN_FROM).to(device)  # (1, 1, H, W)
        if not given_mask.any():
            raise ConfigError(
                f"--mask {mask} hides nothing: white is hidden, and it has no white at the run's size"
            )
        for file in files.values():
            _check_same_frame("--mask", str(mask), file)
    for stem, file in truths.items():
        if stem in files:
            _check_same_frame("--truth", file, files[stem])

    module.to(device)
    torch.manual_seed(mix_seed(seed, 3))
    total, values = 0.0, 0
    stems = list(files)
    for index, start in enumerate(range(0, len(stems), BATCH)):
        chosen = stems[start : start + BATCH]
        raw = _read([files[stem] for stem in chosen], images).to(device)
        generator = torch.Generator(device).manual_seed(mix_seed(seed, index)) if own_mask else None
        batch: Batch = data.transform({"input": raw}, generator)
        picture, hidden = images.decode(raw), torch.ones_like(raw[:, :1], dtype=torch.bool)
        if own_mask:
            module.check_batch(batch)
            hidden = batch["mask"]
        elif given_mask is not None:
            hidden = given_mask.expand(len(raw), -1, -1, -1)
        if own_mask or given_mask is not None:
            batch["mask"] = hidden
            batch["input"] = batch["input"].masked_fill(
                hidden, 0.0
            )  # whatever is there, the method must not see it
        batch["corrupted"] = batch["input"]  # what a denoising method starts from
        prediction = shown_images(images, module.reconstruct(batch), module)
        restored = torch.where(hidden, prediction, picture)  # (B, C, H, W)

        known = picture if own_mask else None
        if truth is not None:
            known = images.decode(_read([truths[stem] for stem in chosen], images).to(device))
        output.mkdir(exist_ok=True)
        region = hidden.expand_as(picture)
        counts = region.flatten(1).sum(1).tolist()
        errors = (
            []
            if known is None
            else ((restored - known).square() * region).double().flatten(1).sum(1).tolist()
        )
        for row, (stem, pixels) in enumerate(zip(chosen, pixels_of(restored), strict=True)):
            told = write_picture(output / f"{stem}-restored.png", pixels)
            if known is not None:
                told += f"  {_decibel(errors[row], counts[row])}"
                total, values = total + errors[row], values + counts[row]
            yield told
    if values and len(stems) > 1:
        yield f"{len(stems)} pictures, all hidden pixels together: {_decibel(total, values)}"


def _decibel(squared_error: float, values: int) -> str:
    if values == 0:
        return "nothing is hidden"
    return f"PSNR of the hidden region {psnr(squared_error / values):.2f} dB"
