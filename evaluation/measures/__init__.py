"""Measures of trained methods that need no labels, one per file. A new file is discovered automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.discovery import implementations

if TYPE_CHECKING:
    from evaluation.measures.base import Measure


def measures() -> dict[str, Measure]:
    """All measures of the project by name, in alphabetical order."""
    found: list[Measure] = [cls() for cls in implementations("Measure")]
    return {measure.name: measure for measure in sorted(found, key=lambda measure: measure.name)}
