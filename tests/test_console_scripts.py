"""The entry points of ``ssl-train`` and ``ssl-eval``; tests/test_release.py tests their installation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import eval as evaluation_script
import train
from runtime.main import _where_things_are


@pytest.mark.parametrize("module", [train, evaluation_script])
def test_what_they_run(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ssl", "--help"])
    with pytest.raises(SystemExit) as end:
        module.start()  # type: ignore[attr-defined]
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("script", "command"), [("train.py", "python eval.py"), ("bin/ssl-train", "ssl-eval")]
)
def test_the_end_names_the_command_that_is_there(
    script: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert _where_things_are(tmp_path) == f"run folder:   {tmp_path}\nevaluate:     {command} {tmp_path}"
