"""Audio data sets: clips, their log-mel spectrograms, folders of wav and flac files."""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``from datamodules.audio import WavFolder``."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
