"""Images per second of ``Shards`` beside ``ImageFolder`` and webdataset, from the same JPEGs on a local disk,
in one run.

    pip install -e '.[bench]'
    python benchmarks/shards.py --folder DIR [--images 2000] [--size 256] [--workers 0 2] [--rounds 5]

Makes a folder of JPEGs and shards of it in DIR, and removes them. All three decode and crop with this
project's ``read_image``, so what differs is where bytes come from and in which order: ``ImageFolder`` opens a
file per image, ``Shards`` reads each sample at its place, in an exact shuffle, webdataset reads shards from
end to end and shuffles in a buffer of 1,000. One epoch each in every round, by turns, in batches of 64; the
clock starts with the first batch, so starting workers is not counted. Medians and ranges over the rounds are
printed. The files were written a moment ago and lie in memory: what a slow disk or a network file system adds
is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, median_and_range, not_run, ratios
from datamodules.base import keep_batch
from datamodules.images.decode import read_image
from datamodules.images.folder import ImageFolder
from datamodules.images.pack import make_shards
from datamodules.images.shards import Shards

BATCH, CROP = 64, 224


def write_images(folder: Path, n: int, size: int) -> None:
    """JPEGs of smooth noise in ten classes, as large on the disk as photographs of that size are."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
        target = folder / f"class{i % 10}"
        target.mkdir(parents=True, exist_ok=True)
        coarse.resize((size, size + i % 2), Image.Resampling.BICUBIC).save(
            target / f"{i:06d}.jpg", quality=85
        )


def seconds(batches: Iterable[Any]) -> tuple[int, float]:
    """Images after the first batch, and the time they took."""
    iterator = iter(batches)
    next(iterator)
    start, images = time.perf_counter(), 0
    for batch in iterator:
        images += len(batch["input"])
    return images, time.perf_counter() - start


def indexed(data: ImageFolder) -> Callable[[int], tuple[int, float]]:
    dataset = data.dataset("train")

    def epoch(workers: int) -> tuple[int, float]:
        loader = DataLoader(
            dataset,
            BATCH,
            shuffle=True,
            num_workers=workers,
            collate_fn=keep_batch,
            generator=torch.Generator(),
            drop_last=True,
        )
        return seconds(loader)

    return epoch


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    image = read_image(b"", CROP, 3, CROP * 8 // 7, 0, sample["jpg"])
    return {"input": image, "label": int(sample["cls"])}


def stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    images = torch.from_numpy(np.stack([sample["input"] for sample in samples])).permute(0, 3, 1, 2)
    return {"input": images, "label": torch.tensor([sample["label"] for sample in samples])}


def streamed(shards: list[str]) -> Callable[[int], tuple[int, float]]:
    import webdataset

    def epoch(workers: int) -> tuple[int, float]:
        data = (
            webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
            .shuffle(1000)
            .map(decoded)
        )
        batches = data.batched(BATCH, collation_fn=stacked, partial=False)
        return seconds(DataLoader(batches, batch_size=None, num_workers=workers))

    return epoch


def images_per_second(epoch: Callable[[int], tuple[int, float]], workers: int) -> float:
    images, duration = epoch(workers)
    return images / duration


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where images and shards are made, and removed again"
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256, help="of the images, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.images < 2 * BATCH:
        parser.error(f"--images must be at least {2 * BATCH}, two batches, got {args.images}")
    if importlib.util.find_spec("webdataset") is None:
        return not_run("not run: webdataset is not installed: pip install -e '.[bench]'")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, made = Path(name) / "images", Path(name) / "shards"
        write_images(source / "train", args.images, args.size)
        write_images(source / "val", 40, args.size)
        with contextlib.redirect_stdout(io.StringIO()):
            make_shards(source, made, per_shard=max(1, args.images // 8))
        shards = sorted(made.glob("train-*.tar"))
        megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
        print(
            f"{args.images} JPEGs of {args.size} pixels, {megabytes:.0f} MB in {len(shards)} shards, "
            f"{args.rounds} rounds"
        )
        options: dict[str, Any] = {"image_size": CROP, "in_memory": False}
        contestants = {
            "ImageFolder": indexed(ImageFolder(str(source), **options)),
            "Shards": indexed(Shards(str(made), **options)),
            "webdataset": streamed([str(shard) for shard in shards]),
        }
        print("| | workers | images/s, median (range) | of ImageFolder's, median of the rounds |")
        print("|---|---|---|---|")
        for workers in args.workers:
            runs = {name: partial(images_per_second, epoch, workers) for name, epoch in contestants.items()}
            speeds = interleave(runs, args.rounds)
            for name, values in speeds.items():
                ratio = statistics.median(ratios(values, speeds["ImageFolder"]))
                print(f"| {name} | {workers} | {median_and_range(values)} | {ratio:.2f} |")

    return 0


if __name__ == "__main__":
    sys.exit(main())
