"""From image files to uint8 arrays: finding them, orientation, color modes, resizing and cropping."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.errors import ImageFileError, MissingDataError

IMAGE_SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".tif", b".tiff", b".ppm", b".pgm")


# ---- folders of image files --------------------------------------------------------------------------------


def _entries(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Sorted paths of the sub-folders and of the image files of a folder, hidden ones left out, links
    followed.
    """
    with os.scandir(folder) as scan:
        entries = sorted((e for e in scan if not e.name.startswith(b".")), key=lambda e: e.name)
    images = [e.path for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file()]
    return [e.path for e in entries if e.is_dir()], images


def _images_below(folder: bytes, parents: tuple[bytes, ...] = ()) -> list[bytes]:
    """All image files of a tree in a fixed order; a link back to a folder on the way down is not followed."""
    real = os.path.realpath(folder)
    if real in parents:
        return []
    folders, images = _entries(folder)
    return images + [path for f in folders for path in _images_below(f, (*parents, real))]


def image_files(path: str | os.PathLike[str]) -> list[bytes]:
    """The image file ``path``, or the images directly in the folder ``path``, sorted; hidden files are left
    out.

    Raises:
        MissingDataError: there is no such file or folder, or the folder holds no images.
    """
    name = os.fsencode(path)
    if os.path.isfile(name):
        return [name]
    if not os.path.isdir(name):
        raise MissingDataError(f"{_text(name)} does not exist: expected an image or a folder of images")
    if not (images := _entries(name)[1]):
        raise MissingDataError(
            f"no images in {_text(name)}: expected files that end in {_text(IMAGE_SUFFIXES, most=99)}"
        )
    return images


def _text(paths: bytes | Sequence[bytes], most: int = 5) -> str:
    """File names for a message: the first few, printable whatever bytes they are made of, escape sequences
    too.
    """
    if isinstance(paths, bytes):
        text = paths.decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return ", ".join(map(_text, paths[:most])) + (f", ... ({len(paths)} in all)" if len(paths) > most else "")


def _names(paths: Sequence[bytes]) -> list[bytes]:
    return [os.path.basename(path) for path in paths]


def to_uint8(image: Image.Image, channels: int) -> Image.Image:
    """An 8-bit picture with 3 channels ("RGB") or 1 ("L") from whatever mode a file has.

    16-bit gray is scaled from 0..65535 to 0..255 (Pillow's own conversion clips it at 255). Transparent
    pictures are laid on white. Palettes and CMYK are converted by Pillow.

    Raises:
        ValueError: 32-bit integer or floating-point pixels, whose range the file does not tell.
    """
    mode = "RGB" if channels == 3 else "L"
    # Pillow reads 16-bit PNG and PGM files as "I" in old and as "I;16" in new versions
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixel format {image.mode!r} (32 bits) has no known range; convert it to 8 or 16 bits"
        )
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_image(
    path: bytes, size: int, channels: int, shorter: int, draw: int | None = None, content: bytes | None = None
) -> np.ndarray:
    """Decode a file, resize its shorter side to ``shorter`` and crop a square (bilinear with antialiasing, by
    Pillow).

    A picture that is ``size`` x ``size`` already is taken as it is. EXIF orientation is not applied, as in
    torchvision.

    Args:
        path: of the file.
        size: side of the square, pixels.
        channels: 1 or 3.
        shorter: pixels, at least ``size``.
        draw: 63 random bits that choose the place of the crop; None crops the center.
        content: of the file, where it was read already; ``path`` is then only its name for messages.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ImageFileError: the file is missing, empty, truncated, no image or of an unusable format; names the
            file.
    """
    try:
        with Image.open(os.fsdecode(path) if content is None else io.BytesIO(content)) as file:
            if draw is not None and file.size != (size, size):
                file.draft(
                    None, _resized(file.size, shorter)
                )  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size
            image = to_uint8(file, channels)
    except (
        Exception
    ) as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        if isinstance(error, UnidentifiedImageError):  # its message repeats the path
            length = os.path.getsize(path) if content is None else len(content)
            reason = "it is empty" if length == 0 else "it is not an image"
        else:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"cannot read image {_text(path)}: {reason}") from None
    width, height = image.size
    if (width, height) != (size, size):
        w, h = _resized(image.size, shorter)
        if draw is None:
            left, top = round((w - size) / 2), round((h - size) / 2)
        else:
            left, top = draw % (w - size + 1), (draw >> 32) % (h - size + 1)
        # only the part that is kept is resized: the same pixels, and a 1 x 10,000 picture does not fill the
        # memory
        x, y = width / w, height / h
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(size, size, channels)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the shorter side made ``shorter``, rounded down as in torchvision's Resize."""
    width, height = size
    return (
        (shorter, int(shorter * height / width))
        if width <= height
        else (int(shorter * width / height), shorter)
    )
