"""Reads lines of text files, plain or gzipped, and recognizes files that are not text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from datamodules.errors import DataFileError, readable

GZIP = b"\x1f\x8b"
HEAD = 4096
"""Number of bytes read to recognize the type of a file."""

NO_TEXT = (
    (b"PAR1", "a Parquet file", "convert it, for example with pandas: read_parquet(FILE).to_json(NEW.jsonl, "
     "orient='records', lines=True)"),
    (b"\xff\xfe", "UTF-16 or UTF-32", "convert it, for example with iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "UTF-16", "convert it, for example with iconv -f utf-16 -t utf-8"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ", "an xz file", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"),
    (b"\x00\x05\x16\x07", "a file of macOS attributes, not text", "remove it"),
)  # fmt: skip
"""First bytes of a file, the type they indicate, and what to do."""


def check_text(path: Path, head: bytes) -> None:
    """Raise DataFileError if the first bytes of a file, unpacked, are not UTF-8 text."""
    for start, what, remedy in NO_TEXT:
        if head.startswith(start):
            raise DataFileError(f"{path} is {what}, expected UTF-8 text: {remedy}")
    if b"\0" in head:
        raise DataFileError(
            f"{path} contains zero bytes, so it is not UTF-8 text: remove it, or convert it if it is UTF-16 "
            "(iconv -f utf-16le -t utf-8)"
        )


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with or without byte order mark, plain or gzipped; line ends are ``\\n``.

    Raises:
        DataFileError: the file cannot be read, is damaged, or is not UTF-8 text.
    """
    try:
        with readable(path):
            with path.open("rb") as raw:
                unpack = gzip.open if raw.read(2) == GZIP else open
            with unpack(path, "rb") as binary:
                check_text(path, binary.read(HEAD))
            with unpack(path, "rt", encoding="utf-8-sig") as text:
                yield from text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFileError(f"{path} is a damaged gzip file ({error}): fetch it again") from None
    except UnicodeDecodeError as error:
        _refuse(path, error)


def _refuse(path: Path, error: UnicodeDecodeError) -> NoReturn:
    raise DataFileError(
        f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}): convert it from its "
        "encoding, for example with iconv -f latin1 -t utf-8"
    ) from None


def text_size(path: Path) -> int:
    """Size of a text file in bytes; of a gzipped one, uncompressed (correct below 4 GiB, gzip's limit)."""
    size = path.stat().st_size
    with readable(path), path.open("rb") as file:
        if file.read(2) != GZIP or size < 18:
            return size
        file.seek(-4, 2)
        return max(size, int.from_bytes(file.read(4), "little"))
