"""TensorBoard's event files of a run."""

from __future__ import annotations

import re
import time
from pathlib import Path


def put_before_now(folder: Path) -> None:
    """Rename event files so that their names sort in the order of writing, and before a new file's.

    TensorBoard reads ``events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER`` in the order of the names. That is
    not the order of writing if the clock was set back, or if two files of one process and second are numbered
    9 and 10.
    """

    def written(path: Path) -> tuple[int, int]:
        return _seconds(path), path.stat().st_mtime_ns

    limit = int(time.time())
    for path in sorted(folder.glob("events.out.tfevents.*"), key=written, reverse=True):
        limit = min(_seconds(path), limit - 1)
        if limit != _seconds(path):
            path.rename(path.with_name(re.sub(r"tfevents\.\d+", f"tfevents.{limit:010d}", path.name)))


def _seconds(path: Path) -> int:
    found = re.search(r"tfevents\.(\d+)", path.name)
    return int(found[1]) if found else 0
