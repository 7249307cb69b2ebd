"""``ssl-train`` and ``ssl-eval``, installed from a wheel, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eval as evaluation_script
import train
from runtime.messages import ROOT

INSTALL = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]


@pytest.mark.slow
def test_from_a_wheel(tmp_path: Path) -> None:
    """The configs come with it, and nothing of the checkout is used."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    source = tmp_path / "source"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], check=False, capture_output=True)
    ignored = ("runs", "build", "*.egg-info", ".git")
    copy = ["cp", "-r", str(ROOT), str(source)]
    subprocess.run(copy, check=True)
    for pattern in ignored:
        for path in source.glob(pattern):
            subprocess.run(["rm", "-rf", str(path)], check=True)
    subprocess.run([*INSTALL, "--target", str(site), str(source)], check=True)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> str:
        done = subprocess.run(words, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run = [
        str(site / "bin" / "ssl-train"),
        "--config",
        "configs/digits/simclr.yaml",
        "--trainer.max_epochs",
        "1",
    ]
    assert str(site) in call(sys.executable, "-c", "import runtime; print(runtime.__file__)")
    assert "configs/digits/" in call(run[0], "--help")
    call(*run, "--run_dir", "run")
    assert "pretrained" in call(str(site / "bin" / "ssl-eval"), "run", "--output", "r.json")
    assert sorted(path.name for path in empty.iterdir()) == ["r.json", "run"]


@pytest.mark.parametrize("module", [train, evaluation_script])
def test_what_they_run(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ssl", "--help"])
    with pytest.raises(SystemExit) as end:
        module.start()  # type: ignore[attr-defined]
    assert end.value.code == 0
