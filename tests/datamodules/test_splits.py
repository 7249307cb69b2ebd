"""The one rule for splits of all data: folders, list files and file names, under any usual name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules import class_folders, splits
from datamodules.class_folders import labeled_parts
from datamodules.errors import DataFileError
from datamodules.listing import Tree, left_out, list_tree
from datamodules.splits import complete_splits, given_splits, split_named, splits_in


def tree_of(root: Path, *files: str) -> Tree:
    """A tree with these files; "a/{0..2}" is three of them, one without an extension gets ".x"."""
    for name in files:
        stem, braces, count = name.partition("{0..")
        for number in range(int(count[:-1]) + 1) if braces else [""]:
            path = root / f"{stem}{number}{'' if '.' in stem else '.x'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("content")
    return list_tree(str(root), "pictures", lambda path: path.endswith(".x"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (splits, class_folders):
        monkeypatch.setattr(module, "rank_zero_info", lines.append)
    return lines


def folders(tree: Tree, classes: bool = True) -> dict[str, set[str]]:
    """The folders of the files of each split."""
    return {
        split: {file.rpartition("/")[0] for file in part.files}
        for split, part in given_splits(tree, classes).items()
    }


def refused(tree: Tree, classes: bool = True) -> str:
    with pytest.raises(DataFileError) as error:
        given_splits(tree, classes)
    assert "\n" not in str(error.value)
    return str(error.value).replace(tree.root, "DIR")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("training_set", "train"),
        ("TrainSet", "train"),
        ("train2017", "train"),
        ("seg_train", "train"),
        ("train-images", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("testing_list", "test"),
        ("testset", "test"),
        ("evaluation", "test"),
        ("unlabelled", "unlabeled"),
        ("train_unlabeled", "unlabeled"),
        ("unsup", "unlabeled"),
        ("trainer", None),
        ("bullet_train", None),
        ("test_tube", None),
        ("invalid", None),
        ("data", None),
        ("train_test", None),
        ("2017", None),
        ("train_поезд", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_words_in_names_of_files() -> None:
    names = ("imagenet-val-01", "wiki.train.tokens", "interval-0", "a_dev_clean", "train-test")
    assert [splits_in(n) for n in names] == [{"val"}, {"train"}, set(), {"val"}, {"train", "test"}]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid"),
        ("Train", "Test"),
        ("training", "testing"),
        ("train", "dev"),
        ("train", "unlabeled"),
        ("train_set", "Val2", "test-images"),
        ("train", "validation", "test", "unlabelled"),
        ("train",),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "data/", "a/b/"])
def test_split_folders(names: tuple[str, ...], wrapper: str, tmp_path: Path, said: list[str]) -> None:
    files = [f"{wrapper}{name}/{c}/{{0..2}}" for name in names for c in ("cat", "dog")]
    tree = tree_of(tmp_path, *files)
    expected = {split_named(n): {f"{wrapper}{n}/cat", f"{wrapper}{n}/dog"} for n in names}
    given = given_splits(tree)
    assert folders(tree) == expected
    parts, classes = labeled_parts(tree, given, labeled=True)
    assert classes == ("cat", "dog")
    assert parts["train"][1].tolist() == [0, 0, 0, 1, 1, 1]
    assert sum(len(files) for files, _ in parts.values()) == 6 * len(names)  # nothing is dropped
    if wrapper:
        assert said[0].startswith(f"{tmp_path}: all pictures are in ")


def test_a_tree_one_level_too_deep(tmp_path: Path, said: list[str]) -> None:
    tree = tree_of(tmp_path, "archive/cat/{0..1}", "archive/dog/{0..1}")
    _, classes = labeled_parts(tree, given_splits(tree), labeled=True)
    assert classes == ("cat", "dog") and said == [
        f"{tmp_path}: all pictures are in archive/, which is used as the root"
    ]
    deeper = tree_of(tmp_path / "b", "train/images/cat/0", "train/images/dog/0", "test/cat/0", "test/dog/0")
    assert labeled_parts(deeper, given_splits(deeper), labeled=True)[1] == ("cat", "dog")


def test_classes_that_are_named_like_splits(tmp_path: Path) -> None:
    for number, names in enumerate(
        [("bus", "train"), ("valid", "invalid"), ("test", "control"), ("dev", "x")]
    ):
        tree = tree_of(tmp_path / str(number), *(f"{name}/{{0..2}}" for name in names))
        assert folders(tree) == {"train": set(names)}
    streets = tree_of(tmp_path / "c", "bus/city/0", "bus/coach/0", "train/freight/0", "train/local/0")
    assert folders(streets) == {"train": {"bus/city", "bus/coach", "train/freight", "train/local"}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("part1/a/0", "part1/b/0", "part2/a/0", "part2/b/0", "part2/c/0"),
            "DIR: the folders part1 and part2 contain folders with the same names (a, b): if they are "
            "splits, name them train, val, test or unlabeled; if they are classes, move all classes into a "
            "folder train (docs/data/splits.md)",
        ),
        (
            ("train/a/0", "train/b/0", "extra/a/0", "extra/b/0"),
            "DIR: the folders extra and train contain folders with the same names (a, b): if they are "
            "splits, name them train, val, test or unlabeled; if they are classes, move all classes into a "
            "folder train (docs/data/splits.md)",
        ),
        (
            ("train/a/0", "train/b/0", "extra/0"),
            "DIR: train is named after a split and contains folders, but extra next to it contains none: "
            "name that one val, test or unlabeled; if both are classes, move them into a folder train "
            "(docs/data/splits.md)",
        ),
        (
            ("train/a/0", "train/b/0", "test/a/0", "test/b/0", "holdout/a/0", "holdout/b/0"),
            "DIR contains folders named after splits (test, train) and similar ones (holdout): name these "
            "val, test or unlabeled, or move them elsewhere (docs/data/splits.md)",
        ),
        (
            ("val/a/0", "test/a/0"),
            "DIR contains folders named after splits (test, val), but none for train: name one of them "
            "train, or give another --data.root (docs/data/splits.md)",
        ),
        (
            ("train/a/0", "val/a/0", "valid/a/0"),
            "DIR contains more than one folder for the same split (train, val, valid): keep one folder each "
            "for train, val, test and unlabeled (docs/data/splits.md)",
        ),
    ],
)
def test_folders_that_may_be_splits_are_refused(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert refused(tree_of(tmp_path, *files)) == message


def test_what_belongs_to_no_split_is_counted(tmp_path: Path, said: list[str]) -> None:
    tree = tree_of(tmp_path, "train/a/0", "train/b/0", "test/a/0", "test/b/0", "shown/{0..2}", "logo")
    assert folders(tree) == {"train": {"train/a", "train/b"}, "test": {"test/a", "test/b"}}
    assert said == [
        f"{tmp_path}: pictures that belong to no split are left out: 3 in shown, 1 in the folder itself"
    ] * len(said)


def test_many_classes_may_hold_the_same_folders(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, *(f"word{i}/{s}/0" for i in range(13) for s in ("ann", "bob")))
    assert list(given_splits(tree)) == ["train"]


def test_list_files(tmp_path: Path, said: list[str]) -> None:
    tree = tree_of(tmp_path, "yes/{0..5}", "no/{0..5}", "_background_noise_/{0..2}")
    assert left_out(tree) == f"{tmp_path}: ignored files that are not pictures: 3 in _background_noise_"
    (tmp_path / "validation_list.txt").write_text("yes/0.x\n./no/0.x\n\nno/99.x\n")
    (tmp_path / "testing_list.txt").write_text("yes/1 1\nno/1 0\n")  # without the ending, with a label
    given = given_splits(tree)
    assert {split: sorted(part.files) for split, part in given.items() if split != "train"} == {
        "val": ["no/0.x", "yes/0.x"],
        "test": ["no/1.x", "yes/1.x"],
    }
    assert len(given["train"].files) == 8
    assert said == [f"{tmp_path}/validation_list.txt: 1 of 3 files do not exist, such as no/99.x"]
    assert labeled_parts(tree, given, labeled=True)[1] == ("no", "yes")
    (tmp_path / "train.txt").write_text("yes/2.x\nno/2.x\n")
    assert len(given_splits(tree)["train"].files) == 2
    assert said[-1] == f"{tmp_path}: 6 pictures that are in no list are left out"
    (tmp_path / "train.txt").write_text("yes/1.x\n")
    assert refused(tree) == "DIR/train.txt lists yes/1.x, which is also in a list of test"
    (tmp_path / "train.txt").write_text("loss 0.3\n")
    assert refused(tree) == (
        "DIR/train.txt: its 1 lines name no pictures in DIR. Expected paths relative to that folder; rename "
        "the file if it is not the list of a split (docs/data/splits.md)"
    )


def test_file_names(tmp_path: Path, said: list[str]) -> None:
    every = tree_of(tmp_path / "a", "cat/train_0", "cat/test_0", "dog/train_1", "dog/test_1")
    assert {s: sorted(p.files) for s, p in given_splits(every).items()} == {
        "train": ["cat/train_0.x", "dog/train_1.x"],
        "test": ["cat/test_0.x", "dog/test_1.x"],
    }
    some = tree_of(tmp_path / "b", "train", "valid", "test", "notes")
    assert {s: p.files for s, p in given_splits(some).items()} == {
        "test": ["test.x"],
        "train": ["train.x"],
        "val": ["valid.x"],
    }
    assert said == [f"{tmp_path}/b: 1 pictures that belong to no split are left out: notes.x"]
    by_chance = tree_of(tmp_path / "c", "train_station", "test_tube", "tree")
    assert list(given_splits(by_chance)) == ["train"]


def test_hidden_files_and_copies_are_skipped(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path,
        "cat/{0..1}",
        "cat/.ipynb_checkpoints/0-checkpoint.x",
        "cat/._0.x",
        "__MACOSX/cat/._0.x",
        "@eaDir/cat/0",
    )
    (tmp_path / "cat" / "._0.x").write_text("")
    (tmp_path / "cat" / "gone.x").symlink_to("nowhere.x")
    (tmp_path / "cat" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "notes").write_text("")
    tree = tree_of(tmp_path, "b.TXT", "c.txt")
    assert tree.files == ["cat/0.x", "cat/1.x"]
    assert left_out(tree) == (
        f"{tmp_path}: ignored files that are not pictures: 2 .txt, 1 without an extension, 1 broken links"
    )


def test_complete_splits_joins_what_is_asked_for() -> None:
    def part(start: int, n: int, label: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(start, start + n), np.full(n, label)

    fractions = {"val_fraction": 0.1, "test_fraction": 0.2}
    given = {"train": part(0, 50), "unlabeled": part(100, 5, -1)}
    made = complete_splits(given, "things", fractions, hold_out_test=True)
    assert {split: len(x) for split, (x, _) in made.items()} == {
        "train": 41,
        "bank": 36,
        "val": 4,
        "test": 10,
    }
    assert made["train"][1].tolist() == [0] * 36 + [-1] * 5
    whole = complete_splits(given, "things", fractions, hold_out_test=True, train_on_val=True)
    assert sorted(whole["train"][0]) == sorted([*made["train"][0], *made["val"][0]])
    assert whole["bank"][0].tolist() == made["bank"][0].tolist()
    alone = complete_splits({"train": part(0, 50)}, "things", fractions, hold_out_test=True)
    assert alone["train"] is alone["bank"]
