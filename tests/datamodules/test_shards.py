"""Shards: the same samples as a folder of the same files, exact resume, and every way in which a shard can be
wrong.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from datamodules.base import keep_batch
from datamodules.errors import ConfigError, DataFileError, ImageFileError, MissingDataError
from datamodules.images import index as tar_index
from datamodules.images import remote
from datamodules.images.folder import ImageFolder
from datamodules.images.index import MAX_GAP, index_folder, merged, write_index
from datamodules.images.pack import make_shards
from datamodules.images.shards import Shards, expanded, split_of, split_pattern
from datamodules.samplers import EpochSampler
from tests.datamodules.conftest import CLASSES, picture


def shards(root: Any, **options: Any) -> Shards:
    return Shards(str(root), **{"image_size": 16, "batch_size": 8, **options})


def as_set(batch: Any) -> list[tuple[bytes, int]]:
    return sorted((x.numpy().tobytes(), int(y)) for x, y in zip(batch["input"], batch["label"], strict=True))


# ---- the same as a folder ----------------------------------------------------------------------------------


def test_every_image_of_the_folder_is_there_once_with_its_label(source: Path, made: Path):
    data, files = shards(made), ImageFolder(str(source), image_size=16)
    assert data.class_names == files.class_names == CLASSES and data.num_classes == 3
    assert sorted(p.name for p in made.glob("*.tar")) == [f"train-00000{i}.tar" for i in range(4)]
    sizes = {split: len(data.dataset(split)) for split in ("train", "bank", "val", "test")}
    assert (
        sizes
        == {split: len(files.dataset(split)) for split in sizes}
        == {"train": 43, "bank": 43, "val": 5, "test": 12}
    )
    # center crops of all files, however they are split
    every = [
        as_set(d.dataset(s).__getitems__(range(sizes[s])))
        for d in (data, files)
        for s in ("bank", "val", "test")
    ]
    assert sorted(itertools.chain(*every[:3])) == sorted(itertools.chain(*every[3:]))
    batch = data.dataset("train").__getitems__([3, 1, 40])
    assert (
        batch["input"].shape == (3, 3, 16, 16)
        and batch["input"].dtype == torch.uint8
        and batch["label"].dtype == torch.int64
    )


def test_the_same_files_make_the_same_shards(source: Path, made: Path, tmp_path: Path):
    make_shards(source, tmp_path / "again", per_shard=16)
    for path in sorted(made.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="exists: nothing is overwritten"):
        make_shards(source, tmp_path / "again")


def test_split_folders_become_splits(source: Path, tmp_path: Path):
    root = tmp_path / "src"
    for split in ("train", "val", "test"):
        shutil.copytree(source, root / split)
    make_shards(root, tmp_path / "dst", per_shard=100)
    data = shards(tmp_path / "dst")
    assert [len(data.dataset(s)) for s in ("train", "val", "test")] == [60, 60, 60]
    assert [Path(file).parent for file in data.files("val")] == [tmp_path / "dst" / "val-000000.tar"] * 60
    shutil.rmtree(root / "test")
    make_shards(root, tmp_path / "two", per_shard=100)  # the one given is reported, val is held out
    assert [len(shards(tmp_path / "two").dataset(s)) for s in ("train", "val", "test")] == [54, 6, 60]


def test_unlabeled(source: Path, made: Path, tmp_path: Path):
    data = shards(made, labeled=False)
    assert data.num_classes is None and set(data.dataset("bank").labels) == {-1}
    make_shards(source, tmp_path / "dst", labeled=False)
    assert shards(tmp_path / "dst").num_classes is None
    with tarfile.open(tmp_path / "dst" / "train-000000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".cls")]


def test_patterns(made: Path):
    assert expanded("a-{08..10}.{x,y}") == ["a-08.x", "a-08.y", "a-09.x", "a-09.y", "a-10.x", "a-10.y"]
    assert split_pattern("d/e/") == ("d/e", None) and split_pattern("http://h/a-{0..3}.tar") == (
        "http://h",
        "a-{0..3}.tar",
    )
    assert [split_of(n) for n in ("imagenet-val-01.tar", "test.tar", "interval-0.tar", "x.tar")] == [
        "val",
        "test",
        "train",
        "train",
    ]
    for pattern in ("train-{000000..000001}.tar", "train-00000[01].tar"):
        data = shards(f"{made}/{pattern}")
        assert sum(len(data.dataset(s)) for s in ("train", "val", "test")) == 32
    with pytest.raises(MissingDataError, match=r"train-000004.tar is missing"):
        shards(f"{made}/train-{{000003..000004}}.tar").dataset("train")


def test_shards_of_other_programs_are_indexed_at_first_use(tmp_path: Path):
    """Names with folders, class names or numbers in .json, members that are no images, more than one
    ending.
    """
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(12):
            buffer = io.BytesIO()
            picture(i).save(buffer, "png")
            name = f"long/{'x' * 120}/{i:03d}"
            for ending, content in (
                ("png", buffer.getvalue()),
                ("seg.png", b"not read"),
                ("json", json.dumps({"label": CLASSES[i % 3]}).encode()),
            ):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = shards(tmp_path, in_memory=False)
    bank = data.dataset("bank")
    assert data.class_names == CLASSES and (tmp_path / "shards.json").is_file()
    assert sum(len(data.dataset(s)) for s in ("train", "val", "test")) == 12
    again = shards(tmp_path, in_memory=False).dataset("bank")
    indices = range(len(bank))
    assert as_set(bank.__getitems__(indices)) == as_set(again.__getitems__(indices))


# ---- order, resume, ranks ----------------------------------------------------------------------------------


class Done:
    def __init__(self, done: int = 0) -> None:
        self.done = done

    def batches_done(self) -> int:
        return self.done


def order(
    dataset: Any, block: int, rank: int = 0, world: int = 1, done: int = 0, epoch: int = 0
) -> list[int]:
    dataset.block = block
    sampler = EpochSampler(dataset, 8, 0, rank, world, Done(done))  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_order_by_blocks(made: Path, block: int):
    """Every sample once, neighbors together, other neighbors in another epoch, ranks disjoint, the tail on
    resume.
    """
    dataset: Any = shards(made).dataset("train")
    n = len(dataset)
    first, second = order(dataset, block), order(dataset, block, epoch=1)
    assert sorted(first) == sorted(second) == list(range(n)) and first != second
    steps = np.diff(first) % n == 1
    assert steps.sum() >= (n // block) * (block - 1)
    if 1 < block < n:
        assert steps.sum() < n - 2, "blocks are not shuffled"
        assert {f // block for f in first} and first[0] % block != second[0] % block
    assert order(dataset, block, done=2) == first[16:]
    for world in (2, 3):
        ranks = [order(dataset, block, rank, world) for rank in range(world)]
        assert {len(r) for r in ranks} == {n // world} and len(
            {i for r in ranks for i in r}
        ) == n // world * world
        if 8 % block == 0:  # a step's batches are together the single process's batch
            assert set(ranks[0][:8]) | set(ranks[1][:8]) | set(ranks[-1][:8]) == set(first[: 8 * world])


def test_the_order_of_data_without_blocks_is_what_it_was():
    """Written down once: another order would break the resume of older runs."""
    dataset = torch.utils.data.TensorDataset(torch.zeros(10))
    assert order(dataset, 1, rank=0, world=2) + order(dataset, 1, rank=1, world=2) == [
        4,
        6,
        7,
        0,
        1,
        2,
        8,
        5,
        3,
        9,
    ]


@pytest.mark.parametrize("where", ["folder", "url"])
def test_workers_give_what_one_process_gives(folder: Path, server: Any, where: str):
    data = shards(folder if where == "folder" else server.url)
    dataset: Any = data.dataset("train")
    dataset.set_epoch(3)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(dataset, 8, 0, 0, 1, Done())  # type: ignore[arg-type]
        loader = DataLoader(dataset, 8, sampler=sampler, num_workers=workers, collate_fn=keep_batch)
        batches.append(list(loader))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["input"], two["input"]) and torch.equal(one["label"], two["label"])
    assert len(batches[0]) == 6


def test_neighbors_are_read_at_once():
    places = [
        (0, 100, 200),
        (1, 0, 50),
        (0, 0, 100),
        (0, 200 + MAX_GAP, 210 + MAX_GAP),
        (0, 10**9, 10**9 + 1),
    ]
    assert list(merged(places)) == [
        (0, 0, 210 + MAX_GAP, [2, 0, 3]),
        (0, 10**9, 10**9 + 1, [4]),
        (1, 0, 50, [1]),
    ]
    assert list(merged([])) == []


# ---- by URL ------------------------------------------------------------------------------------------------


def test_url_gives_the_same_samples(made: Path, server: Any):
    local, remote = shards(made), shards(server.url)
    assert remote.block == 16 and local.block == 1
    for split in ("train", "val", "test"):
        indices = range(len(local.dataset(split)))
        one, two = local.dataset(split).__getitems__(indices), remote.dataset(split).__getitems__(indices)
        assert torch.equal(one["input"], two["input"]) and torch.equal(one["label"], two["label"])
    server.asked.clear()
    remote.dataset("train").__getitems__(range(8))
    assert len(server.asked) <= 2, "neighbors are read at once"


@pytest.mark.parametrize("fault", [503, 429, "cut", "hang"])
def test_a_passing_fault_of_the_server_is_tried_again(server: Any, fault: Any):
    data = shards(server.url, timeout=0.3)
    expected = data.dataset("train").__getitems__([5])
    server.faults += [fault, fault]
    assert torch.equal(data.dataset("train").__getitems__([5])["input"], expected["input"])
    assert not server.faults


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        (503, r"train-00000\d.tar cannot be read after 4 attempts: HTTP status 503", 4),
        ("hang", r"cannot be read after 4 attempts: .*timeout 0.2 s", 4),
        (403, r"cannot be read: HTTP status 403", 1),
        ("no ranges", r"does not support range requests \(status 200", 1),
    ],
)
def test_a_lasting_fault_of_the_server_is_one_line(server: Any, fault: Any, said: str, requests: int):
    data = shards(server.url, timeout=0.2)
    dataset = data.dataset("train")
    server.faults += [fault] * 9
    server.asked.clear()
    with pytest.raises(DataFileError, match=said) as error:
        dataset.__getitems__([5])
    assert "\n" not in str(error.value) and len(server.asked) == requests


def test_url_without_shards_index_or_server(server: Any, folder: Path):
    dataset = shards(server.url).dataset("train")
    (folder / "train-000001.tar").unlink()
    with pytest.raises(DataFileError, match=r"train-000001.tar is missing \(HTTP status 404\)"):
        dataset.__getitems__(range(43))
    (folder / "train-000002.tar").write_bytes((folder / "train-000002.tar").read_bytes() + bytes(512))
    with pytest.raises(DataFileError, match=r"train-000002.tar has changed"):
        dataset.__getitems__(np.flatnonzero(dataset.paths >= 32)[:1].tolist())
    (folder / "shards.json").unlink()
    with pytest.raises(MissingDataError, match=r"shards.json is missing.*images.pack --index"):
        shards(server.url).dataset("train")
    with pytest.raises(DataFileError, match=r"after 4 attempts: .*refused"):
        shards("http://127.0.0.1:9").dataset("train")


class FakeStore(MemoryFileSystem):
    """A cloud in memory."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")


