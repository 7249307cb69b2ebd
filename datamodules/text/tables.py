"""Reads the rows of CSV, TSV and JSON-lines files, and rejects rows that would lose text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import DataFileError
from datamodules.plain_text import text_lines

TABLES = (".csv", ".tsv", ".jsonl")

Row = dict[str, Any] | list[str]
"""Values by name, or, of a table without a header, by number."""


def table_kind(path: Path) -> str | None:
    """The extension of a table, ignoring ``.gz``, one of ``TABLES``; None for plain text."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in TABLES if name.endswith(kind)), None)


def table_rows(path: Path, wanted: Sequence[int | str]) -> Iterator[list[str]]:
    """The values of the columns ``wanted`` of each row, in order; a missing value is "".

    Args:
        path: .csv or .tsv (a header line if columns are names), or .jsonl (an object with keys per line).
        wanted: columns by name, or by number from 0.

    Raises:
        DataFileError: a row without one of the columns, with more fields than the header, with broken quotes,
            or with a value that is not text; one line that names file and line.
    """
    rows = _json_rows(path) if table_kind(path) == ".jsonl" else _csv_rows(path, wanted)
    for place, row in rows:
        values = []
        for name in wanted:
            try:
                value = row[name]  # type: ignore[index]
            except (KeyError, IndexError):
                known = f"{len(row)} columns" if isinstance(row, list) else ", ".join(map(str, row))
                raise DataFileError(f"{place} has no column {name!r}; it has {known}") from None
            values.append(_as_text(value, name, place))
        yield values


def _as_text(value: Any, name: int | str, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise DataFileError(
            f"{place} column {name!r} contains {'a list' if isinstance(value, list) else 'an object'}, "
            "expected text or a number: write one text per line"
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataFileError(
            f"{place} column {name!r} contains a lone surrogate (half a character): write the text as UTF-8"
        ) from None
    return text


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataFileError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataFileError(f"{path}, line {number}: expected an object with keys, got {kind}")
        yield f"{path}, line {number},", row


def _csv_rows(path: Path, wanted: Sequence[int | str]) -> Iterator[tuple[str, Row]]:
    """Rows of a CSV file, whose quotes must be complete, or of a TSV file, where a quote is a letter."""
    csv.field_size_limit(2**31 - 1)  # the default rejects documents of more than 131,072 characters
    if table_kind(path) == ".tsv":
        reader = csv.reader(text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text_lines(path), strict=True)
    header = None if all(isinstance(name, int) for name in wanted) else next(reader, [])
    width = None if header is None else len(header)
    while True:
        place = f"{path}, line {reader.line_num + 1},"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataFileError(
                f"{place} has a quote that is not closed or not doubled ({error}): write a quote inside a "
                'quoted field as "", or use JSON lines'
            ) from None
        if row is None:
            return
        if not row:
            continue
        width = width or len(row)
        if len(row) > width:
            first = "the first row" if header is None else "the header"
            mend = (
                "tabs cannot be part of a text" if table_kind(path) == ".tsv" else "quote a text with commas"
            )
            raise DataFileError(
                f"{place} has {len(row)} fields, but {first} has {width}: {mend}, or use JSON lines"
            )
        yield place, row if header is None else dict(zip(header, row, strict=False))
