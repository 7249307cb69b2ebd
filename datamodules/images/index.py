"""The index of a folder of tar shards.

A tar file is a sequence of members, each a header of 512 bytes and its content. With a list of their
positions, any sample can be read on its own, so shards are shuffled, split and resumed exactly like a list of
files. The list is two files next to the shards: ``shards.json`` (names, sizes, sample counts and classes,
readable by people) and ``shards.npy`` (one record per sample). Nothing is unpacked to disk, and nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from datamodules.errors import DataFileError, MissingDataError, readable
from datamodules.images.decode import image_endings
from datamodules.images.remote import changed, fetch, is_url
from datamodules.listing import is_hidden
from datamodules.preparing import alone_in
from runtime.files import whole_file, write_text

MAX_MEMBER = 64 * 2**20
"""Maximum size of an image in bytes."""
NO_ENDING = ".img"
"""Extension of a member made from an image file without one."""
MAX_LABEL = 2**20
"""Maximum size of a .cls or .json member in bytes."""
MAX_GAP = 2**18
"""Requested samples at most this many bytes apart are read together, with the bytes between them."""
FORMAT = 1

RECORD = np.dtype([("offset", "<i8"), ("size", "<u4"), ("label", "<i4"), ("crc", "<u4")])
"""Offset of a sample's content in its shard, in bytes; its size; its class or -1; CRC-32 of its header."""


@dataclass
class ShardIndex:
    """Lists the samples of a folder of shards.

    Attributes:
        names: file names of the shards, (S,).
        sizes: sizes of the shards in bytes, (S,).
        first: index of each shard's first record, (S + 1,).
        records: (N,) of ``RECORD``, in shard order.
        class_names: one name for each label; empty for unlabeled samples.
    """

    names: list[str]
    sizes: list[int]
    first: np.ndarray
    records: np.ndarray
    class_names: tuple[str, ...]

    def fingerprint(self, chosen: Sequence[int]) -> dict[str, Any]:
        """Number and digest of the shards ``chosen``, to detect changes since an earlier start."""
        kinds = [(self.names[i], self.sizes[i], int(self.first[i + 1] - self.first[i])) for i in chosen]
        digest = hashlib.sha256(json.dumps(kinds).encode()).hexdigest()[:32]
        return {"count": len(chosen), "digest": digest}

    def to_json(self) -> str:
        shards = [
            {"name": name, "bytes": size, "samples": int(n)}
            for name, size, n in zip(self.names, self.sizes, np.diff(self.first), strict=True)
        ]
        return (
            json.dumps({"format": FORMAT, "class_names": self.class_names, "shards": shards}, indent=1) + "\n"
        )


# ---- building the index ------------------------------------------------------------------------------------


def index_folder(folder: Path, progress: Callable[[str], None] = lambda text: None) -> ShardIndex:
    """Build the index from the headers of every ``*.tar`` in ``folder``.

    A sample is an image plus the members with the same name up to the first dot (WebDataset's rule): ``.cls``
    contains a class number or name, ``.json`` may contain it as "label" or "cls". Other members are ignored.

    Raises:
        MissingDataError: there are no shards, or no images in them.
        DataFileError: a shard is damaged or truncated, or a member is too large; names the shard.
    """
    names = sorted(path.name for path in folder.glob("*.tar") if not is_hidden(path.name))
    if not names:
        raise MissingDataError(
            f"no shards in {folder}: expected *.tar files, which python -m datamodules.images.pack creates"
        )
    sizes, first, parts, labels = [], [0], [], []
    for name in names:
        records, found = _index_shard(folder / name)
        sizes.append((folder / name).stat().st_size)
        first.append(first[-1] + len(records))
        parts.append(records)
        labels += found
        progress(f"{name}: {len(records)} samples")
    if not first[-1]:
        raise MissingDataError(
            f"no images in the {len(names)} shards of {folder}: expected members such as 0001.jpg"
        )
    records = np.concatenate(parts)
    records["label"], class_names = _numbered(labels)
    return ShardIndex(names, sizes, np.array(first), records, class_names)


