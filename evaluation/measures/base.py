"""The base class of measures: numbers of a trained method that need no labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from datamodules.base import SSLDataModule
from sslmodules.base import SSLModule


class Measure(ABC):
    """A measure: a new one is a file in ``evaluation/measures`` with a subclass.

    Attributes:
        name: its section in ``results.json``; a plain value, like ``by_name``.
        by_name: it is measured only if ``--measures`` names it.
    """

    name: ClassVar[str]
    by_name: ClassVar[bool] = False

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        """Whether the measure applies to this method and this data."""
        return True

    @abstractmethod
    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        """The section ``name`` of ``results.json``: plain values, dicts and lists.

        Args:
            module: in eval mode, on ``device``.
            data: set up.
            device: where to compute.
        """

    @abstractmethod
    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Title and cells by heading of the table on the terminal, for the result of ``measure``."""

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        """Numbers for comparing runs, logged at the end as ``test/<name>``."""
        return {}
