"""Shared by the tests of the command line: short runs on digits, and the one line of an error."""

from __future__ import annotations

import pytest

from runtime.messages import ROOT

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "2",
]


def one_line_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    lines = [line for line in error.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    assert "Traceback" not in error and "Namespace(" not in error and len(error) < 750
    return lines[0]
