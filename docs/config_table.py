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
    (r"Measured on CIFAR-10-JPEG only.*?\((docs/[\w/.]+)", "measured on CIFAR-10-JPEG: {}"),
    (r"Not run here", "not run"),
    (r"Measured for 4 epochs: (docs/[\w/.]+\.md)", "measured for 4 epochs: {}"),
    (r"Measured(?: results)?: (docs/[\w/.]+\.md)", "measured: {}"),
)


def state(config: Path) -> str:
    """Whether a config was measured here, with a link to its numbers.

    Raises:
        ValueError: the header does not tell.
    """
    lines = re.findall(r"^#.*", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    header = " ".join(line.lstrip("# ") for line in lines)
    for pattern, text in STATES:
        if found := re.search(pattern, header):
            page = found[1].removeprefix("docs/") if found.groups() else ""
            return text.format(f"[{Path(page).stem}]({page})")
    raise ValueError(f"{config}: its header has no Measured: docs/PAGE.md, Not measured or Not run here")


def table() -> str:
    """A row for each config, by folder."""
    rows = ["| config | here |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        rows.append(f"| `{path.relative_to(ROOT)}` | {state(path)} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """docs/configs.md with the table as it has to be now."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[0] + f"{BEGIN}\n{table()}"


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    PAGE.write_text(page(), encoding="utf-8")
