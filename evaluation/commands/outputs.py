"""Files made with a trained method: restored pictures and features, and what every such file needs.
``eval.py`` calls these; generated samples are in sampling.py.

Every function checks what it was given before it computes, writes each file whole or not at all, and replaces
a file only if it is an earlier result. What cannot work is a ``ValueError`` or an ``OSError`` of one line.
"""

from __future__ import annotations

import json
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.module import ImageDataModule
from runtime.files import whole_file
from runtime.optional import offers
from sslmodules import SSLModule, methods

MADE_BY = "lightning-ssl eval.py"
"""Stands in every picture, array and text file, so that a later call knows it as a result that it may
replace.
"""

BATCH = 64


# ---- files -------------------------------------------------------------------------------------------------


_SOFTWARE = MADE_BY.encode() + b"\0" * (2 - len(MADE_BY) % 2)
_WAV_NOTE = (
    struct.pack("<4sI4s4sI", b"LIST", 12 + len(_SOFTWARE), b"INFO", b"ISFT", len(_SOFTWARE)) + _SOFTWARE
)


def is_result(path: Path) -> bool:
    """Was this file written by ``eval.py`` or, as ``results.json``, by ``train.py``?"""
    try:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                return picture.info.get("Software") == MADE_BY
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return "made_by" in arrays and str(arrays["made_by"]) == MADE_BY
        if path.suffix == ".wav":
            return path.read_bytes().endswith(_WAV_NOTE)
        if path.suffix == ".txt":
            with path.open(encoding="utf-8") as file:
                return file.readline().startswith(MADE_BY)
        content = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # a foreign or damaged file makes the readers raise nearly anything: it is not ours
        return False
    return isinstance(content, dict) and "protocol" in content


def check_target(path: Path, suffix: str | None = None, option: str = "--output") -> None:
    """ValueError unless a result may be written to ``path``: right ending, a folder that exists, nothing
    there but a result.
    """
    if suffix is not None and path.suffix != suffix:
        raise ConfigError(f"{option} {path}: expected a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: expected a file")
    if path.exists() and not is_result(path):
        raise ConfigError(
            f"{option} {path} exists and is no result of eval.py, so it is not overwritten: choose another "
            "name"
        )


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> str:
    """Whole or not at all. Returns what to tell."""
    told = f"{'replaced' if path.exists() else 'written'}: {path}"
    with whole_file(path) as file:
        write(file)
    return told


def write_picture(path: Path, pixels: np.ndarray) -> str:
    """(H, W, C) uint8 with 1 or 3 channels as a PNG file."""
    note = PngInfo()
    note.add_text("Software", MADE_BY)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _write(path, lambda file: image.save(file, format="PNG", pnginfo=note))


def write_text(path: Path, text: str, note: str) -> str:
    """A UTF-8 file: a line that says where it comes from, an empty line, then the text as it is."""
    return _write(path, lambda file: file.write(f"{MADE_BY}: {note}\n\n{text}\n".encode()))


def write_sound(path: Path, samples: np.ndarray, sample_rate: int) -> str:
    """int16 samples (S,) as a wav file, with a chunk behind them (INFO, ISFT) that names the software."""

    def write(file: BinaryIO) -> None:
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, sample_rate, 0, "NONE", ""))
            sound.writeframes(samples.astype("<i2").tobytes())
        file.write(_WAV_NOTE)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))

    return _write(path, write)


def write_arrays(path: Path, checkpoint: str, arrays: dict[str, Any]) -> str:
    """An npz file that ``numpy.load`` reads without pickle."""
    return _write(path, lambda file: np.savez(file, **arrays, checkpoint=checkpoint, made_by=MADE_BY))


# ---- what a method and its data must be able to do ---------------------------------------------------------


def check_able(module: SSLModule, function: str, option: str) -> None:
    """ConfigError for a method that does not offer ``function``, with the methods that do."""
    if not offers(module, function):
        able = [name for name, cls in methods().items() if offers(cls, function)]
        raise ConfigError(
            f"{option}: {type(module).__name__} has no {function}(); methods that have it: "
            f"{', '.join(able) or 'none'}"
        )


def _images_of(data: SSLDataModule, option: str) -> ImageDataModule:
    if not isinstance(data, ImageDataModule):
        raise ConfigError(f"{option} writes pictures, and {type(data).__name__} holds none")
    return data


def pixels_of(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [0, 1] to (B, H, W, C) uint8."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def shown_images(data: ImageDataModule, x: Tensor, module: SSLModule) -> Tensor:
    """A network's output in standardized units as images in [0, 1]; never a picture of NaN."""
    if not x.isfinite().all():
        raise ConfigError(
            f"{type(module).__name__} gave values that are not finite: the checkpoint is no good"
        )
    if x.ndim != 4 or x.shape[1] != data.image_shape[0]:
        raise ConfigError(
            f"{type(module).__name__} gave {tuple(x.shape)}, and images of {type(data).__name__} have "
            f"shape {data.image_shape}"
        )
    return data.unstandardize(x.float())
