"""Images in tar shards (WebDataset layout), on a disk or behind a URL."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from datamodules.checks import check_at_least, check_positive
from datamodules.errors import DataFileError, MissingDataError
from datamodules.images import index as tar_index
from datamodules.images.folder import FolderDataset, ImageFolder
from datamodules.images.index import ShardIndex, load_index, merged, read_file
from datamodules.images.module import ArrayDataset
from datamodules.images.remote import fetch, is_url
from datamodules.splits import Samples, Split, splits_in

CONNECTIONS = 8
"""Concurrent requests of one worker."""


class ShardDataset(FolderDataset):
    """Images in tar shards, read by their position, decoded and cropped to squares.

    Args:
        root: folder or URL of the shards.
        index: index of all shards.
        numbers: (N,) records of ``index`` to use as samples.
        block: number of adjacent samples that are read at once; ``EpochSampler`` shuffles such blocks.
        timeout: timeout of an HTTP request in seconds.
        options: ``labels``, ``size``, ``channels``, ``shorter``, ``random_crop``, ``max_unreadable`` of
            ``FolderDataset``.
    """

    def __init__(
        self, root: str, index: ShardIndex, numbers: np.ndarray, block: int, timeout: float, **options: Any
    ) -> None:
        super().__init__(numbers, **options)
        self.root, self.index, self.block, self.timeout = root, index, block, timeout
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pool": None}

    def _decode(self, index: int, draw: int | None, content: bytes | None) -> np.ndarray:
        """One image from its header and content."""
        member = self._contents([index])[0] if content is None else content
        name = os.fsencode(self.name(index, member[:512]))
        return self._pixels(name, draw, member[512:])

    def name(self, index: int, header: bytes | None = None) -> str:
        """Member and shard of a sample, for messages; reads the member's header unless it is given."""
        header = self._contents([index])[0][:512] if header is None else header
        shard = int(np.searchsorted(self.index.first, self.paths[index], side="right")) - 1
        return f"{_member(header)} in shard {self.root}/{self.index.names[shard]}"

    def members(self) -> list[str]:
        """Shard and member of every sample, as ``ROOT/SHARD.tar/MEMBER``; only headers are read."""
        names = []
        for first in range(0, len(self), 4096):
            indices = range(first, min(first + 4096, len(self)))
            shards = np.searchsorted(self.index.first, self.paths.take(indices), side="right") - 1
            for shard, header in zip(shards, self._contents(indices, headers_only=True), strict=True):
                names.append(f"{self.root}/{self.index.names[shard]}/{_member(header)}")
        return names

    def _contents(self, indices: Sequence[int], headers_only: bool = False) -> list[bytes]:
        """Header and content of each sample; adjacent ones are read together, several requests at a time."""
        numbers = self.paths.take(indices, 0)
        records = self.index.records[numbers]
        shards = np.searchsorted(self.index.first, numbers, side="right") - 1
        starts = records["offset"] - 512
        ends = records["offset"] + (0 if headers_only else records["size"])
        places = list(zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True))
        runs = list(merged(places))
        members = [b""] * len(places)
        for (shard, begin, _, which), content in zip(runs, self._map(self._bytes, runs), strict=True):
            for i in which:
                members[i] = content[places[i][1] - begin : places[i][2] - begin]
                if tar_index.zlib.crc32(members[i][:512]) != records["crc"][i]:
                    raise DataFileError(
                        f"shard {self.root}/{self.index.names[shard]} has changed since it was indexed: "
                        f"different content at byte {places[i][1]}. Copy it again, or rebuild the index with "
                        "python -m datamodules.images.pack --index DIR"
                    )
        return members

    def _bytes(self, run: tuple[int, int, int, list[int]]) -> bytes:
        shard, start, end, _ = run
        path = f"{self.root}/{self.index.names[shard]}"
        if is_url(path):
            return fetch(path, self.timeout, (start, end), self.index.sizes[shard])
        return read_file(os.path.expanduser(path), (start, end))

    def _map(self, function: Callable[[Any], bytes], runs: list[Any]) -> Any:
        if not is_url(self.root) or len(runs) < 2:
            return map(function, runs)
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = (os.getpid(), ThreadPoolExecutor(CONNECTIONS))
        return self._pool[1].map(function, runs)

    def in_memory(self, only_same_size: bool) -> ArrayDataset | None:
        """The same samples decoded once; None if ``only_same_size``, as images in shards may have any
        size.
        """
        if only_same_size:
            return None
        batches = [self.__getitems__(range(i, min(i + 256, len(self)))) for i in range(0, len(self), 256)]
        images = torch.cat([batch["input"] for batch in batches]).permute(0, 2, 3, 1).numpy()
        return ArrayDataset(images, torch.cat([batch["label"] for batch in batches]).numpy())


