"""Evaluation of frozen features: pure functions of tensors (probes, neighbors, health) and the code that
feeds them.

Everything here reads features that an encoder has already produced. Nothing touches the self-supervised loss,
the optimizer or the encoder's gradients, so training is the same with and without evaluation.
"""

from __future__ import annotations

from typing import Any

from runtime.discovery import exported, exports


def __getattr__(name: str) -> Any:
    """``from evaluation import FeatureProbe``: imported when it is first asked for."""
    return exported(__name__, name)


def __dir__() -> list[str]:
    return list(exports(__name__))
