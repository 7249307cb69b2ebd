"""Turns the scripts in docs/tutorials/ into notebooks and pages: python docs/notebooks.py

A script is a sequence of cells. A line ``# %% [markdown]`` begins text and ``# %% [bash]`` commands, both
written as comments; ``# %%`` begins Python.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

TUTORIALS = Path(__file__).resolve().parent / "tutorials"


class Cell(NamedTuple):
    """One cell: ``markdown``, ``bash`` or ``python``, and what it holds."""

    kind: str
    text: str


def cells(script: Path) -> list[Cell]:
    """The cells of a script, in order."""
    parts = re.split(r"^# %%(?: \[(\w+)\])?\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for kind, text in zip(parts[1::2], parts[2::2], strict=True):
        if kind:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        found.append(Cell(kind or "python", text.strip("\n")))
    return found


def as_notebook(content: list[Cell]) -> dict[str, Any]:
    """A notebook without outputs (nbformat 4.5)."""
    made = []
    for number, (kind, text) in enumerate(content):
        source = f"%%bash\n{text}" if kind == "bash" else text
        cell: dict[str, Any] = {
            "cell_type": "markdown" if kind == "markdown" else "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": source.splitlines(keepends=True),
        }
        made.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def as_markdown(content: list[Cell]) -> str:
    """A page: commands and Python in fenced blocks."""
    return "\n\n".join(text if kind == "markdown" else f"```{kind}\n{text}\n```" for kind, text in content)


def notebook_text(script: Path) -> str:
    """What the notebook beside a script holds."""
    return json.dumps(as_notebook(cells(script)), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in sorted(TUTORIALS.glob("*.py")):
        path.with_suffix(".ipynb").write_text(notebook_text(path), encoding="utf-8")
