"""FASTA and GFF files: bases, windows, strands, labels, and files that cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.errors import ConfigError, DataFileError
from datamodules.sequences.alphabets import DNA, PROTEIN, Letters, reverse_complement
from datamodules.sequences.annotation import Coverage, read_features
from datamodules.sequences.fasta import Records, read_fasta
from datamodules.sequences.module import Fasta
from datamodules.sequences.samples import split_of_name
from datamodules.transforms.tokens import MaskedTokens

SPAN = 20  # bases of a window; a block has ten windows, and a record 20 blocks


def base_codes(text: str, where: str) -> tuple[np.ndarray, int]:
    codes, ambiguous = DNA.codes(text, where)
    return np.frombuffer(codes, np.uint8), ambiguous


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
    assert Letters(DNA, kmer, specials=False).tokens(codes).tolist() == expected
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
    records = Records()
    read_fasta(fasta, DNA, records)
    assert records.names == ["chr1", "chr2"] and records.starts.tolist() == [0, 200 * SPAN, 400 * SPAN]
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
        (b"", "contains no record: expected FASTA"),
        (b"\n\n", "contains no record"),
        (b"ACGT\n", "line 1: sequence before any header"),
        (b">x\n>y\n", "has headers but no letters"),
        (b">x\nACGT\n>x\nACGT\n", "line 3: a second record named x"),
        (
            b">sp|P1\nMK\nVLAAGF\n",
            r"record sp\|P1, has 'L' at position 4, which is not a letter of DNA \(A, C, G, T, U, N or "
            r"another of IUPAC's\): for protein give --data.alphabet protein$",
        ),
        (b">x\nAC-GT\n", "has '-' at position 3, an alignment gap: remove the gaps$"),
        (b">x\nAC1GT\n", r"has '1' at position 3, which is not a letter of DNA \(A, C, G, T, U, N or .*\)$"),
        (b">x\nAC\xff\n", "is not UTF-8"),
        (gzip.compress(b">x\n" + letters(500).encode(), mtime=0)[:-12], "is a damaged gzip file"),
        (
            b">x\n" + b"ACGT" * 10,
            "gives no window of 20 letters for val, which gets one tenth of the records",
        ),
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
        ("", "has no lines of type CDS: expected GFF3 with lines of type CDS$"),
        (
            "chr1\tx\tgene\t1\t9\t.\t+\t.\tID=1\nchr1\tx\texon\t1\t9\t.\t+\t.\t\n",
            "has no lines of type CDS: expected GFF3 with lines of type CDS; it has exon, gene: name one "
            "with --data.feature$",
        ),
        ("chr1\t1\t9\n", "line 1: expected the nine columns of GFF3"),
        ("chr1\tx\tCDS\tone\t9\t.\t+\t0\tID=1\n", "line 1: expected the nine columns"),
    ],
)
def test_a_bad_gff_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gff"
    path.write_text(content)
    with pytest.raises(DataFileError, match=message) as error:
        read_features(path, None)
    assert str(path) in str(error.value)


def test_windows_of_what_the_annotation_leaves_out_have_no_label(
    fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not non-coding: nothing is known of them. A record with other lines only is described."""
    genes = Path(gff(tmp_path, ("chr1", 1, 500), ("2", 1, 500)))
    with caplog.at_level("INFO"):
        labels = everything(data(fasta, gff=str(genes)).dataset("bank"))["label"]
    assert labels[:160].unique().tolist() == [0, 1] and labels[160:].unique().tolist() == [-1]
    told = f"{genes}: 1 of 2 records are not in it and have no label: chr2; it has others: 2"
    assert told in caplog.messages
    genes.write_text(genes.read_text() + "chr2\tx\tgene\t1\t40\t.\t+\t.\tID=2\n")
    labels = everything(data(fasta, gff=str(genes)).dataset("bank"))["label"]
    assert labels[160:].unique().tolist() == [0]


