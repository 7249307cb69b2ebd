"""The base of measures: numbers of a trained method that need no labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from datamodules.base import SSLDataModule
from sslmodules.base import SSLModule


class Measure(ABC):
    """A file in ``evaluation/measures`` with a subclass is all that a new measure needs.

    Attributes:
        name: its section in ``results.json``; a plain value, as ``by_name`` is.
        by_name: it is measured only where ``--measures`` names it.
    """

    name: ClassVar[str]
    by_name: ClassVar[bool] = False

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        """Is there something to measure of this method on this data?"""
        return True

    @abstractmethod
    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        """What ``results.json`` holds under ``name``: plain values, dicts and lists of them.

        Args:
            module: in eval mode, on ``device``.
            data: set up.
            device: where to compute.
        """

    @abstractmethod
    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Title and cells by heading of the table on the terminal, for what ``measure`` has returned."""

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        """Numbers to compare runs by, logged at the end as ``test/<name>``."""
        return {}
