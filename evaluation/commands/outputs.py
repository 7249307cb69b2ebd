"""Functions shared by the commands: write complete files, and never replace a user's file."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.errors import ConfigError
from datamodules.images.module import ImageDataModule
from runtime.files import whole_file
from runtime.optional import offers
from sslmodules import SSLModule, methods

BATCH = 64


# ---- files -------------------------------------------------------------------------------------------------


def check_place(path: Path, ending: str, option: str = "--output") -> None:
    """Check a file name: the right extension, in an existing folder, and not itself a folder."""
    if path.suffix != ending:
        raise ConfigError(f"{option} {path}: expected a name that ends in {ending}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: expected a file")


def check_target(path: Path, ending: str, overwrite: bool, option: str = "--output") -> None:
    """As ``check_place``; also refuse to replace a file without ``overwrite``."""
    check_place(path, ending, option)
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path} exists: give --overwrite to replace it, or another name")


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> str:
    """Write a file completely or not at all; returns the line to print."""
    told = f"{'replaced' if path.exists() else 'written'}: {path}"
    with whole_file(path) as file:
        write(file)
    return told


def write_picture(path: Path, pixels: np.ndarray) -> str:
    """Write (H, W, C) uint8 with 1 or 3 channels as a PNG file."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _write(path, lambda file: image.save(file, format="PNG"))


def write_image(path: Path, image: Image.Image) -> str:
    """Write a PNG file."""
    return _write(path, lambda file: image.save(file, format="PNG"))


def write_text(path: Path, text: str) -> str:
    """Write a UTF-8 file that ends with a line break."""
    return _write(path, lambda file: file.write(f"{text}\n".encode()))


def write_sound(path: Path, samples: np.ndarray, sample_rate: int) -> str:
    """Write int16 samples (S,) as a wav file."""

    def write(file: BinaryIO) -> None:
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, sample_rate, 0, "NONE", ""))
            sound.writeframes(samples.astype("<i2").tobytes())

    return _write(path, write)


def write_arrays(path: Path, checkpoint: str, arrays: dict[str, Any]) -> str:
    """Write an npz file that ``numpy.load`` reads without pickle, with the source of the weights."""
    return _write(path, lambda file: np.savez(file, **arrays, checkpoint=checkpoint))


# ---- requirements of methods and data ----------------------------------------------------------------------


def check_able(module: SSLModule, function: str, what: str) -> None:
    """Raise ConfigError, listing suitable methods, if a method has no ``function``.

    Args:
        what: the command or option that needs it.
    """
    if not offers(module, function):
        able = [name for name, cls in methods().items() if offers(cls, function)]
        raise ConfigError(
            f"{what}: {type(module).__name__} has no {function}(); methods that have it: "
            f"{', '.join(able) or 'none'}"
        )


def pixels_of(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [0, 1] to (B, H, W, C) uint8."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def shown_images(data: ImageDataModule, x: Tensor, module: SSLModule) -> Tensor:
    """A network's output in standardized units as images in [0, 1]; never an image of NaN."""
    if not x.isfinite().all():
        raise ConfigError(f"{type(module).__name__} returned non-finite values: the checkpoint is unusable")
    if x.ndim != 4 or x.shape[1] != data.image_shape[0]:
        raise ConfigError(
            f"{type(module).__name__} returned {tuple(x.shape)}, but images of {type(data).__name__} have "
            f"shape {data.image_shape}"
        )
    return data.unstandardize(x.float())
