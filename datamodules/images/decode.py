"""Decodes image files to uint8: orientation, color modes, resizing, cropping."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this platform
    decode_jpeg = None

from datamodules.errors import ImageFileError, MissingDataError
from datamodules.listing import is_hidden, printable

# EPS starts Ghostscript; MPEG and WMF cannot be decoded; the others are not pictures
NOT_READ = frozenset(("EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5", "FITS"))

COMMON = ".jpg, .png, .webp, .tif, .gif, ..."
"""Examples of formats, for messages."""

ALPHA_SHARE = 0.9
"""A TIFF's last band is transparency only if at least this share of it is 0 or 255."""
GEOREFERENCED = (33550, 33922, 34735)
"""Tags of GeoTIFF: pixel scale, tie points, keys."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transform that shows a stored image upright, by the value of EXIF's orientation."""


# ---- image files -------------------------------------------------------------------------------------------


@cache
def formats() -> tuple[str, ...]:
    """The supported formats: everything the installed Pillow opens except ``NOT_READ``."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_READ)


@cache
def image_endings() -> frozenset[str]:
    """Extensions of these formats, with their dots, in lower case."""
    known = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def is_image(path: str) -> bool:
    """Whether a file is an image by its extension; a file without extension is opened to find out."""
    ending = os.path.splitext(path)[1].lower()
    if ending:
        return ending in image_endings()
    try:
        with Image.open(path, formats=formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # the readers raise almost anything on other files
        return False


def image_files(path: str | os.PathLike[str]) -> list[str]:
    """The image file ``path``, or the images directly in the folder ``path``, sorted, without hidden ones.
    Raises:
        MissingDataError: the file or folder does not exist, or the folder contains no images.
    """
    path = os.fspath(path)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise MissingDataError(f"{printable(path)} does not exist: expected an image or a folder of images")
    names = sorted((name for name in os.listdir(path) if not is_hidden(name)), key=os.fsencode)
    files = [os.path.join(path, name) for name in names]
    images = [file for file in files if os.path.isfile(file) and is_image(file)]
    if not images:
        raise MissingDataError(f"no images in {printable(path)}: expected files that Pillow opens ({COMMON})")
    return images


def image_size(path: str) -> tuple[int, int]:
    """Displayed (width, height) of an image file; ``ImageFileError`` if it is not an image."""
    try:
        with Image.open(path, formats=formats()) as file:
            width, height = file.size
            return (height, width) if _orientation(file) >= 5 else (width, height)
    except Exception as error:
        raise _refused(error, path) from None


# ---- pixels ------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if missing or unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF: use the image as stored
        return 1
    return value if value in TURNS else 1


def without_false_alpha(image: Image.Image) -> Image.Image:
    """Drop the last band of a TIFF if it is tagged as alpha but is not transparency, such as infrared.

    TIFF writers often tag any extra band as alpha. The band is kept as alpha unless the file is
    georeferenced, the band is all 0, or less than ``ALPHA_SHARE`` of it is 0 or 255.
    """
    if image.format != "TIFF" or image.mode not in ("RGBA", "RGBa", "LA", "La"):
        return image
    *colors, last = image.split()
    counts = last.histogram()
    pixels = sum(counts)
    real = counts[0] < pixels and counts[0] + counts[255] >= ALPHA_SHARE * pixels
    if real and not any(tag in image.tag_v2 for tag in GEOREFERENCED):  # type: ignore[attr-defined]
        return image
    return Image.merge("RGB", colors) if len(colors) == 3 else colors[0]


def to_uint8(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to 8 bits with 3 channels ("RGB") or 1 ("L").

    16-bit gray is scaled from 0..65535 to 0..255 (Pillow's own conversion clips at 255). Transparent images
    are composited on white. Palettes and CMYK are converted by Pillow.

    Raises:
        ValueError: 32-bit integer or floating-point pixels, whose value range is unknown.
    """
    mode = "RGB" if channels == 3 else "L"
    # old versions of Pillow open 16-bit PNG and PGM files as "I", new ones as "I;16"
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


