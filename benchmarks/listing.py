"""How long it takes to list a large folder of images, apart from decoding, and to find the listing again.

    python benchmarks/listing.py --files 200000 --folders 200
    python benchmarks/listing.py --files 1281167 --folders 1000

Makes empty files with names as ImageNet has them, in a temporary folder, and lists them as ``ImageFolder``
does: a plain scan; the listing of a later run, from the cache, after which all folders have been checked; and
the scan after a file was added. Linux still has the folders in memory; on a network disk a scan takes longer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import summary
from datamodules.images.decode import image_endings, is_image
from datamodules.listing import Tree, list_tree
from datamodules.listing_cache import MANY, SETTLED, listed


def make_files(root: Path, files: int, folders: int) -> None:
    """Empty files, spread evenly over folders."""
    for folder in range(folders):
        place = root / f"n{folder:08d}"
        place.mkdir()
        for number in range(folder, files, folders):
            os.close(os.open(place / f"n{folder:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


def show(name: str, seconds: list[float]) -> None:
    value = summary(seconds)
    print(f"| {name} | {value['median']:.2f} s | {value['min']:.2f} to {value['max']:.2f} s |", flush=True)


def timed(work: Callable[[], Tree], files: int) -> float:
    """Seconds of a listing, which must have all files."""
    start = time.perf_counter()
    found = len(work().files)
    seconds = time.perf_counter() - start
    if found != files:
        raise RuntimeError(f"listed {found} files, expected {files}")
    return seconds


def measure(root: Path, args: argparse.Namespace) -> None:
    def cached() -> Tree:
        return listed(str(root), "images", is_image, image_endings())

    def scan() -> Tree:
        return list_tree(str(root), "images", is_image)

    print(f"| {args.files} files in {args.folders} folders | median | range |\n|---|---|---|")
    show("scan", [timed(scan, args.files) for _ in range(args.rounds)])
    time.sleep(SETTLED + 0.5)
    show("scan, and write the listing", [timed(cached, args.files)])
    show("the listing of an earlier run", [timed(cached, args.files) for _ in range(args.rounds)])
    (root / "n00000000" / "new.JPEG").touch()
    show("after a file was added", [timed(cached, args.files + 1)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.files <= MANY or not 1 <= args.folders <= args.files:
        parser.error(f"--files must be above {MANY}, since fewer are not cached, and --folders 1 to --files")
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        root = Path(place) / "images"
        root.mkdir()
        make_files(root, args.files, args.folders)
        measure(root, args)
    print(f"load average {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
