"""FASTA and GFF files: bases, windows, strands, labels, and files that cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.errors import ConfigError, DataFileError
from datamodules.sequences.fasta import base_codes, read_coding, read_fasta, reverse_complement, to_tokens
from datamodules.sequences.module import Fasta

SPAN = 20  # bases of a window; a block has ten windows, and a record 20 blocks


def letters(n: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Two records of 4,000 bases in lines of 70."""
    path = tmp_path / "genome.fna"
    rows = []
    for i, name in enumerate(("chr1 Drosophila", "chr2")):
        sequence = letters(200 * SPAN, i)
        rows += [f">{name}", *(sequence[j : j + 70] for j in range(0, len(sequence), 70))]
    path.write_text("\n".join(rows) + "\n")
    return path


def data(root: Path | None, **options: Any) -> Fasta:
    options = {"length": SPAN, "batch_size": 4, "both_strands": False, **options}
    return Fasta(root=None if root is None else str(root), **options)


def gff(tmp_path: Path, *pieces: tuple[str, int, int], kind: str = "CDS", strand: str = "+") -> str:
    """Lines with ends from 1, both included."""
    path = tmp_path / "genes.gff"
    lines = [f"{name}\tx\t{kind}\t{start}\t{end}\t.\t{strand}\t0\tID=1" for name, start, end in pieces]
    path.write_text("##gff-version 3\n" + "\n".join(lines) + "\n")
    return str(path)


def everything(dataset: Any) -> dict[str, torch.Tensor]:
    return dataset.__getitems__(list(range(len(dataset))))


# ---- letters -----------------------------------------------------------------------------------------------


def test_letters_become_bases() -> None:
    codes, ambiguous = base_codes("ACGTUNacgtunRYswkmBDHV", "here")
    assert codes.tolist() == [0, 1, 2, 3, 3, 4] * 2 + [4] * 10
    assert ambiguous == 10


def test_the_other_strand_is_read_backwards() -> None:
    codes, _ = base_codes("AACGTN", "here")
    assert reverse_complement(codes).tolist() == base_codes("NACGTT", "here")[0].tolist()
    assert reverse_complement(np.stack([codes, codes])).shape == (2, 6)


@pytest.mark.parametrize("kmer", [1, 2, 3])
def test_kmers_are_numbers_in_base_four(kmer: int, fasta: Path) -> None:
    codes, _ = base_codes("ACGTTGNACACG", "here")
    expected = []
    for i in range(0, 12, kmer):
        word = codes[i : i + kmer].tolist()
        expected.append(4**kmer if 4 in word else int("".join(map(str, word)), 4))
    assert to_tokens(codes, kmer).tolist() == expected
    module = data(fasta, kmer=kmer, length=4)
    assert module.vocab_size == 4**kmer + 1
    assert module.encode("acgttgn acacg\n") == expected
    unknown = {1: "ACGTTGNACACG", 2: "ACGTTGNNACACG"[:6] + "NNCACG", 3: "ACGTTGNNNACG"}[kmer]
    assert module.to_text(torch.tensor(expected)) == unknown


def test_four_mers_are_counted(fasta: Path) -> None:
    """Against counting words of the text, for bases and for k-mers."""
    text = letters(24, 5)[:20] + "NACG"
    for kmer in (1, 2, 3):
        module = data(fasta, kmer=kmer)
        tokens = torch.tensor([module.encode(text)])
        read = module.to_text(tokens[0])
        expected = torch.zeros(256)
        for i in range(len(read) - 3):
            if "N" not in read[i : i + 4]:
                expected[int("".join(str("ACGT".index(c)) for c in read[i : i + 4]), 4)] += 1
        assert torch.equal(module.baselines()["kmers"](tokens)[0], expected)


# ---- windows -----------------------------------------------------------------------------------------------


def test_windows_are_the_text_of_the_records(fasta: Path) -> None:
    module = data(fasta)
    records = read_fasta(fasta)
    assert list(records) == ["chr1", "chr2"] and all(len(codes) == 200 * SPAN for codes in records.values())
    sizes = {split: len(module.dataset(split)) for split in ("train", "bank", "val", "test")}  # type: ignore[arg-type]
    assert sizes == {"train": 320, "bank": 320, "val": 40, "test": 40}
    val = everything(module.dataset("val"))
    assert val["input"].dtype == torch.int64 and val["label"].tolist() == [-1] * 40
    expected = letters(200 * SPAN, 0)[80 * SPAN : 90 * SPAN]  # the ninth block of the first record
    assert "".join(map(module.to_text, val["input"][:10])) == expected
    assert module.num_classes is None


