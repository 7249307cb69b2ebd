"""Tests with the marker ``gpu`` end after 30 seconds; an interrupted session names those it has not run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.messages import ROOT

pytestmark = pytest.mark.slow

SHORT = "from tests import gpu_checks\n\ngpu_checks.LIMIT, gpu_checks.GRACE = 1.0, 1.0\n"
PLANTED = """
import signal, time
import pytest

def test_of_a_cpu_has_no_limit():
    time.sleep(1.5)

@pytest.mark.gpu
def test_fast():
    pass

@pytest.mark.gpu
def test_slow():
    time.sleep(600)

@pytest.mark.gpu
def test_that_never_returns_to_python():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(600)
"""
INTERRUPTED = """
    import os, signal
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    os.kill(session, signal.SIGINT)
    time.sleep(600)
"""


def outcome(folder: Path, tests: str, *options: str) -> str:
    """What pytest prints about ``tests``."""
    (folder / "conftest.py").write_text(SHORT)
    (folder / "test_planted.py").write_text(tests)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.gpu_checks",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_a_gpu_test_ends_in_time_and_fails(tmp_path: Path) -> None:
    printed = outcome(tmp_path, PLANTED, "-n", "1", "-c", "/dev/null")
    assert "took more than 1 seconds, the limit of a test with the marker gpu" in printed
    crash = "crashed while running .*test_that_never_returns_to_python"
    assert re.search(crash, printed), printed
    assert 'test_planted.py", line 19 in test_that_never_returns_to_python' in printed, (
        printed
    )  # where it hung
    assert "2 failed, 2 passed" in printed, printed


def test_an_interrupted_session_names_what_it_has_not_run(tmp_path: Path) -> None:
    tests = PLANTED.replace("    time.sleep(600)", INTERRUPTED, 1)
    for way in ("0", "1"):
        printed = outcome(tmp_path, tests, "-m", "gpu", "-n", way, "-c", "/dev/null")
        assert "2 of 3 tests were not run" in printed, printed
        left = [line.split("::")[1] for line in printed.splitlines() if line.startswith("NOT RUN")]
        assert left == ["test_slow", "test_that_never_returns_to_python"]
