"""Files made with a trained method: restored pictures and features, and what every such file needs. ``eval.py`` calls these;
generated samples are in sampling.py.

Every function checks what it was given before it computes, writes each file whole or not at all, and replaces a file only if
it is an earlier result. What cannot work is a ``ValueError`` or an ``OSError`` of one line.
"""

from __future__ import annotations

import json
import os
import struct
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.audio.wav_folder import WavFolder
from datamodules.base import Batch, Split, SSLDataModule, mix_seed
from datamodules.images.module import ImageDataModule, ImageFolder, image_files, read_image
from evaluation.measures.reconstruction import psnr
from sslmodules import SSLModule, methods

MADE_BY = "lightning-ssl eval.py"
"""Stands in every picture, array and text file, so that a later call knows it as a result that it may replace."""

BATCH = 64
HIDDEN_FROM = 26
"""A pixel of a mask picture hides from this value on (of 255), a tenth: where it is made smaller, no damage is left in."""

SPLITS: tuple[tuple[Split, str], ...] = (("bank", "train"), ("val", "val"), ("test", "test"))


# ---- files -----------------------------------------------------------------------------------------------------------


_SOFTWARE = MADE_BY.encode() + b"\0" * (2 - len(MADE_BY) % 2)
_WAV_NOTE = struct.pack("<4sI4s4sI", b"LIST", 12 + len(_SOFTWARE), b"INFO", b"ISFT", len(_SOFTWARE)) + _SOFTWARE


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
    """ValueError unless a result may be written to ``path``: right ending, a folder that exists, nothing there but a result."""
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"{option} {path}: expected a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: expected a file")
    if path.exists() and not is_result(path):
        raise ValueError(f"{option} {path} exists and is no result of eval.py, so it is not overwritten: choose another name")


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> str:
    """Writes beside the target, then renames. Returns what to tell."""
    told = f"{'replaced' if path.exists() else 'written'}: {path}"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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


# ---- what a method and its data must be able to do -----------------------------------------------------------------


def check_able(module: SSLModule, function: str, option: str) -> None:
    """ValueError for a method without ``function``, with the methods that have it."""
    if not hasattr(module, function):
        able = [name for name, cls in methods().items() if hasattr(cls, function)]
        raise ValueError(
            f"{option}: {type(module).__name__} has no {function}(); methods that have it: {', '.join(able) or 'none'}"
        )


def _images_of(data: SSLDataModule, option: str) -> ImageDataModule:
    if not isinstance(data, ImageDataModule):
        raise ValueError(f"{option} writes pictures, and {type(data).__name__} holds none")
    return data


