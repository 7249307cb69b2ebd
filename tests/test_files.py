"""Files are complete or absent, and only runtime/files.py writes them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from datamodules.errors import DataFileError
from runtime import files
from runtime.discovery import PACKAGES, ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text("old")
    return path


def test_the_old_file_is_there_until_the_new_one_is_whole(old: Path) -> None:
    with files.whole_file(old) as file:
        file.write(b"new")
        assert old.read_text() == "old"
        assert [name for name in names(old.parent) if name.endswith(".tmp")] == [Path(file.name).name]
    assert old.read_text() == "new" and names(old.parent) == ["results.json"]


def test_two_processes_and_two_hosts_do_not_share_a_temporary_name(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    first, second = files.temporary_beside(old), files.temporary_beside(old)
    assert first != second and first.parent == old.parent
    assert all(re.fullmatch(r"\.results\.json\.node7\.[0-9a-f]{8}\.tmp", p.name) for p in (first, second))
    assert len(os.fsencode(files.temporary_beside(old.with_name("ü" * 120)).name)) < 255


def test_synced_before_it_gets_its_name(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut leaves an empty file under the final name."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("sync"), sync(number))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    files.write_json(old, {"a": 1})
    assert order == ["sync", "rename", "sync"]


def test_a_full_disk(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, the old file, nothing else."""

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataFileError) as caught:
        files.write_json(old, {"a": 1})
    assert re.fullmatch(
        rf"{old} could not be written \(No space left on device\): [\d.]+ MB are free\. "
        rf"{old} is unchanged",
        str(caught.value),
    )
    assert old.read_text() == "old" and names(old.parent) == ["results.json"]
    monkeypatch.undo()
    with pytest.raises(DataFileError, match=r"could not be written \(.*\): no such folder\. there is no ear"):
        files.write_text(old.parent / "absent" / "a.txt", "")


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "export") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "export").mkdir()  # an empty folder is taken
    with files.whole_folder(tmp_path / "export") as folder:
        (folder / "all").write_text("")
    assert names(tmp_path) == ["export"] and names(tmp_path / "export") == ["all"]


def test_leftovers_go_and_nothing_else(old: Path) -> None:
    files.temporary_beside(old).write_text("half")
    (old.parent / "mine.tmp").write_text("a user's")
    files.remove_leftovers(old.parent)
    assert names(old.parent) == ["mine.tmp", "results.json"]


def test_nothing_else_renames_over_a_file() -> None:
    """``os.replace`` stands elsewhere only where a whole file gets another name."""
    elsewhere = {
        path.relative_to(ROOT).as_posix(): len(re.findall(r"\bos\.(?:replace|rename)\(", text))
        for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
        if "os.re" in (text := path.read_text(encoding="utf-8"))
    }
    del elsewhere["runtime/files.py"]
    assert elsewhere == {"runtime/checkpoints.py": 2, "runtime/folder.py": 2, "runtime/loggers.py": 1}
