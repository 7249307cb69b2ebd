"""From JPEG files to standardized views: this project beside torchvision v2, lightly and kornia; and whether
the crops are the same augmentation.

    pip install -e '.[bench]'
    python benchmarks/files.py DIR [--images 125] [--rounds 5] [--workers 0 2] [--json files.json]

DIR holds photographs, in folders or not; the first ones by name are read. Everybody reads the same files with
the same recipes: SimCLR's two views of 224 pixels, and DINO's two of 224 and eight of 96. torchvision and
lightly work on one image after another, decoded by Pillow. kornia works on batches, for which Pillow resizes
the shorter side to 256 pixels and cuts the central square, so its views are less sharp and see less of the
photograph. DALI takes part if it is installed. lightly blurs with Pillow, which has no kernel size; the
others use this project's.

``in workers`` is the part that stays in data-loading workers when a GPU does the colors: from the file to
uint8 crops.

The variants take turns within each round, so that a slow moment of the machine hits all of them. Without
workers the time is the CPU time of the one thread; with workers it is wall time of a DataLoader, begun with
its first batch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parts.rounds import not_run
from datamodules.base import keep_batch
from datamodules.images.decode import decode_image
from datamodules.images.folder import FolderDataset, ImageFolder
from datamodules.transforms.recipes import DINOViews, SimCLRViews
from datamodules.transforms.views import View, Views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 25
HAS_DALI = (
    importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
)
RECIPES: dict[str, Views] = {"SimCLR, 2 x 224": SimCLRViews(224), "DINO, 2 x 224 + 8 x 96": DINOViews(224)}
PACKAGES = ("torch", "torchvision", "lightly", "kornia", "pillow", "simplejpeg")

Fetch = Callable[[Sequence[int]], Any]


class Fetched(Dataset):
    """Batches by index, for a DataLoader."""

    def __init__(self, length: int, fetch: Fetch) -> None:
        self.length, self.fetch = length, fetch

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> Any:
        return self.fetch(indices)


def opened(path: str) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


# ---- contestants: indices -> list of float views (B, 3, s, s), standardized --------------------------------


def torchvision_view(view: View) -> v2.Compose:
    mode = v2.InterpolationMode(view.interpolation)
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    return v2.Compose(
        [
            v2.RandomResizedCrop(view.size, view.crop_scale, view.crop_ratio, mode),
            v2.RandomHorizontalFlip(view.flip_p),
            v2.RandomApply([jitter], view.jitter_p),
            v2.RandomGrayscale(view.grayscale_p),
            v2.RandomApply([v2.GaussianBlur(view.blur_kernel, view.blur_sigma)], view.blur_p),
            v2.RandomSolarize(128, view.solarize_p),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def by_image(files: list[str], transform: Callable[[Image.Image], list[Tensor]]) -> Fetch:
    def fetch(indices: Sequence[int]) -> list[Tensor]:
        samples = [transform(opened(files[i])) for i in indices]
        return [torch.stack(views) for views in zip(*samples, strict=True)]

    return fetch


def torchvision(files: list[str], views: Views) -> Fetch:
    transforms = [torchvision_view(view) for view in views.views]
    return by_image(files, lambda image: [transform(image) for transform in transforms])


def lightly(files: list[str], views: Views) -> Fetch:
    from lightly.transforms import DINOTransform, SimCLRTransform

    sigmas = (0.1, 2.0)
    if len(views.views) == 2:
        return by_image(files, SimCLRTransform(input_size=224, cj_strength=1.0, sigmas=sigmas))
    return by_image(files, DINOTransform(sigmas=sigmas, n_local_views=8))


def kornia(files: list[str], views: Views) -> Fetch:
    import kornia.augmentation as K

    def made(view: View) -> Any:
        steps = [
            K.RandomResizedCrop((view.size,) * 2, view.crop_scale, view.crop_ratio, view.interpolation),
            K.RandomHorizontalFlip(p=view.flip_p),
            K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter_p),
            K.RandomGrayscale(p=view.grayscale_p),
            K.RandomGaussianBlur((view.blur_kernel,) * 2, view.blur_sigma, p=view.blur_p),
            K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=view.solarize_p),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        ]
        return K.AugmentationSequential(*steps, data_keys=["input"])

    transforms, square = (
        [made(view) for view in views.views],
        v2.Compose([v2.Resize(256), v2.CenterCrop(256)]),
    )

    def fetch(indices: Sequence[int]) -> list[Tensor]:
        batch = np.stack([np.asarray(square(opened(files[i]))) for i in indices])
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(255).contiguous()
        return [transform(images) for transform in transforms]

    return fetch


def dali(files: list[str], views: Views) -> Fetch:
    """NVIDIA DALI on the CPU with one thread; ``fetch`` gives the next batch, whatever the indices."""
    from nvidia.dali import fn, pipeline_def, types

    interpolations = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}

    def chance(p: float) -> Any:
        return fn.random.coin_flip(probability=p, dtype=types.BOOL)

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, enable_conditionals=True, seed=0)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=files, name="files")
        image = fn.decoders.image(encoded, output_type=types.RGB)
        made = []
        for view in views.views:
            out = fn.random_resized_crop(
                image,
                size=[view.size, view.size],
                random_area=list(view.crop_scale),
                random_aspect_ratio=list(view.crop_ratio),
                interp_type=interpolations[view.interpolation],
            )
            if chance(view.jitter_p):
                factors = {
                    name: fn.random.uniform(range=[1 - strength, 1 + strength])
                    for name in ("brightness", "contrast", "saturation")
                    if (strength := getattr(view, name))
                }
                turn = 360 * view.hue
                out = fn.color_twist(out, hue=fn.random.uniform(range=[-turn, turn]), **factors)
            if chance(view.grayscale_p):
                out = fn.saturation(out, saturation=0.0)
            if chance(view.blur_p):
                sigma = fn.random.uniform(range=list(view.blur_sigma))
                out = fn.gaussian_blur(out, sigma=sigma, window_size=view.blur_kernel)
            mean, std = ([255 * value for value in values] for values in (MEAN, STD))
            flip = fn.random.coin_flip(probability=view.flip_p)
            made.append(fn.crop_mirror_normalize(out, mean=mean, std=std, mirror=flip, dtype=types.FLOAT))
        return tuple(made)

    pipe = pipeline(exec_async=False, exec_pipelined=False)
    pipe.build()

    def fetch(indices: Sequence[int]) -> list[Tensor]:
        return [torch.from_numpy(out.as_array()[: len(indices)]) for out in pipe.run()]

    return fetch


def native(files: list[str], views: Views) -> FolderDataset:
    """What this project's workers do."""
    paths = np.array([os.fsencode(file) for file in files])
    dataset = FolderDataset(paths, np.full(len(files), -1), 224, 3, 256, random_crop=True)
    dataset.crops = ImageFolder("unused", views=views).view_crops("train")
    return dataset