def _index_shard(path: Path) -> tuple[np.ndarray, list[str | int | None]]:
    """The records of one shard, with labels not yet set, and the labels as written in the shard."""
    samples: dict[str, tuple[int, int, int, int]] = {}
    labels: dict[str, str | int | None] = {}
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps all members
                if not member.isreg() or member.issparse():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                suffix = "." + ending.lower()
                if any(map(is_hidden, PurePosixPath(member.name).parts)):
                    continue
                if key and (suffix in image_endings() or suffix == NO_ENDING):
                    if member.size > MAX_MEMBER:
                        raise DataFileError(
                            f"{path}: {member.name} has {member.size} bytes, more than {MAX_MEMBER}"
                        )
                    raw.seek(member.offset_data - 512)
                    sample = (member.offset_data, member.size, -1, zlib.crc32(raw.read(512)))
                    if samples.setdefault(f"{folder}/{key}", sample) is not sample:
                        raise DataFileError(
                            f"{path}: {member.name} is the second image with this name: rename one of them"
                        )
                elif suffix in (".cls", ".json"):
                    if member.size > MAX_LABEL:
                        raise DataFileError(
                            f"{path}: {member.name} has {member.size} bytes, more than {MAX_LABEL}"
                        )
                    label = _label(tar.extractfile(member).read(), suffix)  # type: ignore[union-attr]
                    if label is not None:
                        labels[f"{folder}/{key}"] = label
            raw.seek(0, os.SEEK_END)
            raw.seek(max(0, raw.tell() - 512))
            if raw.read().strip(b"\0"):  # an archive ends with empty blocks
                raise DataFileError(f"shard {path} is truncated: its end is missing. Copy or make it again")
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(
            f"shard {path} is damaged or truncated ({error}): copy or make it again"
        ) from None
    return np.array(list(samples.values()), RECORD), [labels.get(key) for key in samples]


def _label(content: bytes, suffix: str) -> str | int | None:
    """The class number or name in a ``.cls`` or ``.json`` member; None if there is none."""
    text: Any = content.decode("utf-8", "replace").strip()
    if suffix == ".json":
        values = json.loads(text)
        text = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    if isinstance(text, str):
        return int(text) if re.fullmatch(r"-?\d{1,9}", text) else text or None
    return text if isinstance(text, int) and not isinstance(text, bool) else None


