"""Writes files that are complete or absent: write beside, sync, rename.

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
    """A new hidden name in the folder of ``path``, another one for every host, process and call."""
    name, host = path.name[:40], socket.gethostname()[:40]
    return path.with_name(f".{name}.{host}.{secrets.token_hex(4)}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write ``path`` through: a reader sees the old content or the new, even after a power cut.

    An exception in the block, a full disk for example, leaves the old file and nothing else.

    Raises:
        DataFileError: the file cannot be written; names it, the reason and the space left.
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
    """As ``Path.write_bytes``, whole or not at all."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Renames in ``folder`` survive a power cut from here on."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def not_written(path: Path, error: BaseException, size: int | None = None) -> str:
    """One line: what could not be written and why, the space needed and left, and what is there now.

    Args:
        error: what the system answered.
        size: bytes needed, if known.
    """
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    needed = "" if size is None else f"about {size / 1e6:.1f} MB are needed, "
    folder = path.parent
    free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free" if folder.is_dir() else "no such folder"
    kept = f"{path} is as it was before" if path.exists() else "there is no earlier one"
    return f"{path} could not be written ({reason}): {needed}{free}. {kept}"


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had begun to write. Only for the one run that uses the folder."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)
