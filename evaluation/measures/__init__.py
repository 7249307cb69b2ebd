"""Measures of a trained method that need no labels, one per file. A new file is known at once, without an
edit here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.discovery import implementations

if TYPE_CHECKING:
    from evaluation.measures.base import Measure


def measures() -> dict[str, Measure]:
    """Every measure of the project by its name, in alphabetical order."""
    found: list[Measure] = [cls() for cls in implementations("Measure")]
    return {measure.name: measure for measure in sorted(found, key=lambda measure: measure.name)}