def test_annotations_as_people_have_them(fasta: Path, tmp_path: Path) -> None:
    """UTF-8, an empty last column, sequence behind the features, other features, BED, gzip."""
    genes = Path(gff(tmp_path, ("chr1", 1, 20), ("chr2", 41, 60)))
    text = genes.read_text()
    expected = everything(data(fasta, gff=str(genes)).dataset("bank"))["label"].tolist()
    assert expected[:3] == [1, 0, 0] and expected[160:164] == [0, 0, 1, 0]
    (tmp_path / "other.bed").write_text("track name=x\nchr1 0 20 a\nchr2\t40\t60\n")
    (tmp_path / "other.gff").write_text("\ufeff" + text.replace("ID=1\n", "ID=5\u2032-\u03b2\n"), "utf-8")
    (tmp_path / "empty.gff3").write_text(text.replace("ID=1\n", "\n") + ">chr1\nACGT\n")
    (tmp_path / "gene.gff.gz").write_bytes(gzip.compress(text.replace("CDS", "gene").encode()))
    both = text + "chr1\tx\texon\t21\t40\t.\t+\t.\t.\n"
    (tmp_path / "both.gtf").write_text(both)
    for name, options, classes in (
        ("other.bed", {}, ("outside", "inside")),
        ("other.gff", {}, ("non-coding", "coding")),
        ("empty.gff3", {}, ("non-coding", "coding")),
        ("gene.gff.gz", {}, ("no gene", "gene")),
        ("gene.gff.gz", {"feature": "gene"}, ("no gene", "gene")),
        ("both.gtf", {}, ("non-coding", "coding")),
    ):
        module = data(fasta, gff=str(tmp_path / name), **options)
        assert module.class_names == classes
        assert everything(module.dataset("bank"))["label"].tolist() == expected, name
    exons = everything(data(fasta, gff=str(tmp_path / "both.gtf"), feature="exon").dataset("bank"))["label"]
    assert exons[:3].tolist() == [0, 1, 0] and set(exons[160:].tolist()) == {0}


def test_coverage_against_marking_every_place() -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 30):
        starts = rng.integers(0, 900, n)
        intervals = np.stack([starts, starts + rng.integers(0, 60, n)], 1)
        marked = np.zeros(1000, dtype=int)
        for start, end in intervals:
            marked[start:end] = 1
        places = np.arange(960)
        expected = [int(marked[i : i + 40].sum()) for i in places]
        assert Coverage(intervals).within(places, 40).tolist() == expected


# ---- short records, files by ending ------------------------------------------------------------------------


def test_short_records_are_split_by_their_name(tmp_path: Path) -> None:
    """As wholes, and so that a record's split does not depend on the other records."""
    names = [f"contig{i}" for i in range(60)]
    path = tmp_path / "contigs.fa"
    path.write_text("".join(f">{name}\n{letters(5 * SPAN + 3, i)}\n" for i, name in enumerate(names)))
    module = data(path)
    for split in ("train", "val", "test"):
        own = sorted({names[record] for record, _ in module.dataset(split).places.tolist()})  # type: ignore[attr-defined, arg-type]
        assert own == sorted(name for name in names if split_of_name(name) == split) and own
        assert len(module.dataset(split)) == 5 * len(own)  # type: ignore[arg-type]
    assert [split_of_name(f"contig{i}") for i in range(8)] == [*["train"] * 3, *["val"] * 3, *["train"] * 2]


def test_records_shorter_than_a_window_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "reads.fa"
    path.write_text(
        "".join(f">read{i}\n{letters(10)}\n" for i in range(100)) + f">chr1\n{letters(200 * SPAN)}\n"
    )
    with caplog.at_level("INFO"):
        data(path).dataset("train")
    assert caplog.messages == [
        f"{path}: 100 of 101 records are shorter than a window (20 letters) and left out: 20 % of all letters"
    ]


