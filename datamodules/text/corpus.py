"""Reads documents from plain text, CSV, TSV and JSON-lines files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.errors import DataFileError, readable
from datamodules.listing import hidden_below
from datamodules.plain_text import text_lines, text_size
from datamodules.text.tables import TABLES, table_kind, table_rows

DocumentUnit = Literal["file", "paragraph", "line"]


class Document(NamedTuple):
    """One text: ``parts`` (a string per column; plain text has one), label (None = unknown) and split."""

    parts: tuple[str, ...]
    label: str | None = None
    split: str = "train"

    @property
    def text(self) -> str:
        return "\n".join(self.parts)


def text_files(root: Path, pattern: str) -> list[Path]:
    """``root`` itself if it is a file, otherwise the files below it that match the pattern, sorted.

    Raises:
        DataFileError: the file or folder does not exist, or nothing in it matches.
    """
    root = root.expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataFileError(f"--data.root {root} does not exist: expected a text file or a folder of them")
    found = sorted(path for path in root.glob(pattern) if path.is_file() and not hidden_below(path, root))
    if not found:
        raise DataFileError(f"--data.root {root} contains no file that matches --data.files {pattern!r}")
    return found


def embedded_documents() -> list[Document]:
    """The Python language reference that CPython ships for ``help()``: English prose, no download.

    79 documents and 464,970 characters in Python 3.11; the text differs between versions of Python.

    Raises:
        DataFileError: this Python was built without the text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataFileError("this Python has no pydoc_data.topics: give --data.root FILE_OR_FOLDER") from None
    return [Document((topics[name],)) for name in sorted(topics)]


class Corpus:
    """The documents of some files, re-read at each iteration: only one document has to fit in memory.

    Args:
        files: all plain text (UTF-8), or all tables (.csv, .tsv, .jsonl).
        columns: of tables: names (the first line is a header, or JSON keys) or numbers from 0 (no header).
        label_column: likewise; None = unlabeled.
        unit: what one document of plain text is: a whole file, a paragraph (separated by blank lines), or a
            line.
        splits: split of each file; "train" if not given.
        labels: label of each file, for all documents in it; replaces ``label_column``.

    Raises:
        DataFileError: plain text and tables mixed, tables without columns, or columns for plain text.

    Attributes:
        skipped: number of documents without text dropped in the last complete iteration.
    """

    def __init__(
        self,
        files: Sequence[Path],
        columns: Sequence[int | str] | None = None,
        label_column: int | str | None = None,
        unit: DocumentUnit = "file",
        splits: Mapping[Path, str] | None = None,
        labels: Mapping[Path, str] | None = None,
    ) -> None:
        self.files, self.columns, self.label_column, self.unit = list(files), columns, label_column, unit
        self.skipped = 0
        self.labels = labels or {}
        self.splits = {file: split for file, split in (splits or {}).items() if split != "train"}
        tables = [file for file in self.files if table_kind(file)]
        if tables and len(tables) < len(self.files):
            other = next(file for file in self.files if file not in tables)
            raise DataFileError(
                f"{tables[0]} is a table and {other} is not: select one kind with --data.files"
            )
        if tables and not columns:
            raise DataFileError(
                f"{tables[0]} is a table: name its text columns with --data.columns, such as '[text]' or "
                "'[1]'"
            )
        if not tables and (columns or label_column is not None):
            raise DataFileError(
                f"{self.files[0]} is not a table ({', '.join(TABLES)}): leave out columns and label_column"
            )
        self.are_tables = bool(tables)

    def __iter__(self) -> Iterator[Document]:
        skipped = 0
        for file in self.files:
            for document in self._table(file) if self.are_tables else self._plain(file):
                if document.text.strip():
                    label = self.labels.get(file, document.label)
                    yield document._replace(label=label, split=self.splits.get(file, "train"))
                else:
                    skipped += 1
        self.skipped = skipped

    def num_bytes(self) -> int:
        return sum(map(text_size, self.files))

    def digest(self) -> str:
        """Hash of the contents of all files and of the settings for reading them."""
        digest = hashlib.sha256(repr((self.columns, self.label_column, self.unit)).encode())
        for file in self.files:
            with readable(file), file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
            digest.update(b"\0end of file" + self.splits.get(file, "").encode())
        return digest.hexdigest()

    def _plain(self, file: Path) -> Iterator[Document]:
        if self.unit == "file":
            yield Document(("".join(text_lines(file)),))
        elif self.unit == "line":
            yield from (Document((line.rstrip("\n"),)) for line in text_lines(file) if line.strip())
        else:
            paragraph: list[str] = []
            for line in text_lines(file):
                if line.strip():
                    paragraph.append(line)
                elif paragraph:
                    yield Document(("".join(paragraph).rstrip("\n"),))
                    paragraph = []
            if paragraph:
                yield Document(("".join(paragraph).rstrip("\n"),))

    def _table(self, file: Path) -> Iterator[Document]:
        assert self.columns
        n = len(self.columns)
        label = [] if self.label_column is None else [self.label_column]
        for values in table_rows(file, [*self.columns, *label]):
            yield Document(tuple(values[:n]), "".join(values[n:]).strip() or None)


def sentences(text: str) -> list[str]:
    """Split a text into sentences.

    It is split after ``.``, ``!`` or ``?`` before white space and a capital, digit or quote, and at blank
    lines. This simple rule also splits after abbreviations such as "Mr. Smith".
    """
    cut = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n", text)
    return [s for s in (" ".join(piece.split()) for piece in cut if piece) if s]


def class_list(labels: Sequence[str | None]) -> tuple[str, ...]:
    """The distinct labels, sorted: numerically if all are numbers (equal numbers by their text)."""
    names = sorted({label for label in labels if label is not None})
    return tuple(sorted(names, key=int if all(re.fullmatch(r"-?\d+", name) for name in names) else str))


def made_up_documents(parts: int, labeled: bool) -> list[Document]:
    """240 fixed documents of made-up words; with labels, four classes that prefer different words."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8))) for _ in range(80)]

    def sentence(group: int) -> str:
        chosen = (
            rng.integers(0, 40, rng.integers(4, 10))
            if rng.random() < 0.5
            else rng.integers(10, 20, 6) + 10 * group
        )
        return " ".join(words[i] for i in chosen).capitalize() + "."

    documents = []
    for number in range(240):
        group = number % 4
        text = [" ".join(sentence(group) for _ in range(rng.integers(2, 6))) for _ in range(parts)]
        documents.append(Document(tuple(text), str(group) if labeled else None))
    return documents
