"""Writes files that are either complete or absent: write a temporary file, sync, rename.

Every file that a later start or another process reads is written here. Any package may import this module.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.errors import DataFileError


def temporary_beside(path: Path) -> Path:
    """A new hidden name in the folder of ``path``, different for every host, process and call."""
    name, host = path.name[:40], socket.gethostname()[:40]
    return path.with_name(f".{name}.{host}.{secrets.token_hex(4)}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that readers see the old or the new content, even after a power failure.

    An exception in the block, such as a full disk, leaves the old file and nothing else.

    Raises:
        DataFileError: the file cannot be written; the message has its name, the reason and the free space.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except DataFileError:
        raise
    except OSError as error:
        raise DataFileError(not_written(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes ``path`` at the end of the block; an exception leaves nothing.

    Args:
        path: a folder that does not exist, or an empty one.
    """
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """As ``Path.write_bytes``, completely or not at all."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, completely or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON, completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power failure."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def not_written(path: Path, error: BaseException, size: int | None = None) -> str:
    """One line: what could not be written and why, the needed and the free space, and what exists now.

    Args:
        path: the file.
        error: the system's error.
        size: bytes needed, if known.
    """
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    needed = "" if size is None else f"about {size / 1e6:.1f} MB are needed, "
    folder = path.parent
    free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free" if folder.is_dir() else "no such folder"
    kept = f"{path} is unchanged" if path.exists() else "there is no earlier one"
    return f"{path} could not be written ({reason}): {needed}{free}. {kept}"


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed processes. Only for the one run that uses the folder."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)
