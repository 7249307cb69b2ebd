"""Limits of the tests with the marker ``gpu``, for a machine that is lent for minutes; a pytest plugin.

Each test has ``LIMIT`` seconds, and then fails. ``pytest -m gpu`` ends with the names of tests that it has
not run, if it was interrupted.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

LIMIT = 30.0  # seconds
GRACE = 5.0  # seconds more, after which a call that never returns to Python ends its process

COLLECTED = pytest.StashKey[dict[str, None]]()
STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COLLECTED] = {}
    config.stash[STDERR] = os.dup(2)  # not captured


@pytest.fixture(autouse=True)
def gpu_test_ends_in_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """pytest-xdist reports a process that has ended as the failure of its test, and starts another."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return

    def late(*_: Any) -> None:
        pytest.fail(f"took more than {LIMIT:g} seconds, the limit of a test with the marker gpu")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(LIMIT + GRACE, exit=True, file=request.config.stash[STDERR])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- what an interrupted session has not run ---------------------------------------------------------------


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[COLLECTED].update(dict.fromkeys(item.nodeid for item in session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    node.config.stash[COLLECTED].update(dict.fromkeys(ids))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ended = {
        report.nodeid
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and not (report.when == "setup" and report.passed)
    }
    left = [test for test in config.stash[COLLECTED] if test not in ended]
    if left and config.option.markexpr == "gpu":
        terminalreporter.section(f"{len(left)} of {len(config.stash[COLLECTED])} tests were not run")
        for test in left:
            terminalreporter.line(f"NOT RUN {test}")
