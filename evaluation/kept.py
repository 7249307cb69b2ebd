"""Stores finished parts of an evaluation in the run folder, so that an interrupted one can continue."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.base import SSLDataModule
from datamodules.errors import DataFileError
from runtime.files import write_json

NAME = ".evaluation"
"""Start of the file's name in the run folder, followed by the suffix of the results and ``.json``."""


class Kept:
    """Finished parts of a report, in a file from which an interrupted evaluation continues.

    Args:
        file: None = nothing is stored.
        origin: plain values that identify what the parts were measured on; parts of another origin are
            ignored.
    """

    def __init__(self, file: Path | None, origin: dict[str, Any]) -> None:
        self.file, self.origin = file, json.loads(json.dumps(origin, default=str))

    def take(self) -> dict[str, Any]:
        """The parts stored by an earlier evaluation; empty if there are none of this origin."""
        if self.file is None:
            return {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            return dict(content["parts"]) if content["origin"] == self.origin else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def put(self, parts: dict[str, Any]) -> None:
        """Replace the stored parts; do nothing if the file cannot be written."""
        if self.file is not None:
            with suppress(DataFileError):
                write_json(self.file, {"origin": self.origin, "parts": parts})


def checksum(module: nn.Module) -> int:
    """CRC-32 of all weights and buffers."""
    crc = 0
    for value in module.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc


def origin_of(module: nn.Module, data: SSLDataModule) -> dict[str, Any]:
    """Identifies the weights and the samples that something was measured on, as plain values."""
    options = {name: value for name, value in dict(data.hparams).items() if name != "num_workers"}
    return {"weights": checksum(module), "data": [type(data).__name__, str(options), data.fingerprint()]}
