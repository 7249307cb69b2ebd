"""A large folder is scanned once, by one of the processes, and again when it has changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from datamodules import listing_cache
from datamodules.images.folder import ImageFolder
from datamodules.listing import Tree, list_tree
from datamodules.listing_cache import listed


class Scans:
    """Counts the scans, and makes them slow enough that other processes wait."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *arguments: Any) -> Tree:
        self.count += 1
        time.sleep(0.05)
        return list_tree(*arguments)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scans:
    counting = Scans()
    monkeypatch.setattr(listing_cache, "list_tree", counting)
    monkeypatch.setattr(listing_cache, "MANY", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return counting


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four files that lie there for an hour, one of them with a name that is no UTF-8."""
    root = tmp_path / "data"
    for name in ("a/1.x", "a/2.x", "b/c/3.x", "b/note.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    Path(os.fsdecode(os.fsencode(root / "b") + b"/\xff.x")).touch()
    settle(root)
    return root


def settle(root: Path) -> None:
    hour = time.time() - 3600
    for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
        os.utime(folder, (hour, hour))


def tree_of(root: Path, kinds: tuple[str, ...] = (".x",)) -> Tree:
    return listed(str(root), "things", lambda path: path.endswith(kinds), kinds)


def test_a_listing_is_kept_until_the_folder_changes(root: Path, scans: Scans) -> None:
    first = tree_of(root)
    assert first == list_tree(str(root), "things", lambda path: path.endswith(".x"))
    assert len(first.files) == 4 and first.others == {".txt": 1}
    assert tree_of(root) == first and scans.count == 1
    (root / "b" / "c" / "4.x").touch()
    settled = len(tree_of(root).files)
    assert settled == 5 and scans.count == 2
    assert len(tree_of(root).files) == 5 and scans.count == 3  # changed a moment ago: nothing was kept
    (root / "a" / "1.x").unlink()
    (root / "empty").mkdir()
    assert "empty" in tree_of(root).folders and scans.count == 4
    settle(root)
    assert len(tree_of(root).files) == 4 and scans.count == 5
    assert len(tree_of(root, (".txt",)).files) == 1 and scans.count == 6  # other endings


def test_of_a_small_folder_nothing_is_kept(
    root: Path, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_cache, "MANY", 4)
    assert tree_of(root) == tree_of(root) and scans.count == 2
    assert not (tmp_path / "cache").exists()


def test_a_damaged_listing_and_a_cache_that_cannot_be_written_do_no_harm(
    root: Path, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tree_of(root)
    (file,) = (tmp_path / "cache").rglob("tree.json.gz")
    for content in (b"", b"\x1f\x8b", file.read_bytes()[:-9]):
        file.write_bytes(content)
        assert tree_of(root) == first
    assert scans.count == 4
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert tree_of(root) == first


@pytest.mark.parametrize("many", [3, 100])
def test_processes_of_a_run_scan_one_after_the_other(
    many: int, root: Path, scans: Scans, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing_cache, "MANY", many)
    monkeypatch.setenv("LOCAL_RANK", "0")
    found: list[Tree] = []
    threads = [threading.Thread(target=lambda: found.append(tree_of(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [tree_of(root)] * 4 and capsys.readouterr().out == ""
    assert scans.count == (1 if many == 3 else 5)


def test_images_are_listed_once(root: Path, scans: Scans) -> None:
    for folder in ("a", "b"):
        for number in range(5):
            (root / folder / f"{number}.png").touch()
    settle(root)
    files = [ImageFolder(str(root)).files("bank") for _ in range(2)]
    assert files[0] == files[1] and len(files[0]) == 7 and scans.count == 1