def _numbered(labels: Sequence[str | int | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,), -1 = unknown, and class names: numbers are kept, names are numbered in sorted order."""
    known = {label for label in labels if label is not None and label != -1}
    numbers = [label for label in known if isinstance(label, int)]
    if len(numbers) == len(known):
        if numbers and min(numbers) < 0:
            raise DataFileError(f"a class number is {min(numbers)}, expected 0 or more, or -1 for unknown")
        names = tuple(map(str, range(max(numbers) + 1))) if numbers else ()
        return np.array([-1 if label is None else label for label in labels], np.int32), names
    ordered = {str(label): i for i, label in enumerate(sorted(map(str, known)))}
    return np.array([ordered.get(str(label), -1) for label in labels], np.int32), tuple(ordered)


def write_index(index: ShardIndex, folder: Path) -> None:
    """Write both files atomically; shards.json, which readers look for, comes last."""
    with whole_file(folder / "shards.npy") as file:
        np.save(file, index.records, allow_pickle=False)
    write_text(folder / "shards.json", index.to_json())


# ---- reading the index -------------------------------------------------------------------------------------


def load_index(root: str, timeout: float) -> ShardIndex:
    """The index of a folder, local or at a URL; a local folder without one is indexed and the index saved.
    Raises:
        MissingDataError: the folder does not exist, or there is no index at the URL.
        DataFileError: the index is damaged, or does not match the shards in the folder.
    """
    if is_url(root):
        try:
            return _parsed(root, fetch(f"{root}/shards.json", timeout), fetch(f"{root}/shards.npy", timeout))
        except MissingDataError as error:
            raise MissingDataError(
                f"{error}. Shards at a URL need the two index files next to them, which "
                "python -m datamodules.images.pack --index DIR writes"
            ) from None
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise MissingDataError(
            f"--data.root {folder} is not a folder. Expected tar shards, or the URL of a folder of them"
        )
    if not (folder / "shards.json").is_file():
        with alone_in(folder):
            if not (folder / "shards.json").is_file():  # unless another process has just written it
                index = index_folder(folder)
                with contextlib.suppress(OSError):  # a read-only folder is indexed each time
                    write_index(index, folder)
                return index
    if not (folder / "shards.npy").is_file():
        raise MissingDataError(
            f"shards.npy is missing in {folder}: python -m datamodules.images.pack --index {folder} writes it"
        )
    with readable(folder):
        return _parsed(root, (folder / "shards.json").read_bytes(), (folder / "shards.npy").read_bytes())


def _parsed(root: str, text: bytes, table: bytes) -> ShardIndex:
    """Parse an index from the bytes of its files; every value is checked, as the source is not trusted."""
    try:
        meta = json.loads(text)
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, expected {FORMAT}")
        names = [str(shard["name"]) for shard in meta["shards"]]
        sizes = [int(shard["bytes"]) for shard in meta["shards"]]
        first = np.cumsum([0, *(int(shard["samples"]) for shard in meta["shards"])])
        class_names = tuple(map(str, meta["class_names"]))
        records = np.load(io.BytesIO(table), allow_pickle=False)
        if records.dtype != RECORD or records.shape != (first[-1],):
            raise ValueError(f"shards.npy has {records.dtype} {records.shape}, expected {first[-1]} records")
        bad = [name for name in names if not re.fullmatch(r"[\w+=-][\w.+=-]*\.tar", name)]
        if bad or len(set(names)) < len(names):
            raise ValueError(
                f"names of shards must be different plain file names, got {bad[:1] or 'a duplicate'}"
            )
        ends = records["offset"] + records["size"]
        limit = np.repeat(sizes, np.diff(first))
        if (records["offset"] < 512).any() or (ends > limit).any() or (records["size"] > MAX_MEMBER).any():
            raise ValueError("a sample is outside of its shard or too large")
        if ((records["label"] < -1) | (records["label"] >= len(class_names))).any():
            raise ValueError(f"a label is not in -1 to {len(class_names) - 1}")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise DataFileError(
            f"the index of {root} (shards.json, shards.npy) is damaged ({type(error).__name__}: {error}): "
            "python -m datamodules.images.pack --index DIR rebuilds it"
        ) from None
    return ShardIndex(names, sizes, first, records, class_names)


def check_folder(root: str, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Check that the shards in the index exist and have its sizes (one stat each, nothing is read).

    Raises:
        MissingDataError: a shard is missing.
        DataFileError: the size of a shard has changed since it was indexed.
    """
    folder = Path(root).expanduser()
    for name, size in zip(names, sizes, strict=True):
        try:
            now = (folder / name).stat().st_size
        except FileNotFoundError:
            raise MissingDataError(
                f"shard {folder / name} is missing: copy it there, or index the rest again with "
                f"python -m datamodules.images.pack --index {folder}"
            ) from None
        if now != size:
            raise DataFileError(changed(str(folder / name), size, now, str(folder)))


# ---- reading bytes ------------------------------------------------------------------------------------


def read_file(path: str, span: tuple[int, int]) -> bytes:
    """Bytes ``span[0]`` to ``span[1]`` (exclusive) of a local shard."""
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), span[1] - span[0], span[0])
    except FileNotFoundError:
        raise DataFileError(
            f"shard {path} is missing: it existed when the run began. Copy it there again"
        ) from None
    except OSError as error:
        raise DataFileError(f"shard {path} cannot be read: {error.strerror}") from None
    if len(content) != span[1] - span[0]:
        raise DataFileError(
            f"shard {path} is truncated: it ends before byte {span[1]}. Copy or make it again"
        )
    return content


def merged(places: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int, list[int]]]:
    """Merge requested ranges that are close together.

    Args:
        places: shard, start and end of each range.

    Yields:
        Shard, start and end to read, and the indices of the ``places`` inside that range.
    """
    current: tuple[int, int, int, list[int]] | None = None
    for which in sorted(range(len(places)), key=places.__getitem__):
        shard, start, end = places[which]
        if current is not None and shard == current[0] and start - current[2] <= MAX_GAP:
            current = (shard, current[1], max(current[2], end), [*current[3], which])
            continue
        if current is not None:
            yield current
        current = (shard, start, end, [which])
    if current is not None:
        yield current
