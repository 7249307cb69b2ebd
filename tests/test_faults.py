"""Provoked faults: the displayed line, the exit status, and that nothing is lost.

``python -m tests.test_faults`` runs them and prints how many end as expected. The table in words:
docs/faults.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import data, options, resuming, running  # noqa: F401 (they enter their rows)
from tests.faults.bench import ROWS, Bench, Row

pytestmark = pytest.mark.slow


def marked(row: Row) -> Any:
    marks = [pytest.mark.xfail(reason=row.missing, strict=True)] if row.missing else []
    return pytest.param(row, marks=marks, id=f"{row.number:02d} {row.fault}")


@pytest.mark.parametrize("row", [marked(row) for row in sorted(ROWS)])
def test_fault(
    row: Row, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    row.test(Bench(tmp_path, capfd, monkeypatch))


def test_no_row_is_left_out() -> None:
    assert sorted(row.number for row in ROWS) == list(range(1, 45))


class Count:
    def __init__(self) -> None:
        self.passed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if (
            report.when == "call"
            and report.passed
            and "test_fault[" in report.nodeid
            and not hasattr(report, "wasxfail")
        ):
            self.passed.add(report.nodeid)


if __name__ == "__main__":
    count = Count()
    code = pytest.main(["-n", "0", "-m", "slow", __file__, *sys.argv[1:]], plugins=[count])
    print(f"{len(count.passed)} of {len(ROWS)} faults end as they should")
    sys.exit(code)
