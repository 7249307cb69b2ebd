"""Runs the parts of an evaluation one by one; a failure does not stop the others."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from datamodules.errors import ConfigError, DataFileError


class Attempts:
    """Collects the errors of the parts that failed.

    Attributes:
        failed: error of each failed part by name, on one line.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Run the block; an exception ends the block, not the program, and is recorded under ``name``.

        The traceback of a bug is printed to stderr; errors in the user's files and settings have none.
        """
        try:
            yield
        except (ConfigError, DataFileError) as error:
            self.failed[name] = " ".join(str(error).split())
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
