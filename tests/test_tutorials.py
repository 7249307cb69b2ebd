"""The tutorials run: each is executed as a notebook, in an empty folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from docs.notebooks import TUTORIALS, notebook_text
from runtime.messages import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_tutorial_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command ends with status 0 and every cell without an error."""
    nbclient = pytest.importorskip("nbclient", reason="needs pip install -e '.[docs]'")
    pytest.importorskip("ipykernel", reason="needs pip install -e '.[docs]'")
    nbformat = pytest.importorskip("nbformat", reason="needs pip install -e '.[docs]'")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    notebook = nbformat.reads(notebook_text(script), as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
