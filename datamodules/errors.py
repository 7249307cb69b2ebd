"""The errors that end a run in one line. Every other exception keeps its traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class _OneLine(Exception):
    """Keeps its own message when a DataLoader raises it again.

    It calls ``type(error)(text)``, where the text is the worker's whole traceback and ends in ``ClassName:
    message``. The text becomes the cause, so that a traceback shows it.
    """

    def __init__(self, message: str) -> None:
        own = message
        if "Original Traceback" in message:
            own = message.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(own)
        if own != message:
            self.__cause__ = RuntimeError(message)


class ConfigError(_OneLine, ValueError):
    """What was given cannot work: one line with the value, what was expected, and what to do.

    Args:
        message: the line.
        option: the argument that the message begins with, if any; the command line puts its path in front.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class DataFileError(_OneLine, OSError):
    """A file or folder that cannot be used: one line with its name, what is wrong, and what to do."""


class MissingDataError(DataFileError):
    """Data that is not where it was looked for."""


class ImageFileError(DataFileError):
    """An image that cannot be decoded; ``max_unreadable`` of them may be passed over."""


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says about a file that cannot be read becomes a ``DataFileError`` that names it."""
    try:
        yield
    except DataFileError:
        raise
    except OSError as error:
        raise DataFileError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