@pytest.fixture
def store(folder: Path) -> Iterator[FakeStore]:
    fsspec.register_implementation("s3", FakeStore, clobber=True)
    store = FakeStore()
    store.store.clear()
    for path in folder.iterdir():
        store.pipe_file(f"s3://bucket/made/{path.name}", path.read_bytes())
    yield store
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cloud_gives_the_same_samples(made: Path, store: FakeStore, workers: int):
    local, cloud = shards(made, num_workers=workers), shards("s3://bucket/made/", num_workers=workers)
    for split in ("train", "val", "test"):
        one, two = (list(data.eval_dataloader(data.dataset(split))) for data in (local, cloud))
        assert [as_set(batch) for batch in one] == [as_set(batch) for batch in two]
    assert cloud.block == 16


def test_what_goes_wrong_in_a_cloud(store: FakeStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    dataset, read, calls = shards("s3://bucket/made").dataset("train"), FakeStore.cat_file, []

    def passing(self: Any, *args: Any, **kwargs: Any) -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError("slow down")
        return read(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FakeStore, "cat_file", passing)
        assert len(dataset.__getitems__([0])["input"]) == 1 and len(calls) == 2
        patch.setattr(FakeStore, "cat_file", lambda *args, **kwargs: calls.extend([1]) or 1 / 0)
        expected = r"train-\d+\.tar cannot be read after 4 attempts: ZeroDivisionError: division by zero"
        with pytest.raises(DataFileError, match=expected):
            dataset.__getitems__([0])
    for name in [path for path in store.store if path.endswith(".tar")]:
        del store.store[name]
    with pytest.raises(DataFileError, match=r"s3://bucket/made/train-\d+\.tar is missing$"):
        dataset.__getitems__([0])
    with pytest.raises(MissingDataError, match=r"shards.json is missing\. Shards at a URL need .*--index"):
        shards("s3://bucket/empty").dataset("train")


def test_a_cloud_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(url: str) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError) as caught:
        shards("gs://bucket/made").dataset("train")
    told = "gs://bucket/made/shards.json needs another package: Please install gcsfs to access Google Storage"
    assert str(caught.value) == told


