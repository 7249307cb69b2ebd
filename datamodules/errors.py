"""The errors that end a run in one line. Every other exception keeps its traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class _OneLine(Exception):
    """An error whose message survives when a DataLoader raises it again.

    The DataLoader calls ``type(error)(text)``, where text is the worker's whole traceback and ends in
    ``ClassName: message``. The text becomes the cause, so a traceback still shows it.
    """

    def __init__(self, message: str) -> None:
        own = message
        if "Original Traceback" in message:
            own = message.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(own)
        if own != message:
            self.__cause__ = RuntimeError(message)


class ConfigError(_OneLine, ValueError):
    """Invalid input: one line with the value, what was expected, and what to do.

    Args:
        message: the line.
        option: the argument at the start of the message, if any; the command line prefixes its path.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class DataFileError(_OneLine, OSError):
    """A file or folder that cannot be used: one line with its name, the problem, and what to do."""


class MissingDataError(DataFileError):
    """Data that was not found where it was expected."""


class ImageFileError(DataFileError):
    """An image that cannot be decoded; up to ``max_unreadable`` of them are skipped."""


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's error for an unreadable file into a ``DataFileError`` that names it."""
    try:
        yield
    except DataFileError:
        raise
    except OSError as error:
        raise DataFileError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
