"""Packs a folder of images into tar shards: ``python -m datamodules.images.pack``.

    python -m datamodules.images.pack SRC DST [--per_shard 10000] [--unlabeled]
    python -m datamodules.images.pack --index DIR          index shards of other programs

SRC has the layout of ``ImageFolder``: one folder per class, optionally below train/, val/ and test/. Files
are copied byte for byte, in a fixed, shuffled order. DST must not exist; it appears once everything has been
written.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError, DataFileError
from datamodules.images.folder import ImageFolder
from datamodules.images.index import MAX_MEMBER, NO_ENDING, index_folder, write_index
from datamodules.splits import SPLIT_SEED


def make_shards(src: Path, dst: Path, per_shard: int = 10_000, labeled: bool = True) -> None:
    """Write ``DST/<split>-000000.tar``, ..., and their index.

    Raises:
        ValueError: ``dst`` exists or cannot be created, or an invalid ``per_shard``.
        MissingDataError: ``src`` is not a folder of images.
        DataFileError: an image is empty or larger than 64 MiB.
    """
    check_at_least(1, per_shard=per_shard)
    part = dst.with_name(dst.name + ".part")
    for folder in (dst, part):
        if folder.exists():
            left = " (left by an interrupted run)" if folder == part else ""
            raise ConfigError(f"{folder} exists{left}: nothing is overwritten. Remove it or give another DST")
    parts, class_names = ImageFolder(str(src), labeled=labeled).given()
    part.mkdir(parents=True)
    for split, (paths, labels) in parts.items():
        order = np.random.RandomState(SPLIT_SEED).permutation(len(paths))
        for number, start in enumerate(range(0, len(paths), per_shard)):
            name, end = f"{split}-{number:06d}.tar", min(start + per_shard, len(paths))
            with tarfile.open(part / name, "w", format=tarfile.USTAR_FORMAT) as tar:
                for position in range(start, end):
                    path, label = paths[order[position]], labels[order[position]]
                    ending = os.fsdecode(os.path.splitext(path)[1]).lower()
                    _add(tar, f"{position:09d}{ending or NO_ENDING}", _content(path))
                    if label >= 0:
                        _add(tar, f"{position:09d}.cls", str(label).encode())
            print(f"{name}: {end} of {len(paths)} images of {split}", flush=True)
    index = index_folder(part)
    if class_names:
        index.class_names = class_names
    write_index(index, part)
    part.rename(dst)


def _content(path: bytes) -> bytes:
    size = os.path.getsize(path)
    if not 0 < size <= MAX_MEMBER:
        raise DataFileError(f"{os.fsdecode(path)} has {size} bytes, expected 1 to {MAX_MEMBER}: remove it")
    with open(path, "rb") as file:
        return file.read()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and no owner: the same files give identical shards
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.images.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", type=Path, nargs="?", help="folder of images")
    parser.add_argument("dst", type=Path, nargs="?", help="folder to create")
    parser.add_argument(
        "--per_shard", type=int, default=10_000, help="images in a shard (default %(default)s)"
    )
    parser.add_argument("--unlabeled", action="store_true", help="folders are not classes")
    parser.add_argument("--index", type=Path, metavar="DIR", help="index the shards in DIR")
    args = parser.parse_args()
    if (args.index is None) == (args.dst is None):
        parser.error("give SRC and DST, or --index DIR")
    try:
        if args.index is None:
            make_shards(args.src, args.dst, args.per_shard, not args.unlabeled)
        else:
            write_index(index_folder(args.index, lambda text: print(text, flush=True)), args.index)
    except (ConfigError, DataFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