@pytest.mark.parametrize("stride", [7, 20, 33])
def test_splits_share_no_base(fasta: Path, stride: int) -> None:
    module = data(fasta, stride=stride)
    used: dict[str, set[tuple[int, int]]] = {}
    for split in ("train", "val", "test"):
        places = module.dataset(split).places.tolist()  # type: ignore[attr-defined, arg-type]
        used[split] = {(record, i) for record, start in places for i in range(start, start + SPAN)}
        starts = [start for record, start in places if record == 0]
        assert np.diff(starts).min() >= min(stride, SPAN) or stride < SPAN
        assert min(np.diff(starts)) == stride or stride > SPAN
    assert (
        not used["train"] & used["val"]
        and not used["train"] & used["test"]
        and not used["val"] & used["test"]
    )


def test_both_strands_in_training_only(fasta: Path) -> None:
    """Half of the windows, others in the next epoch, the same when asked again; labels and other splits
    stay.
    """
    plain, module = data(fasta), data(fasta, both_strands=True)
    for split in ("bank", "val", "test"):
        assert torch.equal(
            everything(plain.dataset(split))["input"], everything(module.dataset(split))["input"]
        )  # type: ignore[arg-type]
    forward = everything(plain.dataset("train"))["input"].numpy()
    train: Any = module.dataset("train")
    turned = []
    for epoch in (0, 1):
        train.set_epoch(epoch)
        got = everything(train)["input"].numpy()
        assert np.array_equal(got, everything(train)["input"].numpy())
        assert np.array_equal(got[5:9], train.__getitems__(range(5, 9))["input"].numpy())
        same = (got == forward).all(1)
        other = (got == reverse_complement(forward.astype(np.uint8))).all(1)
        assert (same ^ other).all() and 0.4 < same.mean() < 0.6
        turned.append(other)
    assert (turned[0] != turned[1]).any()


def test_a_kmer_window_turns_base_by_base(fasta: Path) -> None:
    plain, module = data(fasta, kmer=3, length=5), data(fasta, kmer=3, length=5, both_strands=True)
    one, two = (everything(m.dataset("train"))["input"] for m in (plain, module))
    for a, b in zip(one, two, strict=True):
        before, after = plain.to_text(a), module.to_text(b)
        turned = before[::-1].translate(str.maketrans("ACGT", "TGCA"))
        assert after in (before, turned)


def test_windows_of_mostly_n_are_left_out(tmp_path: Path) -> None:
    sequence = list(letters(200 * SPAN))
    sequence[0:10] = "N" * 10  # half of the first window
    sequence[20:29] = "N" * 9
    path = tmp_path / "n.fa"
    path.write_text(">x\n" + "".join(sequence))
    train = data(path).dataset("train")
    assert train.places[0].tolist() == [0, 20] and len(train) == 159  # type: ignore[attr-defined, arg-type]


