"""Two SimCLR views of each image on one thread: this project beside lightly, torchvision v2 and kornia.

    pip install -e '.[bench]'
    python benchmarks/views.py --sizes 32 96 224 --rounds 7 --json views.json

Everybody gets the same images (as large as the views), the same recipe and the same probabilities: random
resized crop (.08, 1) bilinear, flip .5, color jitter (.4, .4, .4, .1) with p .8, grayscale .2, Gaussian blur
with p .5 and sigma (.1, 2), standardize; and returns two float tensors (B, 3, size, size). The blur has 13
taps at 32 and 96 pixels and 23 at 224, wide enough for sigma 2; lightly blurs with Pillow, which has no
kernel size. lightly and torchvision work on one PIL image after another, as in a Dataset; kornia and this
project on the batch. At 224 pixels this project does what it does with photographs: it cuts, resizes and
flips the views of one image after another, and the rest on the batch. A further row has all of it on the
batch, as with smaller images, which are kept in memory.

The variants take turns within each round, so that a slow moment of the machine hits all of them. On CPU the
time is the CPU time of the one thread, which other processes lengthen less than they lengthen wall time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import device_name, interleave, not_run, summary, wall_seconds
from datamodules.images.folder import ImageFolder
from datamodules.transforms.views import TwoViews, View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
NUM_IMAGES = {32: 256, 96: 128, 224: 32}
TARGETS = {32: {"lightly": 6.0, "kornia": 3.0}, 96: {"lightly": 1.5}, 224: {"lightly": 2.5}}
PACKAGES = ("torch", "torchvision", "lightly", "kornia", "pillow")


def blur_kernel(size: int) -> int:
    """Taps of the Gaussian blur for everybody."""
    return 23 if size == 224 else 13


def make_images(size: int) -> Tensor:
    """Smooth colored images with some texture, uint8 (B, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_IMAGES[size], 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    texture = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + texture).clamp(0, 1) * 255).to(torch.uint8)


def images_in_memory(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """This project: what happens to a batch of uint8 in training, the clean input included."""
    data, generator = make_data(size), torch.Generator(device).manual_seed(0)
    images = images.to(device)
    return lambda: data.transform({"input": images}, generator)["views"]


def photographs(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """This project: what happens to decoded photographs in training, in the workers and on the device."""
    data, generator = make_data(size), torch.Generator(device).manual_seed(0)
    crops = data.view_crops("train")
    assert crops is not None
    decoded = [image.permute(1, 2, 0).contiguous().numpy() for image in images]

    def run() -> list[Tensor]:
        batch = crops(decoded, range(len(decoded)))
        on_device = {"input": batch["input"].to(device), "crops": [cut.to(device) for cut in batch["crops"]]}
        return data.transform(on_device, generator)["views"]

    return run


def make_data(size: int) -> ImageFolder:
    view = View(size, **JITTER, jitter_p=0.8, grayscale_p=0.2, blur_p=0.5, blur_kernel=blur_kernel(size))
    return ImageFolder("unused", image_size=size, mean=MEAN, std=STD, views=TwoViews(view, view))


def ours(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """This project, as it treats images of this size."""
    return (photographs if size == 224 else images_in_memory)(images, size, device)


def lightly(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """lightly's SimCLRTransform at half strength on PIL images, one after another."""
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms.functional import to_pil_image

    transform = SimCLRTransform(input_size=size, cj_strength=0.5, sigmas=(0.1, 2.0))
    originals = [to_pil_image(image) for image in images]
    return lambda: [torch.stack(views) for views in zip(*map(transform, originals), strict=True)]


def torchvision(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """torchvision v2 on PIL images, one after another."""
    from torchvision.transforms import v2
    from torchvision.transforms.functional import to_pil_image

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(**JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(blur_kernel(size), (0.1, 2.0))], 0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    originals = [to_pil_image(image) for image in images]
    return lambda: [torch.stack([transform(original) for original in originals]) for _ in range(2)]


def kornia(images: Tensor, size: int, device: torch.device) -> Callable[[], list[Tensor]]:
    """kornia's AugmentationSequential on the batch, with parameters per sample."""
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(**JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((blur_kernel(size),) * 2, (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
    ).to(device)
    images = images.to(device)
    return lambda: [transform(images.float().div_(255)) for _ in range(2)]


VARIANTS = {"ours": ours, "lightly": lightly, "torchvision": torchvision, "kornia": kornia}


def seconds_of(run: Callable[[], list[Tensor]], device: torch.device) -> float:
    """Seconds of one call: CPU time on CPU, wall time with synchronization on CUDA."""
    if device.type == "cuda":
        return wall_seconds(run, device)
    start = time.process_time()
    run()
    return time.process_time() - start


def benchmark(size: int, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Images per second (median, min, max over the rounds) of each variant."""
    images = make_images(size)
    variants = {**VARIANTS, "ours, in memory": images_in_memory} if size == 224 else VARIANTS
    runs = {name: make(images, size, device) for name, make in variants.items()}
    for name, run in runs.items():  # warm-up, and a check that all of them deliver the same thing
        views = run()
        shapes = [tuple(view.shape) for view in views]
        if shapes != [tuple(images.shape)] * 2 or any(view.dtype != torch.float32 for view in views):
            raise RuntimeError(f"{name} returned {shapes} of {views[0].dtype}")
    seconds = interleave({name: partial(seconds_of, run, device) for name, run in runs.items()}, rounds)
    return {name: summary([len(images) / value for value in values]) for name, values in seconds.items()}


def print_size(
    size: int, speed: dict[str, dict[str, float]], ratios: dict[str, float], targets: bool
) -> None:
    """The table of one image size."""
    print(f"\n{size} px, images/s (two views each)   median      min      max   ours is")
    for name, value in speed.items():
        ratio = f"{ratios[name]:.2f}x" if name in ratios else ""
        print(f"  {name:32s} {value['median']:8.0f} {value['min']:8.0f} {value['max']:8.0f}   {ratio}")
    if targets:
        for name, target in TARGETS[size].items():
            verdict = "PASS" if ratios[name] >= target else "MISS"
            print(f"  {verdict}: {ratios[name]:.2f}x {name}, target {target}x")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", choices=sorted(NUM_IMAGES), default=sorted(NUM_IMAGES)
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    return args


def main() -> int:
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        return not_run("not run: no GPU")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return not_run(f"not run: {package} is not installed: pip install -e '.[bench]'")

    torch.set_num_threads(1)
    device = torch.device(args.device)
    hardware = device_name(device, f"{platform.machine()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{hardware}; one thread; {args.rounds} rounds; load average before {os.getloadavg()[0]:.2f}")
    report: dict = {"versions": versions, "hardware": hardware, "rounds": args.rounds, "sizes": {}}
    for size in args.sizes:
        speed = benchmark(size, args.rounds, device)
        ratios = {
            name: speed["ours"]["median"] / value["median"]
            for name, value in speed.items()
            if not name.startswith("ours")
        }
        print_size(size, speed, ratios, targets=device.type == "cpu")  # which are for one CPU thread
        report["sizes"][size] = {"images_per_second": speed, "ratios": ratios}
    report["load_average"] = os.getloadavg()[0]
    print(f"\nload average after {report['load_average']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