def test_only_files_of_the_alphabet_are_read(
    fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    text = fasta.read_text().replace(">chr2", ">chr2 caf\u00e9")
    (folder / "deeper" / "GCF_1_genomic.fna").write_text("\ufeff" + text, "utf-8")
    for name in ("genome.fa.fai", "protein.faa", "reads.fastq"):
        (folder / name).write_text("no DNA")
    (folder / "GCF_1_cds_from_genomic.fna").write_text(">x\n" + letters(4000))
    with caplog.at_level("INFO"):
        read = everything(data(folder).dataset("val"))["input"]
    assert torch.equal(read, everything(data(fasta).dataset("val"))["input"])
    assert (
        caplog.messages
        == [
            f"{folder}: all FASTA files are in deeper/, which is used as the root",
            f"{folder}: GCF_1_cds_from_genomic.fna are left out: they repeat parts of the genome (give "
            "--data.files to read them)",
        ][1:]
    )


# ---- protein, whole records, labels by record --------------------------------------------------------------


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    """Two files of 30 proteins each, of 5 to 34 letters; one sequence occurs in both files."""
    folder = tmp_path / "proteins"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("ER", "nuclear"):
        rows = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWYBJOUXZ*-"), 5 + i)) for i in range(30)]
        (folder / f"{name}.fasta").write_text("".join(f">{name}{i} x\n{row}\n" for i, row in enumerate(rows)))
    return folder


def test_whole_proteins_with_a_class_per_file(proteins: Path) -> None:
    module = data(proteins, alphabet="protein", layout="records", class_files=True, length=16)
    assert module.class_names == ("ER", "nuclear") and module.vocab_size == 33 and module.pad_id == 0
    seen = []
    for split in ("train", "val", "test"):
        dataset: Any = module.dataset(split)  # type: ignore[arg-type]
        batch = everything(dataset)
        for number, row, label in zip(dataset.chosen, batch["input"], batch["label"].tolist(), strict=True):
            name = dataset.records.names[number]
            sequence = "".join(PROTEIN.letters[c] for c in dataset.records[number])[:14]
            assert split_of_name(name) == split and label == name.startswith("nuclear")
            assert row.tolist() == [2, *module.encode(sequence), 3, *[0] * (14 - len(sequence))]
            assert module.to_text(row) == sequence
            seen.append(name)
    assert len(seen) == len(set(seen)) == 60


def test_amino_acids_and_pairs_are_counted(proteins: Path) -> None:
    module = data(proteins, alphabet="protein", layout="records", length=16)
    tokens = torch.tensor([[2, *module.encode("AACX"), 3, 0, 0]])
    alone, pairs = (
        function(tokens)[0] for function in (module.baselines()[n] for n in ("composition", "dipeptides"))
    )
    assert {PROTEIN.letters[i]: alone[i].item() for i in alone.nonzero().flatten()} == {
        "A": 0.5,
        "C": 0.25,
        "X": 0.25,
    }
    found = {
        PROTEIN.letters[i // 28] + PROTEIN.letters[i % 28]: pairs[i].item() for i in pairs.nonzero().flatten()
    }
    assert found == pytest.approx({"AA": 1 / 3, "AC": 1 / 3, "CX": 1 / 3})


def test_a_class_by_record_from_a_table(
    proteins: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "labels.tsv"
    table.write_text("accession\tplace\n" + "".join(f"ER{i}\t{i % 3}\n" for i in range(30)) + "other\t9\n")
    options: Any = {"alphabet": "protein", "layout": "records", "length": 40}
    module = data(proteins, labels=str(table), label_columns=("accession", "place"), **options)
    with caplog.at_level("INFO"):
        assert module.class_names == ("0", "1", "2")
    assert (
        f"{table}: 30 of 60 records are not in it and have no label: nuclear0, nuclear1, nuclear2, ... "
        "(30 in all); it has others: other" in caplog.messages
    )
    for split in ("train", "val", "test"):
        dataset: Any = module.dataset(split)  # type: ignore[arg-type]
        names = [dataset.records.names[i] for i in dataset.chosen]
        assert dataset.labels.tolist() == [int(n[2:]) % 3 if n.startswith("ER") else -1 for n in names]
    table.write_text("id\tlabel\nER1\ta\nER1\tb\n")
    with pytest.raises(DataFileError, match=r"labels.tsv: record ER1 has two classes, a and b$"):
        data(proteins, labels=str(table), **options).prepare_data()
    table.write_text("id\tlabel\nx\ta\n")
    with pytest.raises(
        DataFileError, match=r"contains none of the records ER0, ER1, ER2, \.\.\. \(60 in all\)$"
    ):
        data(proteins, labels=str(table), **options).prepare_data()


def test_copies_of_records_in_two_splits_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.fa"
    path.write_text("".join(f">p{i}\n{'ACGT' * (3 + i % 10)}\n" for i in range(60)))
    module = data(path, layout="records", length=60)
    sizes = {split: len(module.dataset(split)) for split in ("val", "test")}  # type: ignore[arg-type]
    assert module.remarks() == [
        f"{path}: {sizes['val']} of {sizes['val']} records of val and {sizes['test']} of "
        f"{sizes['test']} records of test are copies of records in another "
        "split: results on them are too good"
    ]


def test_masked_letters(fasta: Path) -> None:
    """BERT's views on windows: special tokens are set apart, and only letters are hidden or drawn."""
    module = data(fasta, views=MaskedTokens(0.5, next_sentence=False), kmer=2)
    assert module.vocab_size == 5 + 17 and module.pad_id == 0 and module.characters_per_token is None
    batch: Any = module.transform(everything(module.dataset("val")), torch.Generator().manual_seed(0))
    hidden = batch["target"] != -100
    assert 0.4 < hidden.float().mean() < 0.6 and batch["input"].min() >= 5
    assert torch.equal(batch["target"][hidden], batch["input"][hidden])
    assert torch.equal(batch["corrupted"][~hidden], batch["input"][~hidden])
    assert set(batch["corrupted"].unique().tolist()) <= {4, *range(5, 22)}
    plain = data(fasta, kmer=2)
    assert torch.equal(everything(plain.dataset("val"))["input"] + 5, batch["input"])
    assert torch.equal(
        plain.baselines()["kmers"](batch["input"] - 5), module.baselines()["kmers"](batch["input"])
    )


def test_what_else_cannot_work_is_named(fasta: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no CDS of the records chr1, chr2"):
        data(fasta, gff=gff(tmp_path, ("other", 1, 9))).dataset("train")
    with pytest.raises(DataFileError, match=r"needs --data\.root"):
        data(None).dataset("train")
    with pytest.raises(DataFileError, match="does not exist"):
        data(tmp_path / "absent").dataset("train")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataFileError, match="contains no file that matches"):
        data(empty).dataset("train")
    for options, message in (
        ({"length": 1}, "length must be at least 2, got 1"),
        ({"kmer": 0}, r"kmer must be in \[1, 8\], got 0"),
        ({"kmer": 9}, r"kmer must be in \[1, 8\], got 9"),
        ({"stride": -1}, "stride must be at least 1, got -1"),
        ({"alphabet": "rna"}, "alphabet must be one of dna, protein, got 'rna'"),
        ({"alphabet": "protein", "kmer": 2}, "kmer must be 1 for protein, got 2"),
        (
            {"class_files": True, "gff": "x"},
            "gff, class_files and labels each define the class: give only one of them",
        ),
        (
            {"layout": "records", "gff": "x"},
            "gff labels positions, not whole records: give layout windows, or labels",
        ),
        (
            {"views": MaskedTokens()},
            "sequences have no second segment: give --data.views.next_sentence false",
        ),
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
