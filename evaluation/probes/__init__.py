"""Probes of frozen features, one per file. A new file is discovered automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.discovery import implementations

if TYPE_CHECKING:
    from evaluation.probes.base import FeatureScore


def probes() -> dict[str, FeatureScore]:
    """All probes of the project by name, in the order of the table."""
    found: list[FeatureScore] = [cls() for cls in implementations("FeatureScore")]
    return {probe.name: probe for probe in sorted(found, key=lambda probe: (probe.order, probe.name))}
