"""Text: files, tokenizers, and token stores."""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """``from datamodules.text import TextFiles``: imported when it is first asked for."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
