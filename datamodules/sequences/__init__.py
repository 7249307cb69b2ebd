"""DNA and protein from FASTA files."""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``from datamodules.sequences import Fasta``."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
