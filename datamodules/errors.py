"""What went wrong with data, in one line that says what to do."""

from __future__ import annotations


class MissingDataError(FileNotFoundError):
    """A data set that is not where it was looked for, with what to do about it in one line."""


class ImageFileError(OSError):
    """An image file that cannot be used; the message names it."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's exception again with its whole traceback as the message; the last
        # line is ours.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])