# ---- what is wrong on the disk -----------------------------------------------------------------------------


def test_missing_truncated_and_changed_shards(folder: Path):
    shard = folder / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataFileError, match=r"train-000001.tar is truncated: \d+ bytes, \d+ when it was indexed"
    ):
        shards(folder).dataset("train")
    shard.write_bytes(content + bytes(512))
    with pytest.raises(DataFileError, match=r"train-000001.tar has changed"):
        shards(folder).dataset("train")
    shard.write_bytes(content)
    dataset = shards(folder).dataset("train")
    other = bytearray(content)
    other[512 * 3 :: 512] = bytes(len(other[512 * 3 :: 512]))  # of the same size
    shard.write_bytes(other)
    with pytest.raises(DataFileError, match=r"train-000001.tar has changed since it was indexed"):
        dataset.__getitems__(range(len(dataset)))
    shard.write_bytes(content[: len(content) // 2])  # while the run goes on
    with pytest.raises(DataFileError, match=r"train-000001.tar is truncated"):
        dataset.__getitems__(range(len(dataset)))
    shard.unlink()
    with pytest.raises(DataFileError, match=r"train-000001.tar is missing: it existed"):
        dataset.__getitems__(range(len(dataset)))
    with pytest.raises(MissingDataError, match=r"train-000001.tar is missing: copy it there"):
        shards(folder).dataset("train")


@pytest.mark.parametrize("keep", ["half", "a member's end", "all but the end blocks"])
def test_a_truncated_shard_is_not_indexed(folder: Path, keep: str):
    shard = folder / "train-000001.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    cut = {
        "half": len(content) // 2 + 100,
        "a member's end": members[4].offset,
        "all but the end blocks": members[-1].offset + 1024,
    }
    shard.write_bytes(content[: cut[keep]])
    with pytest.raises(DataFileError, match=r"train-000001.tar is (damaged or )?truncated"):
        index_folder(folder)


def test_no_shards(tmp_path: Path):
    with pytest.raises(MissingDataError, match="no shards in"):
        shards(tmp_path).dataset("train")
    with pytest.raises(MissingDataError, match="is not a folder"):
        shards(tmp_path / "absent").dataset("train")
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(MissingDataError, match="no images in the 1 shards"):
        shards(tmp_path).dataset("train")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "its format is 2"),
        ("name", "../../etc/passwd.tar", "plain file names"),
        ("samples", 17, "expected 61 records"),
        ("bytes", 1000, "outside of its shard"),
        ("class_names", ["apple"], "a label is not in -1 to 0"),
        ("shards", None, "TypeError"),
    ],
)
def test_a_wrong_index_is_refused(folder: Path, key: str, value: Any, said: str):
    meta = json.loads((folder / "shards.json").read_text())
    (meta if key in meta else meta["shards"][0])[key] = value
    (folder / "shards.json").write_text(json.dumps(meta))
    with pytest.raises(DataFileError, match=said):
        shards(folder).dataset("train")


