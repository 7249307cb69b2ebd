"""Writes the table of docs/configs.md from the first lines of the configs: python docs/config_table.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configs.md"
BEGIN = "<!-- configs: begin -->"
#: What a header says of the config, the first that is found.
STATES = (
    (r"Not run to its end", "runs, but was not run to its end"),
    (r"Not measured", "runs, but was not measured"),
    (r"Not run here", "not run"),
)
MEASURED = re.compile(r"^# Measured on (.+), (\d{4}-\d\d-\d\d): (.+) \(docs/([\w/]+\.md)\)$", re.MULTILINE)


def state(config: Path) -> str:
    """A config's cells: what was measured here, with a link to more, on which hardware, and when.

    Raises:
        ValueError: the header does not tell.
    """
    text = config.read_text(encoding="utf-8")
    if found := MEASURED.search(text):
        hardware, date, number, page = found.groups()
        return f"{number} ([{Path(page).stem}]({page})) | {hardware} | {date}"
    header = " ".join(line.lstrip("# ") for line in re.findall(r"^#.*", text, flags=re.MULTILINE))
    for pattern, words in STATES:
        if re.search(pattern, header):
            return f"{words} | |"
    raise ValueError(
        f"{config}: expected a line Measured on HARDWARE, DATE: NUMBER (docs/PAGE.md), or Not measured, or "
        "Not run here"
    )


def table() -> str:
    """A row for each config, by folder."""
    rows = ["| config | here | hardware | date |", "|---|---|---|---|"]
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        rows.append(f"| `{path.relative_to(ROOT)}` | {state(path)} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """docs/configs.md with the table as it has to be now."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[0] + f"{BEGIN}\n{table()}"


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    PAGE.write_text(page(), encoding="utf-8")
