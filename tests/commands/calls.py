"""Calls eval.py in this process and returns what it prints and writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as script


def evaluate(*arguments: object) -> int:
    """The exit status; all commands but compare compute on the CPU."""
    device = [] if arguments[0] == "compare" else ["--device", "cpu"]
    return script.main([*map(str, arguments), *device])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line printed when it cannot work."""
    capsys.readouterr()
    assert evaluate(*arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ") and len(error.strip().splitlines()) == 1 and len(error) < 500, error
    return error


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def decibels(line: str) -> float:
    return float(re.search(r"PSNR of the hidden region ([\d.]+) dB", line)[1])  # type: ignore[index]
