"""Data sets, and the views and masks made from their samples on the device.

A new file in this package is discovered automatically.
"""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``from datamodules import MNIST``."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
