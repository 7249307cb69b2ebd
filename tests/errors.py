"""Shared by the tests of errors: short runs, and the lines that they print on stderr."""

from __future__ import annotations

import pytest

from runtime.messages import ROOT

QUICK = ["--config", str(ROOT / "tests" / "quick.yaml")]
DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), *QUICK]

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def error_of(capture: Capture) -> list[str]:
    """The output on stderr without lines of Lightning and the libraries below."""
    return [
        x for x in capture.readouterr().err.splitlines() if x.startswith(("error: ", "note: ", "Traceback"))
    ]