def test_nothing_is_unpickled(folder: Path):
    np.save(folder / "shards.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataFileError, match=r"index of .* is damaged"):
        shards(folder).dataset("train")


def damage(folder: Path, *which: int) -> list[str]:
    """Overwrite images within their shards: headers stay as they are. Names of the members."""
    index = index_folder(folder)
    for number in which:
        shard = int(np.searchsorted(index.first, number, side="right")) - 1
        with (folder / index.names[shard]).open("r+b") as file:
            file.seek(int(index.records["offset"][number]))
            file.write(bytes(int(index.records["size"][number])))
    return [f"{n:09d}.png" for n in which]


def test_a_broken_image_is_named(folder: Path):
    data = shards(folder)
    broken = int(data._find()["train"][0][7])
    (name,) = damage(folder, broken)
    with pytest.raises(
        ImageFileError, match=rf"cannot read image {name} in shard .*train-00000{broken // 16}.tar: it is not"
    ):
        data.dataset("train").__getitems__([7])
    sampler = EpochSampler(data.dataset("train"), 8, 0, 0, 1, Done())  # type: ignore[arg-type]
    loader = DataLoader(data.dataset("train"), 8, sampler=sampler, num_workers=2, collate_fn=keep_batch)
    with pytest.raises(ImageFileError, match=f"^cannot read image {name}"):
        list(loader)


def test_broken_images_are_passed_over_and_counted_when_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    numbers = shards(folder)._find()["train"][0]
    names = damage(folder, *numbers[[7, 8, 20]].tolist())
    data = shards(folder, max_unreadable=2)
    dataset = data.dataset("train")
    batch = dataset.__getitems__([6, 7, 8])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(f"skipped, {i} of at most 2" in said[i - 1] for i in (1, 2))
    assert batch["label"].tolist() == [dataset.labels[6], -1, -1]
    dataset.random_crop = False
    plain, after = (
        dataset.__getitems__([7]),
        dataset.__getitems__([9]),
    )  # known already: not said and not counted again
    assert torch.equal(plain["input"], after["input"])
    assert [file.split()[0] for file in data.unreadable_files()] == sorted(names[:2])
    with pytest.raises(ImageFileError, match=rf"{names[2]} .*unreadable file number 3, max_unreadable is 2"):
        dataset.__getitems__([20])


def test_a_changed_shard_is_not_passed_over(folder: Path):
    """Only a picture may be: what is wrong with a whole shard ends the run, also while a replacement is
    looked for.
    """
    data = shards(folder, max_unreadable=100)
    numbers = data._find()["train"][0]
    damage(folder, int(numbers[7]))
    index, dataset = index_folder(folder), data.dataset("train")
    shard = int(np.searchsorted(index.first, numbers[8], side="right")) - 1
    with (folder / index.names[shard]).open("r+b") as file:
        file.seek(int(index.records["offset"][numbers[8]]) - 512)
        file.write(b"other")
    with pytest.raises(DataFileError, match="has changed since it was indexed"):
        dataset.__getitems__([7])


def test_large_members_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tar_index, "MAX_MEMBER", 100)
    with pytest.raises(DataFileError, match=r"000000000.png has \d+ bytes, more than 100"):
        index_folder(folder)
    with pytest.raises(DataFileError, match="too large"):
        shards(folder).dataset("train")


def test_bad_arguments(made: Path):
    for option, value in (("block", 0), ("timeout", 0), ("max_unreadable", -1)):
        with pytest.raises(ValueError, match=f"{option} must"):
            shards(made, **{option: value})


def test_index_is_written_as_it_is_read(folder: Path):
    before = (folder / "shards.npy").read_bytes()
    index = index_folder(folder)
    write_index(index, folder)
    assert (folder / "shards.npy").read_bytes() == before and not list(folder.glob(".shards*"))
