"""Text files as token ids, in memory or memory-mapped.

Splits are fixed and never depend on the run's seed. Everything learned from data (tokenizer, class
frequencies) uses only the training split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from datamodules.checks import check, check_one_of
from datamodules.class_folders import classes_of_files
from datamodules.errors import ConfigError, DataFileError
from datamodules.listing import fingerprint, printable
from datamodules.preparing import alone_in
from datamodules.remarks import copied_samples, missing_classes
from datamodules.splits import Split, split_of_files, stratified_holdout
from datamodules.text.corpus import (
    Corpus,
    Document,
    DocumentUnit,
    class_list,
    embedded_documents,
    made_up_documents,
    sentences,
    text_files,
)
from datamodules.text.module import TextDataModule
from datamodules.text.pieces import pieces
from datamodules.text.store import (
    DocumentDataset,
    Tokens,
    TokenWriter,
    WindowDataset,
    cut_pairs,
    cut_to,
    frame,
    open_tokens,
)
from datamodules.text.tokenizer import PAD, SEP, Kind, Tokenizer, train_tokenizer
from datamodules.transforms.tokens import MaskedTokens

Layout = Literal["windows", "documents", "pairs"]

MEMORY_LIMIT = 512 * 2**20
"""Maximum size in bytes of a corpus that is kept in memory with its tokens."""

BLOCK = 2**20
"""Characters encoded at once."""

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def _some(items: Iterator[tuple[int, Document, bool]]) -> Iterator[tuple[int, Document, bool]]:
    """The next items, until they have ``BLOCK`` characters."""
    size = 0
    for item in items:
        yield item
        size += len(item[1].text)
        if size >= BLOCK:
            return


class TextFiles(TextDataModule):
    """Text files, plain or tables; by default the Python language reference that ships with CPython.

    Files named after splits, or in folders named after splits (docs/data/splits.md), are used as such. If
    only one of val and test is given, it is used as test, and val is held out as below. Otherwise documents
    are split by a fixed rule. Ten or more: 80 % train, 10 % val and 10 % test of the documents, drawn with a
    fixed seed and stratified by class. Fewer, such as one long text: the first 90 % of the characters are
    train, the last 10 % both val and test (nanoGPT's rule); then do not choose anything on val.

    Layouts::

        one text, its last tenth val and test; --data.root FILE reads a single file:
            DIR/book.txt
        a document per file; --data.document paragraph or line: many in each:
            DIR/1.txt  DIR/more/2.txt
        a word for the split in every file name:
            DIR/wiki.train.txt  DIR/wiki.valid.txt  DIR/wiki.test.txt
        a folder per class, here in folders of splits (--data.class_folders true):
            DIR/train/pos/1.txt  DIR/train/neg/2.txt  DIR/train/unsup/3.txt  DIR/test/pos/4.txt
        tables (--data.files '*.csv' --data.columns '[title,text]' --data.label_column class):
            DIR/news.csv

    Args:
        root: a file, or a folder; None = the embedded text.
        files: glob pattern of the files in the folder; ``*.csv``, ``*.tsv`` and ``*.jsonl`` are tables.
        columns: text columns of tables, by name (from the header line, or JSON keys) or number from 0 (no
            header).
        label_column: class column of tables, by name or number; rows without one are unlabeled.
        class_folders: a file's folder, below the root or below a split, is its class, as in IMDB's
            ``train/pos/1.txt``; files of a split ``unsup`` or ``unlabeled`` have none.
        document: what one document of a plain file is: the whole file, a paragraph (separated by blank
            lines), or a line.
        layout: ``windows``: ``length`` consecutive tokens, for language models; they cross document
            boundaries, marked by a blank line, or by [SEP] for bpe and wordpiece. ``documents``: [CLS] text
            [SEP], cut and padded to ``length``. ``pairs``: [CLS] A [SEP] B [SEP], padded: two columns, or two
            halves of neighboring sentences of one text, as many as fit into ``length``; a document gives as
            many samples as its length allows.
        tokenizer: characters, bytes, bpe or wordpiece, built from the training split. Characters and bytes
            have special tokens only in the layouts that need them.
        vocab_size: maximum for bpe and wordpiece: a small corpus gives fewer.
        cache: folder for memory-mapped token files, required for more than 512 MB of text. A file is written
            once, and named by a hash of the text, the tokenizer and the layout.
        **kwargs: ``TextDataModule``'s and ``SSLDataModule``'s.

    Raises:
        DataFileError: files that are missing, empty or not UTF-8, rows without the column, or too few
            documents.
        ValueError: a bad argument.
    """

    def __init__(
        self,
        root: str | None = None,
        files: str = "**/*.txt",
        columns: list[int | str] | None = None,
        label_column: int | str | None = None,
        class_folders: bool = False,
        document: DocumentUnit = "file",
        layout: Layout = "windows",
        tokenizer: Kind = "characters",
        vocab_size: int = 8_000,
        cache: str | None = None,
        **kwargs: Any,
    ) -> None:
        root = None if root is None else str(root)
        super().__init__(**kwargs)
        check_one_of(get_args(DocumentUnit), document=document)
        check_one_of(get_args(Layout), layout=layout)
        check_one_of(get_args(Kind), tokenizer=tokenizer)
        if layout == "pairs" and columns is not None and len(columns) > 2:
            raise ConfigError(f"layout pairs takes one or two columns, got {columns}")
        if class_folders and label_column is not None:
            raise ConfigError("class_folders and label_column both define the class: give only one of them")
        if layout != "pairs" and isinstance(self.views, MaskedTokens) and self.views.next_sentence:
            raise ConfigError(
                f"layout {layout} has no second segment: give --data.views.next_sentence false, or layout "
                "pairs"
            )
        if layout != "windows":
            check(self.length >= 8, "length", f"at least 8 for layout {layout}", self.length)
        self.root, self.pattern, self.columns, self.label_column = root, files, columns, label_column
        self.class_folders, self.document, self.layout = class_folders, document, layout
        self.kind, self.most_tokens, self.cache = tokenizer, vocab_size, cache
        self.pad_id = None if layout == "windows" else PAD
        self._corpus: Iterable[Document] | None = None
        self._split_of: np.ndarray | None = None
        self._fingerprint: dict[str, Any] | None = None
        self._labels: list[str | None] = []

    # ---- documents -----------------------------------------------------------------------------------------

    def _documents(self) -> Iterable[Document]:
        """All documents, in memory if there are few."""
        if self._corpus is None:
            if self.synthetic:
                labeled = self.class_folders or self.label_column is not None
                self._corpus = made_up_documents(len(self.columns or [0]), labeled)
            elif self.root is None:
                self._corpus = embedded_documents()
            else:
                corpus = self._read()
                if corpus.num_bytes() > MEMORY_LIMIT and self.cache is None:
                    raise DataFileError(
                        f"--data.root {self.root} contains {corpus.num_bytes() / 2**20:,.0f} MB of text, too "
                        "much to keep in memory: give --data.cache FOLDER for its token files"
                    )
                self._corpus = corpus if corpus.num_bytes() > MEMORY_LIMIT else list(corpus)
                if corpus.skipped:
                    rank_zero_info(f"{self.root}: {corpus.skipped} documents without text are left out")
        return self._corpus

    def _read(self) -> Corpus:
        """The documents of the files that are assigned to a split."""
        root = Path(str(self.root)).expanduser()
        files = text_files(root, self.pattern)
        if self.class_folders:
            splits, labels = classes_of_files(root, files, "text files")
            return Corpus(list(splits), self.columns, None, self.document, splits, labels)
        splits = split_of_files(root, files, "text files")
        return Corpus(list(splits), self.columns, self.label_column, self.document, splits)

    def remarks(self) -> list[str]:
        if self.synthetic or self.root is None or (self._assign() < 0).any():
            return super().remarks()
        assigned, names = self._assign(), self.class_names
        labels = np.array([-1 if label is None else names.index(label) for label in self._labels])
        found = [missing_classes({s: labels[assigned == i] for i, s in enumerate(SPLITS)}, names)]
        if isinstance(self._corpus, list):
            texts = (
                (SPLITS[split], d.text.encode()) for split, d in zip(assigned, self._corpus, strict=True)
            )
            found.append(copied_samples(texts, "documents"))
        return super().remarks() + [f"{printable(str(self.root))}: {line}" for line in found if line]

    def fingerprint(self) -> dict[str, Any] | None:
        if self.synthetic or self.root is None:
            return None
        if self._fingerprint is None:
            root = Path(self.root).expanduser()
            folder = root.parent if root.is_file() else root
            files = [str(file.relative_to(folder)) for file in text_files(root, self.pattern)]
            self._fingerprint = fingerprint(str(folder), files)
        return self._fingerprint

    def _assign(self) -> np.ndarray:
        """(N,) split of each document: 0 train, 1 val, 2 test; -1 for few documents, split as one text."""
        if self._split_of is None:
            self._labels, given = [], []
            for document in self._documents():
                self._labels.append(document.label)
                given.append(document.split)
            if not given:
                raise DataFileError(f"--data.root {self.root}: no text in {self.pattern}")
            splits = set(given) - {"train", "unlabeled"}
            numbers = {"train": -1, "unlabeled": 0, "val": 1 if "test" in splits else 2, "test": 2}
            self._split_of = np.array([numbers[split] for split in given])
            rest = np.flatnonzero(self._split_of < 0)
            n = len(rest)
            if len(splits) == 2:
                self._split_of[rest] = 0
            elif n >= 10:
                names = class_list(self._labels)
                classes = np.array([names.index(x) if x is not None else -1 for x in self._labels])
                if not splits:
                    rest = self._hold_out(rest, classes, round(n / 10), 2)
                self._split_of[self._hold_out(rest, classes, round(n / 10), 1)] = 0
            elif self.layout != "windows":
                raise DataFileError(
                    f"--data.root {self.root}: {n} documents, but layout {self.layout} needs at least 10 to "
                    "split: give more files, or --data.document paragraph"
                )
        return self._split_of

    def _hold_out(self, rows: np.ndarray, classes: np.ndarray, size: int, number: int) -> np.ndarray:
        """Assign ``size`` of the documents ``rows`` to split ``number``; returns the others."""
        kept, held = stratified_holdout(classes[rows], size)
        assert self._split_of is not None
        self._split_of[rows[held]] = number
        return rows[kept]

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names, sorted; the files are read on first access."""
        if self.label_column is None and not self.class_folders:
            return ()
        self._assign()
        return class_list(self._labels)

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

    def _texts(self, split: int) -> Iterator[str]:
        """The texts of a split, for the tokenizer and for windows."""
        assigned = self._assign()
        yield from (d.text for d, own in zip(self._documents(), assigned, strict=True) if own == split)
        if (assigned < 0).any() and (split < 2 or not (assigned == 2).any()):
            few = (d.text for d, own in zip(self._documents(), assigned, strict=True) if own < 0)
            whole = "\n\n".join(few)
            cut = int(len(whole) * 0.9)
            yield whole[:cut] if split == 0 else whole[cut:]

    # ---- tokens --------------------------------------------------------------------------------------------

    @property
    def characters_per_token(self) -> float | None:  # type: ignore[override]
        """Mean over the validation windows, for bits per character; None for the other layouts."""
        if self.layout != "windows":
            return None
        some = self.dataset("val").flat[:1_000_000]  # type: ignore[attr-defined]
        return len(self.tokenizer.decode(some)) / len(some)

    def _make_tokenizer(self) -> Tokenizer:
        joints = ["\n"] if np.bincount(self._assign() + 1).max() > 1 else []
        texts = chain((piece for text in self._texts(0) for piece, _ in pieces(text)), joints)
        return train_tokenizer(self.kind, texts, self.most_tokens, specials=self.layout != "windows")

    def _read_tokenizer(self, text: str) -> Tokenizer:
        tokenizer = super()._read_tokenizer(text)
        if self.layout != "windows" and not tokenizer.specials:
            raise ConfigError(
                f"--data.vocabulary has no special tokens, which layout {self.layout} needs: leave it out"
            )
        return tokenizer

    def _load(self) -> dict[str, Dataset]:
        tokens = self._tokens()
        if self.layout == "windows":
            train, bank, val, test = (
                WindowDataset(tokens[split].flat, self.length, moving)
                for split, moving in (("train", True), ("train", False), ("val", False), ("test", False))
            )
            return {"train": train, "bank": bank, "val": val, "test": test}
        made = {split: DocumentDataset(tokens[split], self.length) for split in SPLITS}
        return {**made, "bank": made["train"]}  # type: ignore[dict-item]

    def _tokens(self) -> dict[str, Tokens]:
        """The tokens of train, val and test: read from the cache, or built (and cached)."""
        if self.cache is not None and self.root is not None and not self.synthetic:
            folder, key = Path(self.cache).expanduser(), self._key()
            folder.mkdir(parents=True, exist_ok=True)
            stored = {split: folder / f"{key}-{split}" for split in SPLITS}
            with alone_in(folder):
                if all(path.with_suffix(".npz").is_file() for path in stored.values()):
                    return {split: open_tokens(path) for split, path in stored.items()}
                return self._tokenize_all(stored)
        return self._tokenize_all(dict.fromkeys(SPLITS))

    def _tokenize_all(self, paths: Mapping[Split, Path | None]) -> dict[str, Tokens]:
        return {split: self._tokenize(number, split, paths[split]) for number, split in enumerate(SPLITS)}

    def _tokenize(self, number: int, split: Split, path: Path | None) -> Tokens:
        writer, unknown, without = TokenWriter(self.vocab_size, path), 0, 0
        for document, label, segments, ends in self._encoded(number):
            unknown += sum(count for _, count in segments)
            made = self._samples([ids for ids, _ in segments], ends)
            without += not made
            for ids in made:
                writer.add(ids, label, document)
        tokens = writer.finish()
        if unknown:
            what = "become [UNK]" if self.tokenizer.specials else "are left out"
            rank_zero_info(
                f"{split}: {unknown} of {len(tokens.flat)} tokens are not in the training text and {what}"
            )
        if without:
            rank_zero_info(f"{split}: {without} texts too short for layout {self.layout} are left out")
        if len(tokens.flat) == 0:
            raise DataFileError(
                f"--data.root {self.root}: no samples are left for split {split} with layout {self.layout}"
            )
        return tokens

    def _items(self, split: int) -> Iterator[tuple[int, Document, bool]]:
        """(number, document, True); for windows, which cross documents, (number, piece, is it the last)."""
        assigned = self._assign()
        if (assigned < 0).any():
            items = enumerate(Document((text,)) for text in self._texts(split))
        else:
            items = ((i, d) for i, d in enumerate(self._documents()) if assigned[i] == split)  # type: ignore[assignment]
        for number, document in items:
            if self.layout != "windows":
                yield number, document, True
                continue
            for piece, ends in pieces(document.text):
                yield number, Document((piece,), document.label), ends

    def _encoded(self, split: int) -> Iterator[tuple[int, int, list[tuple[np.ndarray, int]], bool]]:
        """(document number, label, (ids, unknown tokens) of each segment, does the document end)."""
        names, items = self.class_names, self._items(split)
        while block := list(_some(items)):  # many at once, to keep the library's threads busy
            texts = [self._segments(document) for _, document, _ in block]
            ids = iter(self.tokenizer.encode([text for one in texts for text in one]))
            for (number, document, ends), one in zip(block, texts, strict=True):
                label = -1 if document.label is None else names.index(document.label)
                encoded = [next(ids) for _ in one]
                counts = [self.tokenizer.count_unknown(text, x) for text, x in zip(one, encoded, strict=True)]
                yield number, label, list(zip(encoded, counts, strict=True)), ends

    def _segments(self, document: Document) -> list[str]:
        if self.layout != "pairs":
            return [document.text]
        return list(document.parts) if len(document.parts) == 2 else sentences(document.text)

    def _samples(self, segments: list[np.ndarray], ends: bool) -> list[np.ndarray]:
        """The samples of a document: its tokens with the separator, one sample, or its pairs."""
        if self.layout == "windows":
            return [np.concatenate([segments[0], self._separator()]) if ends else segments[0]]
        if self.layout == "documents":
            return [frame(segments[0][: self.length - 2])] if len(segments[0]) else []
        room = self.length - 3
        if self.columns is not None and len(self.columns) == 2:
            first, second = segments
            return [frame(*cut_to(first, second, room))] if len(first) and len(second) else []
        return [frame(*pair) for pair in cut_pairs(segments, room)]

    def _separator(self) -> np.ndarray:
        """Tokens between two documents of a stream; empty if each split is one text."""
        assigned = self._assign()
        if np.bincount(assigned[assigned >= 0]).max(initial=0) < 2:
            return np.empty(0, np.int64)
        return np.array([SEP]) if self.tokenizer.specials else self.tokenizer.encode(["\n\n"])[0]

    def _key(self) -> str:
        """Hash that names the token files: the text, the tokenizer, and how samples are cut."""
        how = [self._read().digest(), self.tokenizer.to_json(), self.layout, self.length]
        return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]
