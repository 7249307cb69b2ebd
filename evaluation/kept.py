"""What is measured already of an evaluation that is not done, in the run folder."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.errors import DataFileError
from runtime.files import write_json

NAME = ".evaluation"
"""Of the file in the run folder, before the suffix that the results have and ``.json``."""


class Kept:
    """Parts of a report in a file, from which an evaluation that was ended goes on.

    Args:
        file: None = nothing is kept.
        origin: plain values that identify what the parts were measured on; parts of another origin are
            not used.
    """

    def __init__(self, file: Path | None, origin: dict[str, Any]) -> None:
        self.file, self.origin = file, json.loads(json.dumps(origin, default=str))

    def take(self) -> dict[str, Any]:
        """The parts that an earlier evaluation has left; empty if there are none of this origin."""
        if self.file is None:
            return {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            return dict(content["parts"]) if content["origin"] == self.origin else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def put(self, parts: dict[str, Any]) -> None:
        """In place of earlier ones. Where nothing can be written, nothing is kept."""
        if self.file is not None:
            with suppress(DataFileError):
                write_json(self.file, {"origin": self.origin, "parts": parts})


def checksum(module: nn.Module) -> int:
    """CRC-32 of all weights and buffers."""
    crc = 0
    for value in module.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc
