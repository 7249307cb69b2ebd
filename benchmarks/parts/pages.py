"""Tables of results, and writing them into pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.rounds import refuse


def mean_and_deviation(values: Sequence[float]) -> str:
    """A cell: "" for no value, the deviation for two or more."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def write_between_marks(file: Path, name: str, text: str) -> None:
    """Replace what is between the lines ``<!-- name: begin -->`` and ``<!-- name: end -->`` of a page."""
    marks = [f"<!-- {name}: {place} -->" for place in ("begin", "end")]
    content = file.read_text(encoding="utf-8")
    begin, end = (content.find(mark) for mark in marks)
    if not 0 <= begin < end:
        refuse(f"{file} has no lines {marks[0]} and {marks[1]}: put them where the table belongs")
    file.write_text(content[: begin + len(marks[0])] + f"\n{text}\n" + content[end:], encoding="utf-8")
