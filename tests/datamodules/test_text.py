"""Text files: reading, splits, layouts and storage, and one line for unusable ones."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.errors import ConfigError, DataFileError
from datamodules.text.corpus import Corpus, class_list, embedded_documents, sentences
from datamodules.text.files import TextFiles
from datamodules.text.store import TokenWriter, WindowDataset, cut_pairs, cut_to, open_tokens
from datamodules.text.tokenizer import CLS, PAD, SEP, train_tokenizer


def texts_of(data: TextFiles, split: Any) -> list[str]:
    dataset: Any = data.dataset(split)
    return [data.to_text(row) for row in dataset.__getitems__(range(len(dataset)))["input"]]


def write_rows(path: Path, rows: int = 40) -> Path:
    lines = [f'"{i % 4 + 1}","title {i}","body number {i}, with a comma"' for i in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- windows -----------------------------------------------------------------------------------------------


def test_one_text_is_split_as_nanogpt_does(tmp_path: Path) -> None:
    """The first 90 % of the characters are train, the last 10 % val; each token of val but its first is
    predicted once.
    """
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    data = TextFiles(root=str(tmp_path), length=12, batch_size=4)
    assert data.vocab_size == 26 and data.pad_id is None and data.characters_per_token == 1
    bank, val = (
        "".join(t[:-1] for t in texts_of(data, "bank")),
        "".join(t[:-1] for t in texts_of(data, "val")),
    )
    assert bank == text[: len(bank)] and 900 - 12 < len(bank) < 900
    assert val == text[900 : 900 + len(val)] and 100 - 12 < len(val) < 100
    assert texts_of(data, "test") == texts_of(data, "val")


def test_training_windows_move_with_the_epoch_and_never_leave_the_text() -> None:
    dataset = WindowDataset(np.arange(100), length=10, moving=True)
    starts = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        rows = dataset.__getitems__(range(len(dataset)))["input"]
        assert torch.equal(rows, dataset.__getitems__(range(len(dataset)))["input"])
        assert rows.max() < 100 and torch.equal(rows[1:, 0], rows[:-1, -1])  # neighbors share one token
        starts.add(int(rows[0, 0]))
    assert starts == set(range(9))
    assert len(WindowDataset(np.arange(10), 10, moving=True)) == 1
    with pytest.raises(ValueError, match=r"9 tokens, fewer than a window: give --data\.length 9 or less"):
        WindowDataset(np.arange(9), 10)


def test_documents_of_a_stream_are_kept_apart(tmp_path: Path) -> None:
    """Two documents are separated by a blank line or [SEP]; no document is in two splits."""
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"<{i}>" * 5)
    data = TextFiles(root=str(tmp_path), length=8)
    streams = {split: data.tokenizer.decode(data.dataset(split).flat) for split in ("train", "val", "test")}  # type: ignore[attr-defined,arg-type]
    documents = {split: [d for d in text.split("\n\n") if d] for split, text in streams.items()}
    assert [len(documents[s]) for s in ("train", "val", "test")] == [16, 2, 2]
    assert sorted(d for ds in documents.values() for d in ds) == sorted(f"<{i}>" * 5 for i in range(20))
    pieces = TextFiles(root=str(tmp_path), length=8, tokenizer="wordpiece", vocab_size=100)
    assert (pieces.dataset("train").flat == SEP).sum() == 16  # type: ignore[attr-defined]


# ---- documents and pairs -----------------------------------------------------------------------------------


def test_columns_as_pairs(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv")
    options: dict[str, Any] = {
        "layout": "pairs",
        "columns": [1, 2],
        "label_column": 0,
        "files": "*.csv",
        "length": 40,
    }
    data = TextFiles(root=str(tmp_path), **options)
    assert data.class_names == ("1", "2", "3", "4") and data.num_classes == 4
    seen = set()
    for split, n in (("train", 32), ("val", 4), ("test", 4)):
        batch = data.dataset(split).__getitems__(range(n))  # type: ignore[arg-type, attr-defined]
        for ids, label, document in zip(batch["input"], batch["label"], batch["document"], strict=True):
            number = int(document)
            seen.add(number)
            assert label == number % 4
            ends = (ids == SEP).nonzero()[:, 0]
            assert ids[0] == CLS and len(ends) == 2 and (ids[ends[1] + 1 :] == PAD).all()
            assert data.to_text(ids[: ends[0]]) == f"title {number}"
            assert f"body number {number}, with a comma".startswith(data.to_text(ids[ends[0] :]))
        assert sorted(batch["label"].tolist()) == sorted(list(range(4)) * (n // 4)), (
            "a class is missing in the split"
        )
    assert seen == set(range(40))


def test_json_lines_and_headers_give_the_same(tmp_path: Path) -> None:
    rows = [{"body": f"text {i}", "kind": "even" if i % 2 == 0 else "odd"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.tsv").write_text("kind\tbody\n" + "\n".join(f"{r['kind']}\t{r['body']}" for r in rows))
    made = []
    for files in ("*.jsonl", "*.tsv"):
        data = TextFiles(
            root=str(tmp_path),
            files=files,
            columns=["body"],
            label_column="kind",
            layout="documents",
            length=16,
        )
        made.append((texts_of(data, "train"), data.dataset("train").labels.tolist(), data.class_names))  # type: ignore[attr-defined]
    assert made[0] == made[1] and made[0][2] == ("even", "odd") and len(made[0][0]) == 16


def test_a_class_only_where_there_is_one(tmp_path: Path) -> None:
    rows = [f"{'x' if i % 2 else ''},text {i}" for i in range(20)]
    (tmp_path / "a.csv").write_text("label,text\n" + "\n".join(rows))
    data = TextFiles(
        root=str(tmp_path),
        files="*.csv",
        columns=["text"],
        label_column="label",
        layout="documents",
        length=16,
    )
    assert data.class_names == ("x",) and set(data.dataset("train").labels.tolist()) == {-1, 0}  # type: ignore[attr-defined]


def test_sentences() -> None:
    text = 'It works. Does it?  Yes!\nStill the same 3.5 line e.g. this one\n\nA "new" paragraph.'
    expected = [
        "It works.",
        "Does it?",
        "Yes!",
        "Still the same 3.5 line e.g. this one",
        'A "new" paragraph.',
    ]
    assert sentences(text) == expected


def test_pairs_of_a_document_are_neighbors_and_lose_nothing() -> None:
    """A and B one after the other give the text back; both are there; each at most as long as there is
    room.
    """
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = np.split(np.arange(200), np.sort(rng.choice(np.arange(1, 200), 15, replace=False)))
        pairs = cut_pairs(parts, room=25)
        ids = np.concatenate([np.concatenate(pair) for pair in pairs])
        assert np.isin(ids, np.arange(200)).all() and (np.diff(ids) >= 1).all()
        assert len(ids) >= 195  # only what is a single token is lost
        for first, second in pairs:
            assert (
                len(first) and len(second) and len(first) + len(second) <= 25 and first[-1] + 1 == second[0]
            )
    [(first, second)] = cut_pairs([np.arange(7)], room=25)  # a short document gives a true pair, too
    assert first.tolist() == [0, 1, 2] and second.tolist() == [3, 4, 5, 6]
    assert cut_pairs([np.arange(1)], room=25) == [] and cut_pairs([], room=25) == []


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(3, 3, (3, 3)), (9, 3, (7, 3)), (3, 9, (3, 7)), (9, 9, (5, 5)), (10, 2, (8, 2))]
)
def test_the_longer_segment_is_cut(a: int, b: int, expected: tuple[int, int]) -> None:
    first, second = cut_to(np.arange(a), np.arange(b), room=10)
    assert (len(first), len(second)) == expected


def test_the_embedded_text_makes_pairs() -> None:
    documents = embedded_documents()
    if sys.version_info[:3] == (3, 11, 7):  # the text is Python's own
        assert (len(documents), sum(len(d.text) for d in documents)) == (79, 464_970)
    data = TextFiles(layout="pairs", tokenizer="wordpiece", vocab_size=1000, length=64)
    batch = data.dataset("val").__getitems__(range(100))  # type: ignore[attr-defined]
    assert ((batch["input"] == SEP).sum(1) == 2).all() and len(batch["document"].unique()) > 1
    assert data.num_classes is None and (batch["label"] == -1).all()
    train, val = (set(data.dataset(s).tokens.documents.tolist()) for s in ("train", "val"))  # type: ignore[attr-defined, arg-type]
    assert not train & val


# ---- kept: in the checkpoint, in the run folder, in the cache ----------------------------------------------


def test_the_tokenizer_is_learnt_from_train_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 450 + "z" * 100)
    data = TextFiles(root=str(tmp_path), length=10)
    assert data.vocab_size == 2
    with pytest.raises(DataFileError, match="no samples are left for split val"):
        data.dataset("val")


def test_the_tokenizer_goes_with_the_checkpoint(tmp_path: Path) -> None:
    """Rebuilt from the hyper-parameters, or resumed, on another text: the ids stay those that the weights
    know.
    """
    (tmp_path / "a.txt").write_text("abcde" * 100)
    (tmp_path / "b.txt").write_text("Aabcdey" * 100)
    first = TextFiles(root=str(tmp_path / "a.txt"), length=10, batch_size=4)
    first.prepare_data()
    state, hparams = first.state_dict(), dict(first.hparams)
    assert hparams.pop("_class_path") == "TextFiles"
    with pytest.raises(
        ConfigError, match=r"the files of .*b\.txt have changed since the checkpoint was written"
    ):
        TextFiles(root=str(tmp_path / "b.txt"), length=10, batch_size=4).load_state_dict(state)
    del state["files"]  # as earlier versions wrote it
    assert first.encode("cab") == [2, 0, 1]
    rebuilt = TextFiles(**{**hparams, "root": str(tmp_path / "b.txt")})
    assert rebuilt.vocab_size == 5 and rebuilt.encode("Acab") == [2, 0, 1]
    resumed = TextFiles(root=str(tmp_path / "b.txt"), length=10, batch_size=4)
    assert resumed.encode("cab") == [3, 1, 2]
    resumed.load_state_dict(state)
    assert resumed.encode("cab") == [2, 0, 1] and resumed.dataset("train").flat.max() == 4  # type: ignore[attr-defined]
    first.save(tmp_path)
    given = TextFiles(root=str(tmp_path / "b.txt"), length=10, vocabulary=str(tmp_path / "tokenizer.json"))
    assert given.encode("cab") == [2, 0, 1]


def test_token_files_are_used_again_and_change_with_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "t.csv")
    options: dict[str, Any] = {
        "layout": "pairs",
        "columns": [1, 2],
        "label_column": 0,
        "files": "*.csv",
        "length": 40,
    }
    plain = TextFiles(root=str(tmp_path), **options)
    cached = TextFiles(root=str(tmp_path), cache=str(tmp_path / "cache"), **options)
    assert texts_of(cached, "val") == texts_of(plain, "val")
    assert isinstance(cached.dataset("val").tokens.flat, np.memmap)  # type: ignore[attr-defined]
    written = sorted((tmp_path / "cache").glob("[!.]*"))
    assert len(written) == 6
    with monkeypatch.context() as patch:
        patch.setattr(TextFiles, "_tokenize", None)  # nothing is made a second time
        again = TextFiles(root=str(tmp_path), cache=str(tmp_path / "cache"), **options)
        assert texts_of(again, "train") == texts_of(plain, "train")
        assert again.dataset("train").labels.tolist() == plain.dataset("train").labels.tolist()  # type: ignore[attr-defined]
    write_rows(tmp_path / "t.csv", 41)
    TextFiles(root=str(tmp_path), cache=str(tmp_path / "cache"), **options).prepare_data()
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 12


@pytest.mark.parametrize("ending", [".npz", ".bin"])
def test_a_damaged_token_file_is_named(ending: str, tmp_path: Path) -> None:
    writer = TokenWriter(70_000, tmp_path / "x")
    writer.add(np.array([1, 69_999]), 3, 7)
    writer.finish()
    file = (tmp_path / "x").with_suffix(ending)
    file.write_bytes(file.read_bytes()[:4])
    with pytest.raises(DataFileError) as caught:
        open_tokens(tmp_path / "x")
    text = str(caught.value)
    assert text.startswith(f"the token file {tmp_path / 'x'}.npz or .bin is damaged (")
    assert text.endswith("): remove both; they will be rebuilt")


def test_a_token_file_is_whole_or_absent(tmp_path: Path) -> None:
    writer = TokenWriter(70_000, tmp_path / "x")
    writer.add(np.array([1, 69_999]), 3, 7)
    assert not (tmp_path / "x.npz").exists() and not (tmp_path / "x.bin").exists()
    writer.add(np.array([5]))
    writer.finish()
    tokens = open_tokens(tmp_path / "x")
    assert tokens.flat.tolist() == [1, 69_999, 5] and tokens.offsets.tolist() == [0, 2, 3]
    assert tokens.labels.tolist() == [3, -1] and tokens.documents.tolist() == [7, -1]


def test_two_ranks_take_the_tokenizer_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcde" * 100)
    (tmp_path / "b.txt").write_text("Aabcdey" * 100)
    first, second = (
        TextFiles(root=str(tmp_path / name), length=10, batch_size=4) for name in ("a.txt", "b.txt")
    )
    told = first.tokenizer.to_json()

    class Two:
        world_size = 2

        class strategy:
            @staticmethod
            def broadcast(own: str) -> str:
                return told

    second.trainer = Two()  # type: ignore[assignment]
    second.setup("test")
    assert second.encode("cab") == first.encode("cab")


# ---- what cannot be ----------------------------------------------------------------------------------------


def test_bad_files_are_named(tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises((DataFileError, ValueError), match=message) as caught:
            TextFiles(**{"root": str(tmp_path), "length": 10, **options}).prepare_data()
        assert "\n" not in str(caught.value)

    refused("nowhere does not exist", root=str(tmp_path / "nowhere"))
    refused(r"contains no file that matches --data.files '\*\*/\*.txt'")
    (tmp_path / "a.txt").write_text("  \n")
    refused(r"no text in \*\*/\*.txt")
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin1") * 10)
    refused(r"a.txt is not UTF-8 \(byte 0xef")
    (tmp_path / "a.txt").write_text("some text, quite short")
    refused("fewer than a window: give --data.length", length=64)
    refused("1 documents, but layout pairs needs at least 10", layout="pairs")
    refused("a.txt is not a table", columns=["text"])
    write_rows(tmp_path / "t.csv")
    refused("t.csv is a table: name its text columns with --data.columns", files="*.csv")
    refused("is a table and .*a.txt is not", files="*", columns=[1])
    refused("t.csv, line 1, has no column 7; it has 3 columns", files="*.csv", columns=[7])
    refused("has no column 'text'; it has 1, title 0", files="*.csv", columns=["text"])
    (tmp_path / "j.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    refused(r"j.jsonl, line 2: not JSON", files="*.jsonl", columns=["text"])
    refused("length must be at least 2, got 1", length=1)
    refused("tokenizer must be one of characters, bytes, bpe, wordpiece, got 'words'", tokenizer="words")


def test_empty_files_and_rows_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text("" if i in (3, 7) else f"text number {i}. " * 5)
    corpus = Corpus(sorted(tmp_path.glob("*.txt")))
    assert len(list(corpus)) == 10 and corpus.skipped == 2
    with caplog.at_level("INFO"):
        TextFiles(root=str(tmp_path), length=10).prepare_data()
    assert "2 documents without text are left out" in caplog.text


def test_paragraphs_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo\n\n\nthree\n")
    files = [tmp_path / "a.txt"]
    assert [d.text for d in Corpus(files, unit="paragraph")] == ["one\ntwo", "three"]
    assert [d.text for d in Corpus(files, unit="line")] == ["one", "two", "three"]
    assert [d.text for d in Corpus(files)] == ["one\ntwo\n\n\nthree\n"]


# ---- given splits ------------------------------------------------------------------------------------------


def test_official_splits_by_file_name(tmp_path: Path) -> None:
    """WikiText's three files: each is one text, and nothing stands behind it."""
    texts = {"train": "abcdefgh" * 20, "valid": "bcda" * 10, "test": "dcba" * 10}
    for name, text in texts.items():
        (tmp_path / f"wiki.{name}.txt").write_text(text)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "wiki.test-checkpoint.txt").write_text("zzz")
    data = TextFiles(root=str(tmp_path), length=8, batch_size=2)
    data.prepare_data()
    assert data.vocab_size == 8
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        dataset: Any = data.dataset(split)  # type: ignore[arg-type]
        assert data.to_text(torch.tensor(dataset.flat.astype(np.int64))) == texts[name]


