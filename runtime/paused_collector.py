"""Importing torch without the garbage collector. Standard library only."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector while torch is imported, and exempt from it what the imports made.

    They make about a million objects that live until the process ends. Each full collection would look
    through all of them, while importing, in training and at the end. Where torch has been imported already,
    as in a notebook, this does nothing: objects of that process could never be freed.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
