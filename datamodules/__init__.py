"""Data: clean samples, and the views and masks made of them on the device. A new file is known at once."""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported


def __getattr__(name: str) -> Any:
    """Public classes are imported when they are first asked for: ``from datamodules import MNIST``."""
    return exported(__name__, name)
