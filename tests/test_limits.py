"""The limits of shape in CONTRIBUTING.md: 400 lines a file, 50 lines a function body (ruff checks the 110
characters a line).
"""

from __future__ import annotations

import ast
import re

import pytest

from runtime.messages import ROOT
from tests.documents import name_of

FOLDERS = ("sslmodules", "datamodules", "evaluation", "runtime", "cluster", "benchmarks", "tests")
FILES = [
    *sorted(ROOT.glob("*.py")),
    *(p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))),
]
#: Still above the limit of a file. Take off what keeps it.
TOO_LONG = {
    "datamodules/base.py",
    "tests/datamodules/test_images.py",
    "tests/datamodules/test_sequences.py",
    "tests/datamodules/test_shards.py",
    "tests/datamodules/test_text.py",
    "tests/sslmodules/test_gpt.py",
    "tests/test_contract.py",
}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last one."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_functions(code: str) -> list[str]:
    functions = (
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [f.name for f in functions if body_lines(f) > 50]


def test_files_have_at_most_400_lines() -> None:
    long = {name_of(p) for p in FILES if len(p.read_text(encoding="utf-8").splitlines()) > 400}
    assert sorted(long - TOO_LONG) == []


def test_function_bodies_have_at_most_50_lines() -> None:
    found = {name_of(p): names for p in FILES if (names := long_functions(p.read_text(encoding="utf-8")))}
    assert found == {}


def test_no_docstring_contains_the_quotes_of_a_string_that_was_split() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        name_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and re.search(r' "\n\s*"', ast.get_docstring(node) or "")
    ]
    assert found == []


@pytest.mark.parametrize(("statements", "long"), [(50, []), (51, ["f"])])
def test_a_docstring_does_not_count(statements: int, long: list[str]) -> None:
    body = "".join("    x = 1\n" for _ in range(statements))
    assert long_functions(f'def f():\n    """One.\n\n    Two.\n    """\n{body}') == long