def _refused(error: Exception, path: str | bytes, content: bytes | None = None) -> ImageFileError:
    """An error that describes the problem; for a damaged file Pillow raises almost anything."""
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        length = os.path.getsize(path) if content is None else len(content)
        reason = "it is empty" if length == 0 else "it is not an image"
    elif isinstance(error, Image.DecompressionBombError):
        problem = str(error).partition(", could be")[0]
        reason = f"{problem}: reduce its size, cut it into tiles, or skip such files (max_unreadable)"
    else:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return ImageFileError(f"cannot read image {printable(os.fsdecode(path))}: {reason}")


def _opened(
    path: str | bytes, channels: int, content: bytes | None, draft: Callable[[Image.Image], None] | None
) -> Image.Image:
    """The whole image as a viewer shows it, 8 bits, decoded by Pillow."""
    source = os.fsdecode(path) if content is None else io.BytesIO(content)
    with Image.open(source, formats=formats()) as file:
        if draft is not None:
            draft(file)
        file.load()  # first: PNG stores the orientation after the pixels, and Pillow rotates TIFF here
        turn = TURNS.get(_orientation(file))
        image = to_uint8(without_false_alpha(file), channels)
        return image if turn is None else image.transpose(turn)


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether it is an 8-bit JPEG in gray or three colors, without EXIF or XMP, which may rotate it."""
    if content[:2] != b"\xff\xd8":
        return False
    place = 2
    while content[place : place + 1] == b"\xff" and len(content) > place + 9:
        marker = content[place + 1]
        if marker == 0xE1:  # APP1
            return False
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return content[place + 4] == 8 and content[place + 9] in (1, 3)
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def decode_image(path: str | bytes, channels: int, content: bytes | None = None) -> np.ndarray:
    """Decode a whole image as a viewer shows it: EXIF orientation applied, first frame of an animation.

    Plain color JPEGs are decoded by simplejpeg, which gives the same pixels as Pillow in less time.

    Args:
        path: the file.
        channels: 1 or 3.
        content: bytes of the file, if already read; ``path`` is then used in messages only.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ImageFileError: as for ``read_image``.
    """
    try:
        if content is None:
            with open(path, "rb") as file:
                content = file.read()
        if channels == 3 and decode_jpeg is not None and _is_plain_jpeg(content):
            try:
                return decode_jpeg(content, "RGB")
            except ValueError:  # Pillow's error describes the problem
                pass
        pixels = np.asarray(_opened(path, channels, content, None))
        return pixels.reshape(*pixels.shape[:2], channels)
    except Exception as error:
        raise _refused(error, path, content) from None


def read_image(
    path: str | bytes,
    size: int,
    channels: int,
    shorter: int,
    draw: int | None = None,
    content: bytes | None = None,
) -> np.ndarray:
    """Decode a file, resize its shorter side to ``shorter`` and crop a square.

    Resizing is Pillow's antialiased bilinear. An image of ``size`` x ``size`` is used as is. The EXIF
    orientation is applied, as in every viewer (torchvision's loader ignores it). Only the first frame of an
    animation is read.

    Args:
        path: the file.
        size: side of the square, pixels.
        channels: 1 or 3.
        shorter: pixels, at least ``size``.
        draw: 63 random bits that determine the crop position; None crops the center.
        content: bytes of the file, if already read; ``path`` is then used in messages only.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ImageFileError: the file is missing, empty, truncated, not an image or in an unsupported format; names
            the file.
    """

    def draft(file: Image.Image) -> None:
        if file.size != (size, size):
            file.draft(
                None, _resized(file.size, shorter)
            )  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size

    try:
        image = _opened(path, channels, content, None if draw is None else draft)
    except Exception as error:
        raise _refused(error, path, content) from None
    return square(image, size, channels, shorter, draw)


def square(image: Image.Image, size: int, channels: int, shorter: int, draw: int | None) -> np.ndarray:
    """The square of ``read_image``, (size, size, channels) uint8, from the decoded image."""
    width, height = image.size
    if (width, height) != (size, size):
        w, h = _resized(image.size, shorter)
        if draw is None:
            left, top = round((w - size) / 2), round((h - size) / 2)
        else:
            left, top = draw % (w - size + 1), (draw >> 32) % (h - size + 1)
        # resize only the part that is kept: same pixels, and a 1 x 10,000 image does not fill the memory
        x, y = width / w, height / h
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(size, size, channels)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) after resizing the shorter side to ``shorter``, rounded down as in torchvision."""
    width, height = size
    return (
        (shorter, int(shorter * height / width))
        if width <= height
        else (int(shorter * width / height), shorter)
    )