def ours(files: list[str], views: Views) -> Fetch:
    data, dataset = ImageFolder("unused", views=views), native(files, views)
    generator = torch.Generator().manual_seed(0)
    return lambda indices: data.transform(dataset.__getitems__(indices), generator)["views"]


def crops_only(files: list[str], views: Views) -> Fetch:
    return native(files, views).__getitems__


def decoding_by_pillow(files: list[str], views: Views) -> Fetch:
    return lambda indices: [opened(files[i]).size for i in indices]


def decoding(files: list[str], views: Views) -> Fetch:
    return lambda indices: [decode_image(files[i], 3).shape for i in indices]


VARIANTS: dict[str, Callable[[list[str], Views], Fetch]] = {
    "ours": ours,
    "torchvision": torchvision,
    "lightly": lightly,
    "kornia, from 256-pixel squares": kornia,
    "DALI on the CPU, without solarization": dali,
    "ours, in workers": crops_only,
    "Pillow, decoding alone": decoding_by_pillow,
    "ours, decoding alone": decoding,
}


# ---- speed -------------------------------------------------------------------------------------------------


def seconds(fetch: Fetch, images: int, workers: int) -> float:
    """Time per image: of one thread's CPU, or wall time of a DataLoader after its first batch."""
    batches = [range(start, min(start + BATCH, images)) for start in range(0, images, BATCH)]
    if not workers:
        start = time.process_time()
        for batch in batches:
            fetch(batch)
        return (time.process_time() - start) / images
    loader = DataLoader(Fetched(images, fetch), BATCH, num_workers=workers, collate_fn=keep_batch)
    iterator = iter(loader)
    next(iterator)
    start = time.perf_counter()
    left = sum(1 for _ in iterator)
    return (time.perf_counter() - start) / (left * BATCH)


def speeds(files: list[str], views: Views, rounds: int, workers: int) -> dict[str, list[float]]:
    """Images per second of each variant in each round."""
    repeated = files * (4 if workers else 1)  # the first batches of the workers are not counted
    variants = {k: make for k, make in VARIANTS.items() if make is not dali or (HAS_DALI and not workers)}
    runs = {name: make(repeated, views) for name, make in variants.items()}
    expected = [(2, 3, view.size, view.size) for view in views.views]
    for name, fetch in runs.items():  # warm-up, and a check that all of them deliver the same thing
        made = fetch(range(2))
        if "decoding" not in name and "workers" not in name and [v.shape for v in made] != expected:
            raise RuntimeError(f"{name} returned {[tuple(v.shape) for v in made]}")
    result: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, fetch in runs.items():
            result[name].append(1 / seconds(fetch, len(repeated), workers))
    return result


