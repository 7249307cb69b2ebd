"""Evaluation of frozen features: probes, neighbors and collapse metrics, and the code that runs them.

Everything here reads features that an encoder has already computed. Nothing touches the self-supervised loss,
the optimizer or the encoder's gradients, so training is the same with and without evaluation.
"""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``from evaluation import FeatureProbe``."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