def test_one_given_split_is_test_and_val_is_held_out_of_train(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a" * 90 + "b" * 10)
    (tmp_path / "test.txt").write_text("c" * 20)
    data = TextFiles(root=str(tmp_path), length=2, batch_size=2, tokenizer="bytes")
    assert [set("".join(texts_of(data, split))) for split in ("bank", "val", "test")] == [{"a"}, {"b"}, {"c"}]
    many = {
        "root": str(tmp_path),
        "document": "line",
        "layout": "documents",
        "length": 8,
        "tokenizer": "bytes",
    }
    (tmp_path / "train.txt").write_text("".join(f"t{i}\n" for i in range(20)))
    (tmp_path / "test.txt").write_text("x0\nx1\n")
    data = TextFiles(**many)
    assert {split: len(texts_of(data, split)) for split in ("train", "val", "test")} == {  # type: ignore[arg-type]
        "train": 18,
        "val": 2,
        "test": 2,
    }
    assert {text[0] for text in texts_of(data, "val")} == {"t"}


def test_split_folders_as_of_imdb(tmp_path: Path) -> None:
    for split, kinds in (("train", ("pos", "neg", "unsup")), ("test", ("pos", "neg"))):
        for kind in kinds:
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(10):
                (tmp_path / split / kind / f"{i}_9.txt").write_text(f"{split} {i}")
    data = TextFiles(root=str(tmp_path), layout="documents", length=12, tokenizer="bytes")
    assert {text.split()[0] for text in texts_of(data, "test")} == {"test"} and len(
        texts_of(data, "test")
    ) == 20
    assert {text.split()[0] for text in texts_of(data, "train") + texts_of(data, "val")} == {"train"}


def test_class_folders_as_of_imdb(tmp_path: Path) -> None:
    """The folder is the class, below each split; ``unsup`` among the classes of train has no class."""
    for folder in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(10):
            (tmp_path / folder / f"{i}.txt").write_text(f"{folder} {i}")
    options: Any = {"layout": "documents", "length": 30, "tokenizer": "bytes"}
    data = TextFiles(root=str(tmp_path), class_folders=True, **options)
    assert data.class_names == ("neg", "pos") and data.num_classes == 2
    for split, sizes in (("train", {-1: 10, 0: 9, 1: 9}), ("val", {0: 1, 1: 1}), ("test", {0: 10, 1: 10})):
        made: Any = data.dataset(split)  # type: ignore[arg-type]
        assert dict(sorted(Counter(made.labels.tolist()).items())) == sizes
        for text, label in zip(texts_of(data, split), made.labels.tolist(), strict=True):
            assert text.split()[0].split("/")[1] == {-1: "unsup", 0: "neg", 1: "pos"}[label]
    with pytest.raises(
        ConfigError, match=r"^class_folders and label_column both define the class: give only one"
    ):
        TextFiles(root=str(tmp_path), class_folders=True, columns=["text"], label_column="label")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("text")
    with pytest.raises(DataFileError, match=r"flat contains no class folders: expected DIR/CLASS/FILE$"):
        TextFiles(root=str(tmp_path / "flat"), class_folders=True).prepare_data()


def test_gzipped_text_and_tables(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    plain, zipped = (Corpus([tmp_path / name], [1], 0) for name in ("a.csv", "b.csv.gz"))
    assert list(plain) == list(zipped) and plain.num_bytes() == zipped.num_bytes()
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("\ufefftext\r\nmore".encode())[:-9])
    with pytest.raises(DataFileError, match=r"c\.txt\.gz is a damaged gzip file \(.*\): fetch it again$"):
        list(Corpus([tmp_path / "c.txt.gz"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16"), "is UTF-16 or UTF-32, expected UTF-8 text: convert it, for example with"),
        ("text".encode("utf-16-le"), "contains zero bytes, so it is not UTF-8 text: remove it, or convert"),
        (b"PAR1\x15", "is a Parquet file, expected UTF-8 text: convert it, for example with pandas"),
        (b"PK\x03\x04", "is a zip archive, expected UTF-8 text: unpack it"),
        (b"\x00\x05\x16\x07\0\2", "is a file of macOS attributes, not text, expected UTF-8 text"),
        (gzip.compress(b"PAR1", mtime=0), "is a Parquet file, expected UTF-8 text"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """Not with the advice to convert it from latin1, which would train on garbage."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataFileError, match=f"^{re.escape(str(tmp_path / 'a.txt'))} {message}") as caught:
        list(Corpus([tmp_path / "a.txt"]))
    assert "latin1" not in str(caught.value)


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    """Two lone quotes would swallow the rows between them."""
    texts = [f'"lone {i}' if i in (5, 17) else f"row {i}" for i in range(40)]
    (tmp_path / "a.tsv").write_text("label\ttext\n" + "".join(f"1\t{text}\n" for text in texts))
    assert [document.text for document in Corpus([tmp_path / "a.tsv"], ["text"])] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text\none\n"never closed\nthree\n', "line 3, has a quote that is not closed or not"),
        ("a.csv", 'text\n"said \\"hi, you\\" and"\n', "line 2, has a quote that is not closed or not"),
        ("a.csv", "text\nhello, world\n", "line 2, has 2 fields, but the header has 1: quote a text with"),
        ("a.tsv", "text\na\tb\n", "line 2, has 2 fields, but the header has 1: tabs cannot be part of a"),
        ("a.jsonl", '{"text": ["a"]}', "line 1, column 'text' contains a list, expected text or a number"),
        (
            "a.jsonl",
            '{"text": {"en": 1}}',
            "line 1, column 'text' contains an object, expected text or a",
        ),
        ("a.jsonl", '\n{"text": "\\ud83d"}', "line 2, column 'text' contains a lone surrogate (half a"),
    ],
)
def test_rows_that_would_lose_text_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataFileError, match=f"^{re.escape(f'{tmp_path / name}, {message}')}"):
        list(Corpus([tmp_path / name], ["text"]))


def test_rows_without_a_header_have_as_many_fields_as_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,text\n2,hello, world\n")
    with pytest.raises(DataFileError, match=r"line 2, has 3 fields, but the first row has 2: quote a text"):
        list(Corpus([tmp_path / "a.csv"], [1]))


def test_classes_of_one_number_are_ordered_by_their_text() -> None:
    """Not by the order of a set, which differs between processes."""
    assert class_list(["1", "01", "2", None, "001"]) == ("001", "01", "1", "2")


def test_copies_and_missing_classes_are_counted(tmp_path: Path) -> None:
    rows = [f"{int(i == 7)},text {i % 20}" for i in range(40)]  # each text twice, one row of class 1
    (tmp_path / "a.csv").write_text("\n".join(rows))
    data = TextFiles(
        str(tmp_path / "a.csv"), columns=[1], label_column=0, layout="documents", tokenizer="bytes"
    )
    data.prepare_data()
    split = data._assign().tolist()
    copied = [sum(split[i] == s and split[(i + 20) % 40] < s for i in range(40)) for s in (1, 2)]
    absent, copies = data.remarks()
    where = tmp_path / "a.csv"
    assert absent.startswith(f"{where}: 1 of 2 classes have no sample in ")
    assert copies == (
        f"{where}: {copied[0]} of 4 documents of val and {copied[1]} of 4 documents of test are copies of "
        "documents in another split: results on them are too good"
    )


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe", "wordpiece"])
@pytest.mark.parametrize("documents", [1, 3])
def test_long_texts_are_encoded_in_pieces(
    tokenizer: Any, documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens as of the whole text, whatever stands between the words; and never much at once."""
    rng = np.random.default_rng(0)
    gaps = [" ", " ", "  ", "\n", "\n\n", ", ", " \n ", "\t"]
    words = ["the", "cat's", "naïve", "漢字", "x1", "..."]
    for i, name in enumerate(("train", "valid", "test")[:documents]):
        text = "".join(rng.choice(words) + rng.choice(gaps) for _ in range(600 + i))
        (tmp_path / f"{name}.txt").write_text(text)
    options: Any = {"root": str(tmp_path), "tokenizer": tokenizer, "vocab_size": 300, "length": 9}
    whole = TextFiles(**options)
    expected = {split: whole.dataset(split).flat for split in ("train", "val", "test")}  # type: ignore[attr-defined, arg-type]
    monkeypatch.setattr("datamodules.text.pieces.PIECE", 50)
    monkeypatch.setattr("datamodules.text.files.BLOCK", 200)
    most = 0
    cut = TextFiles(**options)
    encode = cut.tokenizer.encode

    def noted(texts: Any) -> Any:
        nonlocal most
        most = max(most, sum(map(len, texts)))
        return encode(texts)

    monkeypatch.setattr(cut.tokenizer, "encode", noted)
    assert cut.tokenizer.to_json() == whole.tokenizer.to_json()
    for split, tokens in expected.items():
        assert np.array_equal(cut.dataset(split).flat, tokens)  # type: ignore[attr-defined, arg-type]
    assert most < 700


def test_wordpiece_keeps_its_size_on_any_script(tmp_path: Path) -> None:
    """Thousands of different letters do not all get a token: the rarest are unknown."""
    rng = np.random.default_rng(0)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    text = " ".join("".join(rng.choice(letters[: 10 + i], 3)) for i in range(2990))
    tokenizers = [train_tokenizer("wordpiece", [text], 500, specials=True) for _ in range(2)]
    assert tokenizers[0].vocab_size <= 500 and tokenizers[0].to_json() == tokenizers[1].to_json()


def test_token_files_of_another_split_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for i in range(2):
        (tmp_path / "t" / f"{i}.txt").write_text("abc" * 50)
    options: Any = {"root": str(tmp_path / "t"), "length": 4, "cache": str(tmp_path / "cache")}
    TextFiles(**options).dataset("train")
    (tmp_path / "t" / "0.txt").rename(tmp_path / "t" / "test.txt")
    (tmp_path / "t" / "1.txt").rename(tmp_path / "t" / "train.txt")
    data: Any = TextFiles(**options).dataset("test")
    assert len(data.flat) == 150