class Shards(ImageFolder):
    """Images in tar shards, local or at a URL (docs/data/shards.md).

    Shards are made by ``python -m datamodules.images.pack SRC DST`` or in WebDataset's layout. An index gives
    the position of every sample in its shard. Shuffling, distribution over ranks and workers, and resuming
    within an epoch are therefore exactly as for a folder of files; there is no shuffle buffer.

    The names of the shards give the splits: a shard with a usual word for ``val``, ``test`` or ``unlabeled``
    in its name (``val-000000.tar``) belongs to that split, all others to ``train``. Missing splits are held
    out of ``train`` by the rule for all data (docs/data/splits.md): if only one of val and test is given, it
    is reported as ``test``, and ``val`` is a fixed stratified hold-out.

    Layouts::

        a word for the split in the names of shards; others are train:
            DIR/train-000000.tar  DIR/val-000000.tar  DIR/test-000000.tar
        the same on a server, with the index (--data.root https://HOST/FOLDER):
            FOLDER/train-000000.tar  FOLDER/val-000000.tar  FOLDER/shards.json  FOLDER/shards.npy
        only some shards (--data.root 'DIR/images-{000000..000099}.tar'):
            DIR/images-000000.tar  DIR/images-000001.tar

    Args:
        root: folder of the shards or its URL (http, https, s3, gs), with ``shards.json`` and ``shards.npy``;
            a local folder without them is indexed at first use. A last path component with ``{000..146}``,
            ``*`` or ``.tar`` selects shards.
        block: number of adjacent samples that are read at once, and stay together in a batch. 1 is an exact
            shuffle; larger blocks mean fewer, longer reads. Default 1 for a folder, 16 for a URL.
        timeout: of an HTTP request, in seconds; a failed request is tried four times.
        options: those of ``ImageFolder``.

    Raises:
        MissingDataError: there are no shards, or one in the index is missing.
        DataFileError: a shard or the index is damaged, truncated or changed, or a server does not answer.
        ValueError: a bad argument.
    """

    samples_are_files = False

    def __init__(self, root: str, block: int | None = None, timeout: float = 30.0, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        check_at_least(1, block=block)
        check_positive(timeout=timeout)
        self.folder, self.pattern = split_pattern(self.root)
        self.block = block or (16 if is_url(self.folder) else 1)
        self.timeout = timeout
        self._index: ShardIndex | None = None

    def prepare_data(self) -> None:
        if not self.synthetic:
            self._find()  # one process per node writes a missing index

    def files(self, split: Split) -> list[str]:
        """Shard and member of the samples of ``split``, in the order of ``dataset(split)``."""
        return self._crops(self._find()[split], self.standard_size, random_crop=False).members()

    def _find(self) -> dict[str, Samples]:
        """Records (N,) and labels (N,) of train, bank, val and test, found once."""
        if self._files:
            return self._files
        index = load_index(self.folder, self.timeout)
        chosen = chosen_shards(index.names, self.pattern, self.folder)
        if not is_url(self.folder):
            tar_index.check_folder(
                self.folder, [index.names[i] for i in chosen], [index.sizes[i] for i in chosen]
            )
        parts: dict[str, list[np.ndarray]] = {}
        for i in chosen:
            parts.setdefault(split_of(index.names[i]), []).append(
                np.arange(index.first[i], index.first[i + 1])
            )
        if "train" not in parts:
            raise MissingDataError(
                f"Shards: no shards to train on in {self.root}, all are named after {', '.join(parts)}"
            )
        self._class_names = index.class_names if self.labeled and len(index.class_names) > 1 else ()
        found = {}
        for split, numbers in parts.items():
            joined = np.concatenate(numbers)
            labels = index.records["label"][joined] if self._class_names else np.full(len(joined), -1)
            found[split] = (joined, labels)
        self._fingerprint = index.fingerprint(chosen)
        self._index, self._files = index, self._complete(found)
        return self._files

    def _crops(self, files: Samples, shorter: int, random_crop: bool) -> ShardDataset:
        channels, size, _ = self.image_shape
        numbers, labels = files
        assert self._index is not None
        dataset = ShardDataset(
            self.folder,
            self._index,
            numbers,
            self.block,
            self.timeout,
            labels=labels,
            size=size,
            channels=channels,
            shorter=shorter,
            random_crop=random_crop,
            max_unreadable=self.max_unreadable,
        )
        self._opened.append(dataset)
        return dataset


def _member(header: bytes) -> str:
    """The name in a tar header; the start of a long name is in another field."""
    beginning = header[345:500] if header[257:263] == b"ustar\0" else b""
    parts = (part.partition(bytes(1))[0].decode("utf-8", "replace") for part in (beginning, header[:100]))
    return "/".join(part for part in parts if part)


def split_pattern(root: str) -> tuple[str, str | None]:
    """The folder (or URL) and the pattern of shard names in ``root``; None means all shards."""
    folder, _, last = root.rpartition("/")
    if re.search(r"[*?\[{]|\.tar$", last):
        return folder or ".", last
    return root.rstrip("/"), None


def expanded(pattern: str) -> list[str]:
    """Expand ``a-{08..10}.tar`` to ``a-08.tar``, ``a-09.tar``, ``a-10.tar``, and ``{x,y}`` to both."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    parts = (
        [str(i).zfill(len(ends[1])) for i in range(int(ends[1]), int(ends[2]) + 1)]
        if ends
        else match[1].split(",")
    )
    return [
        name for part in parts for name in expanded(pattern[: match.start()] + part + pattern[match.end() :])
    ]


def chosen_shards(names: Sequence[str], pattern: str | None, folder: str) -> list[int]:
    """Indices of the ``names`` that match a pattern, in order.

    Raises:
        MissingDataError: a shard named by the pattern is not in the index.
    """
    if pattern is None:
        return list(range(len(names)))
    wanted: set[str] = set()
    for one in expanded(pattern):
        matching = fnmatch.filter(names, one)
        if not matching:
            raise MissingDataError(
                f"shard {one} is missing in the index of {folder}, which lists {len(names)}: {names[0]} to "
                f"{names[-1]}. Correct --data.root, or rebuild the index with "
                "python -m datamodules.images.pack --index DIR"
            )
        wanted.update(matching)
    return [i for i, name in enumerate(names) if name in wanted]


def split_of(name: str) -> str:
    """The split of a shard (train, val, test or unlabeled) by the words in its name.

    Raises:
        DataFileError: the name contains words of two splits.
    """
    splits = splits_in(name.removesuffix(".tar"))
    if len(splits) > 1:
        raise DataFileError(
            f"the name of shard {name} contains two splits ({', '.join(sorted(splits))}): rename it"
        )
    return splits.pop() if splits else "train"