def ratio(one: list[float], other: list[float]) -> str:
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def print_speeds(title: str, result: dict[str, list[float]]) -> None:
    print(f"\n| {title} | images/s, median (range) | ours is, median of the rounds (range) |")
    print("|---|---|---|")
    for name, values in result.items():
        ours_is = "" if "ours" in name or "alone" in name else ratio(result["ours"], values)
        spread = f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
        print(f"| {name} | {spread} | {ours_is} |")
    share = ratio(result["ours, in workers"], result["Pillow, decoding alone"])
    print(f"\nours, in workers / Pillow, decoding alone: {share}")


# ---- the same augmentation ---------------------------------------------------------------------------------


def detail(views: Iterable[Tensor]) -> float:
    """Mean share of a view's energy above half of the highest frequency, relative units."""
    energies = []
    for view in views:
        luma = view.float().mean(0)
        spectrum = torch.fft.rfft2(luma - luma.mean()).abs().square()
        rows = torch.fft.fftfreq(luma.shape[0]).abs()[:, None]
        columns = torch.fft.rfftfreq(luma.shape[1])[None]
        energies.append(float(spectrum[torch.maximum(rows, columns) > 0.25].sum()))
    return statistics.mean(energies)


def overlap(one: Sequence[int], two: Sequence[int]) -> float:
    """Intersection over union of two boxes (top, left, height, width)."""
    sides = [max(0, min(one[k] + one[k + 2], two[k] + two[k + 2]) - max(one[k], two[k])) for k in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


def augmentation(files: list[str], draws: int) -> dict[str, dict[str, Any]]:
    """Share of the photograph, overlap of two crops and detail, of torchvision's crops and of ours."""
    view, transform = View(224), v2.RandomResizedCrop(224)
    crops = ImageFolder("unused", views=Views(view, view)).view_crops("train")
    found: dict[str, dict[str, list[float]]] = {
        name: {"share": [], "overlap": [], "detail": []} for name in ("torchvision", "ours")
    }
    for number, file in enumerate(files):
        image = decode_image(file, 3)
        height, width = image.shape[:2]
        tensor = torch.tensor(image).permute(2, 0, 1)
        for epoch in range(draws):
            drawn = [transform.make_params([tensor]) for _ in range(2)]
            boxes = {"torchvision": [[p[k] for k in ("top", "left", "height", "width")] for p in drawn]}
            numbers = crops._draw(epoch + 1, number)[1]
            boxes["ours"] = [view.geometry(row, height, width)[0] for row in numbers]
            crops.set_epoch(epoch)
            pixels = {"torchvision": [transform.transform(tensor, p) for p in drawn]}
            pixels["ours"] = crops([image], [number])["crops"][0][0]
            for name, two in boxes.items():
                found[name]["share"] += [box[2] * box[3] / (height * width) for box in two]
                found[name]["overlap"].append(overlap(*two))
                found[name]["detail"].append(detail(pixels[name]))
    reference = statistics.mean(found["torchvision"]["detail"])
    return {
        name: {
            "share": np.quantile(values["share"], (0.05, 0.5, 0.95)).tolist(),
            "overlap": statistics.mean(values["overlap"]),
            "detail": statistics.mean(values["detail"]) / reference,
        }
        for name, values in found.items()
    }


def print_augmentation(result: dict[str, dict[str, Any]]) -> None:
    print("\n| two views of 224 pixels | torchvision RandomResizedCrop | this project |")
    print("|---|---|---|")
    shares = [" / ".join(f"{share:.3f}" for share in values["share"]) for values in result.values()]
    print(f"| crop's share of the photograph, quantiles 5, 50, 95 % | {' | '.join(shares)} |")
    details = [f"{values['detail']:.2f}" for values in result.values()]
    overlaps = [f"{values['overlap']:.3f}" for values in result.values()]
    print(f"| energy in high frequencies | {' | '.join(details)} |")
    print(f"| IoU of the two crops | {' | '.join(overlaps)} |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--draws", type=int, default=4, help="pairs of crops of each photograph")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    files = sorted(str(path) for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = files[: args.images]
    if len(files) < BATCH or args.rounds < 1:
        parser.error(f"expected at least {BATCH} .jpg files in DIR and one round, got {len(files)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        return not_run(f"not run: {error.name} is not installed: pip install -e '.[bench]'")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {len(files)} files; {args.rounds} rounds")
    report: dict[str, Any] = {"versions": versions, "augmentation": augmentation(files, args.draws)}
    print_augmentation(report["augmentation"])
    for workers in args.workers:
        for name, views in RECIPES.items():
            result = report[f"{name}, {workers} workers"] = speeds(files, views, args.rounds, workers)
            print_speeds(f"{name}, {f'{workers} workers' if workers else 'one thread'}", result)
    print(f"\nload average after {os.getloadavg()[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