def pixels_of(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [0, 1] to (B, H, W, C) uint8."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def shown_images(data: ImageDataModule, x: Tensor, module: SSLModule) -> Tensor:
    """A network's output in standardised units as images in [0, 1]; never a picture of NaN."""
    if not x.isfinite().all():
        raise ValueError(f"{type(module).__name__} gave values that are not finite: the checkpoint is no good")
    if x.ndim != 4 or x.shape[1] != data.image_shape[0]:
        raise ValueError(
            f"{type(module).__name__} gave {tuple(x.shape)}, and images of {type(data).__name__} have shape {data.image_shape}"
        )
    return data.unstandardise(x.float())


# ---- restore -----------------------------------------------------------------------------------------------------------


def _by_stem(source: Path, option: str) -> dict[str, bytes]:
    """Image files by name without ending: the result's name, and what links a picture to its truth."""
    found: dict[str, bytes] = {}
    for file in image_files(source):
        stem = Path(os.fsdecode(file)).stem
        if stem in found:
            one, two = (os.path.basename(os.fsdecode(f)) for f in (found[stem], file))
            raise ValueError(f"{option} {source}: {one} and {two} have the same name but for the ending: rename one")
        found[stem] = file
    return found


def _read(files: list[bytes], data: ImageDataModule, channels: int | None = None) -> Tensor:
    """(B, C, H, W) uint8: the largest centre square of each file at the run's size."""
    depth, height, width = data.image_shape
    if height != width:
        raise ValueError(f"--restore reads square pictures, and images of {type(data).__name__} are {height}x{width}")
    pixels = np.stack([read_image(file, height, channels or depth, height) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _check_same_frame(option: str, other: bytes, file: bytes) -> None:
    """ValueError unless both pictures have the same shape: the centre squares would show different places."""
    with Image.open(os.fsdecode(other)) as one, Image.open(os.fsdecode(file)) as two:
        (width, height), (w, h) = one.size, two.size
    if width * h != w * height:
        raise ValueError(
            f"{option} {os.fsdecode(other)} is {width}x{height} and {os.fsdecode(file)} is {w}x{h}: expected the same shape"
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
    """Fill in what is hidden of pictures and save them as ``<name>-restored.png``, at the size of the run's images.

    What is hidden: the white part of ``mask``; else, for a method that learnt from masks, what the run's own mask hides (the
    truth is then the picture itself); else the whole picture counts as damaged. The method sees hidden pixels as the data's
    mean colour, and visible ones are kept as they are.

    Args:
        module: in eval mode, with ``reconstruct(batch) -> (B, C, H, W)`` in standardised units.
        data: the run's image data set, for size, standardisation and masks; its files are not read.
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
    truths: dict[str, bytes] = {}
    if truth is not None:
        truths = _by_stem(truth, "--truth")
        if len(files) == len(truths) == 1:  # two files given by name belong together
            truths = dict(zip(files, truths.values(), strict=True))
        if absent := [stem for stem in files if stem not in truths]:
            raise ValueError(f"--truth {truth} has no picture named {absent[0]} for {os.fsdecode(files[absent[0]])}")
    own_mask = mask is None and "mask" in module.batch_keys
    if own_mask and data.views is None:
        raise ValueError(f"--restore: {type(module).__name__} needs to know what is hidden: give --mask IMAGE (white = hidden)")
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise ValueError(f"--output {output}: expected a folder, new or not, in a folder that exists")
    folder_of_source = source if source.is_dir() else source.parent
    if output.resolve() == folder_of_source.resolve():
        raise ValueError(f"--output {output} is the folder of the pictures: choose another, so that they stay apart")
    for stem in files:
        if output.is_dir():
            check_target(output / f"{stem}-restored.png")
    given_mask = None
    if mask is not None:
        given_mask = (_read([os.fsencode(mask)], images, channels=1) >= HIDDEN_FROM).to(device)  # (1, 1, H, W)
        if not given_mask.any():
            raise ValueError(f"--mask {mask} hides nothing: white is hidden, and it has no white at the run's size")
        for file in files.values():
            _check_same_frame("--mask", os.fsencode(mask), file)
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
            batch["input"] = batch["input"].masked_fill(hidden, 0.0)  # whatever is there, the method must not see it
        batch["corrupted"] = batch["input"]  # what a denoising method starts from
        prediction = shown_images(images, module.reconstruct(batch), module)  # type: ignore[operator]
        restored = torch.where(hidden, prediction, picture)  # (B, C, H, W)

        known = picture if own_mask else None
        if truth is not None:
            known = images.decode(_read([truths[stem] for stem in chosen], images).to(device))
        output.mkdir(exist_ok=True)
        region = hidden.expand_as(picture)
        counts = region.flatten(1).sum(1).tolist()
        errors = [] if known is None else ((restored - known).square() * region).double().flatten(1).sum(1).tolist()
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


# ---- features ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def export_features(
    module: SSLModule, data: SSLDataModule, output: Path, checkpoint: str, device: torch.device
) -> Iterator[str]:
    """Write the frozen features of all labelled training, validation and test samples of a data set.

    Arrays, a row per sample: ``features`` (N, D) float32, ``labels`` (N,) int64 (-1 = unknown), ``split`` (N,) "train", "val"
    or "test", ``index`` (N,) int64 within the split and, for ``ImageFolder``, ``files`` (N,) the paths. Also ``class_names``.

    Args:
        module: in eval mode.
        data: any data set that fits the encoder; "train" is its bank, the labelled training data as probes see it.
        output: an npz file.
        checkpoint: where the weights come from, noted in the file.
        device: where to compute.

    Yields:
        Lines for the terminal.
    """
    check_target(output, ".npz", "--features")
    data.prepare_data()
    data.setup("test")
    module.to(device)
    parts: dict[str, list[Any]] = {name: [] for name in ("features", "labels", "split", "index", "files")}
    for split, name in SPLITS:
        count = 0
        for raw in data.eval_dataloader(data.dataset(split)):
            x = data.transform({"input": raw["input"].to(device)}, None)["input"]
            parts["features"].append(module.embed(x).flatten(1).float().cpu().numpy())
            parts["labels"].append(raw["label"].numpy())
            count += len(x)
        parts["split"].append(np.full(count, name))
        parts["index"].append(np.arange(count))
        if isinstance(data, (ImageFolder, WavFolder)) and not data.synthetic:
            parts["files"].append(np.array(data.files(split)))
    arrays = {name: np.concatenate(rows) for name, rows in parts.items() if rows}
    arrays["class_names"] = np.array(getattr(data, "class_names", ()), dtype=str)
    sizes = ", ".join(f"{len(rows)} {name}" for rows, (_, name) in zip(parts["split"], SPLITS, strict=True))
    yield f"{write_arrays(output, checkpoint, arrays)}  features {arrays['features'].shape} float32: {sizes}"
