"""Tables that scripts write into pages."""

from __future__ import annotations

import sys
from pathlib import Path


def write_between_marks(file: Path, name: str, text: str) -> None:
    """Replace what is between the lines ``<!-- name: begin -->`` and ``<!-- name: end -->`` of a page."""
    marks = [f"<!-- {name}: {place} -->" for place in ("begin", "end")]
    content = file.read_text(encoding="utf-8")
    begin, end = (content.find(mark) for mark in marks)
    if not 0 <= begin < end:
        sys.exit(f"error: {file} has no lines {marks[0]} and {marks[1]}: put them where the table belongs")
    file.write_text(content[: begin + len(marks[0])] + f"\n{text}\n" + content[end:], encoding="utf-8")