def test_gzip_and_folders(fasta: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.fna.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    (folder / "b.fasta").write_text(">chr3\n" + letters(100 * SPAN, 3))
    (folder / "readme.txt").write_text("no FASTA")
    both = data(folder)
    assert len(both.dataset("train")) == 400  # type: ignore[arg-type]
    assert torch.equal(
        everything(data(folder, files=("a*",)).dataset("val"))["input"],
        everything(data(fasta).dataset("val"))["input"],
    )


def test_synthetic_data_has_every_split() -> None:
    module = data(None, synthetic=True, gff="genes.gff")
    for split in ("train", "val", "test"):
        labels = everything(module.dataset(split))["label"]  # type: ignore[arg-type]
        assert len(labels) and labels.min() >= 0


# ---- labels ------------------------------------------------------------------------------------------------


def test_labels_follow_the_share_in_coding_sequence(fasta: Path, tmp_path: Path) -> None:
    """Half of the first window is coding, 9 of 20 bases of the second, all of the third, and none of the next
    two.
    """
    genes = gff(
        tmp_path, ("chr1", 1, 10), ("chr1", 21, 29), ("chr1", 41, 60), ("chr2", 1, 4000), ("chr9", 1, 99)
    )
    module = data(fasta, gff=genes)
    assert module.num_classes == 2 and module.class_names == ("non-coding", "coding")
    labels = everything(module.dataset("bank"))["label"].tolist()
    assert labels[:5] == [1, -1, 1, 0, 0] and labels[160:] == [1] * 160


def test_overlapping_coding_pieces_count_once(fasta: Path, tmp_path: Path) -> None:
    """Two transcripts share an exon of 6 of 20 bases: under half, so no label, and other features do not
    count.
    """
    genes = Path(gff(tmp_path, ("chr1", 1, 6), ("chr1", 1, 6), strand="-"))
    genes.write_text(genes.read_text() + "chr1\tx\tgene\t1\t4000\t.\t+\t.\tID=2\n")
    assert everything(data(fasta, gff=str(genes)).dataset("bank"))["label"][:2].tolist() == [-1, 0]


# ---- files that cannot be used -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no record: expected FASTA"),
        (b"\n\n", "holds no record"),
        (b"ACGT\n", "line 1: sequence before any header"),
        (b">x\n>y\n", "has headers and no bases"),
        (b">x\nACGT\n>x\nACGT\n", "line 3: a second record named x"),
        (b">sp|P1\nMKVLAAGF\n", r"record sp\|P1, has 'L' at position 4, which is no letter of DNA.*protein"),
        (b">x\nAC-GT\n", "has '-' at position 3"),
        (b">x\nAC\xff\n", "is not text"),
        (gzip.compress(b">x\n" + letters(500).encode())[:-12], "is a damaged gzip file"),
        (b">x\n" + b"ACGT" * 10, "no window of 20 bases for (train|val)"),
    ],
)
def test_a_bad_fasta_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as error:
        data(path).dataset("train")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no CDS line"),
        ("chr1\tx\tgene\t1\t9\t.\t+\t.\tID=1\n", "has no CDS line"),
        ("chr1\t1\t9\n", "line 1: expected the nine columns of GFF3"),
        ("chr1\tx\tCDS\tone\t9\t.\t+\t0\tID=1\n", "line 1: expected the nine columns"),
    ],
)
def test_a_bad_gff_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gff"
    path.write_text(content)
    with pytest.raises(DataFileError, match=message) as error:
        read_coding(path)
    assert str(path) in str(error.value)


def test_what_else_cannot_work_is_named(fasta: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no CDS of the records chr1, chr2"):
        data(fasta, gff=gff(tmp_path, ("other", 1, 9))).dataset("train")
    with pytest.raises(DataFileError, match=r"needs --data\.root"):
        data(None).dataset("train")
    with pytest.raises(DataFileError, match="does not exist"):
        data(tmp_path / "absent").dataset("train")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataFileError, match="holds no file that fits"):
        data(empty).dataset("train")
    for options, message in (
        ({"length": 1}, "length must be at least 2, got 1"),
        ({"kmer": 0}, r"kmer must be in \[1, 8\], got 0"),
        ({"kmer": 9}, r"kmer must be in \[1, 8\], got 9"),
        ({"stride": -1}, "stride must be at least 1, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            data(fasta, **options)


# ---- given splits ------------------------------------------------------------------------------------------


def test_splits_by_file_name(tmp_path: Path) -> None:
    for name, base in (("train", "A"), ("valid", "C"), ("test", "G")):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{base * 100 * SPAN}\n")
    made = data(tmp_path)
    letters_of = [
        {made.to_text(row) for row in everything(made.dataset(split))["input"]}
        for split in ("train", "val", "test")
    ]
    assert letters_of == [{base * SPAN} for base in "ACG"]
    (tmp_path / "valid.fa").unlink()
    made = data(tmp_path)  # the one given is reported, val is held out of train
    assert {split: len(made.dataset(split)) for split in ("train", "val", "test")} == {
        "train": 90,
        "val": 10,
        "test": 100,
    }
    with pytest.raises(ConfigError, match=r"\(2 then, 3 now, "):
        state = made.state_dict()
        (tmp_path / "valid.fa").write_text(">valid\nACGT\n")
        data(tmp_path).load_state_dict(state)


def test_hidden_copies_are_skipped(tmp_path: Path, fasta: Path) -> None:
    (tmp_path / "._genome.fna").write_bytes(b"\0\x05\x16\x07")
    assert len(data(tmp_path).dataset("val")) == len(data(fasta).dataset("val"))
