"""Accuracy of a frozen linear probe on damaged images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from datamodules.base import SSLDataModule
from datamodules.images.module import ImageDataModule
from datamodules.seeding import mix_seed
from datamodules.transforms.functional import gaussian_blur
from evaluation.accuracy import top1
from evaluation.features import extract_features
from evaluation.measures.base import Measure
from evaluation.probes.linear import LinearClassifier, select_linear_probe
from runtime.discovery import first_paragraph
from sslmodules.base import SSLModule

# ---- corruptions: images (B, C, H, W) in [0, 1] to the same ------------------------------------------------


def noise(images: Tensor, strength: float) -> Tensor:
    """Normal noise with this standard deviation, the same for all batches of a shape."""
    generator = torch.Generator(images.device).manual_seed(mix_seed(7, round(1e6 * strength)))
    drawn = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + strength * drawn).clamp(0, 1)


def blur(images: Tensor, strength: float) -> Tensor:
    """Gaussian blur with a standard deviation of this share of the side."""
    side = min(images.shape[2:])
    sigma = strength * side
    radius = min(math.ceil(3 * sigma), side // 2 - 1)
    return gaussian_blur(images, torch.full((len(images),), sigma, device=images.device), 2 * radius + 1)


def contrast(images: Tensor, strength: float) -> Tensor:
    """Contrast reduced to this share, around each image's mean."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * strength + mean


def brightness(images: Tensor, strength: float) -> Tensor:
    """Brightness increased by this much."""
    return (images + strength).clamp(0, 1)


def pixelate(images: Tensor, strength: float) -> Tensor:
    """Reduced to this share of the side, then enlarged again without smoothing."""
    height, width = images.shape[2:]
    small = (max(1, round(height * strength)), max(1, round(width * strength)))
    return F.interpolate(F.interpolate(images, size=small, mode="area"), size=(height, width), mode="nearest")


def jpeg(images: Tensor, strength: float) -> Tensor:
    """Stored as a JPEG of this quality (1 to 100)."""
    pixels = (images * 255).round().to(torch.uint8).cpu()
    stored = [decode_jpeg(encode_jpeg(image, int(strength))) for image in pixels]
    return torch.stack(stored).to(images.device, images.dtype) / 255


STRENGTHS: dict[Callable[[Tensor, float], Tensor], tuple[float, ...]] = {
    noise: (0.08, 0.12, 0.18, 0.26, 0.38),
    blur: (0.03, 0.05, 0.07, 0.1, 0.14),
    contrast: (0.4, 0.3, 0.2, 0.1, 0.05),
    brightness: (0.1, 0.2, 0.3, 0.4, 0.5),
    pixelate: (0.6, 0.5, 0.4, 0.3, 0.25),
    jpeg: (25, 18, 15, 10, 7),
}
"""Strengths of Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261), except for blur, which they
define in pixels, independently of the image size.
"""

# ---- the measure -------------------------------------------------------------------------------------------


class Robustness(Measure):
    """Top-1 on damaged test images of linear probes fitted to clean features."""

    name = "robustness"
    by_name = True

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return isinstance(data, ImageDataModule) and data.num_classes is not None

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        """Accuracies of the method and the raw input: ``clean``, ``mean``, and by corruption and strength."""
        assert isinstance(data, ImageDataModule)
        encoders = {"pretrained": module.embed, **data.baselines()}
        bank, val = (extract_features(encoders, data, split, device) for split in ("bank", "val"))
        probes = {e: select_linear_probe(*bank[e], *val[e], data.num_classes or 0)[0] for e in encoders}
        counted = _right(encoders, probes, data, device)
        results: dict[str, Any] = {
            "strengths": {damage.__name__: list(levels) for damage, levels in STRENGTHS.items()},
            "what": {damage.__name__: first_paragraph(damage.__doc__) for damage in STRENGTHS},
        }
        for encoder, scores in counted.items():
            clean = scores.pop("clean")[0]
            every = [score for levels in scores.values() for score in levels]
            results[encoder] = {"clean": clean, "mean": sum(every) / len(every), **scores}
        return results

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        row = values["pretrained"]
        cells = {name: f"{sum(row[name]) / len(row[name]):.3f}" for name in values["strengths"]}
        title = "damaged test images: top-1 of the linear probe, mean of five strengths"
        return title, {"clean": f"{row['clean']:.3f}", **cells, "mean": f"{row['mean']:.3f}"}

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        return {"robustness_top1": values["pretrained"]["mean"]}


@torch.no_grad()
def _right(
    encoders: dict[str, Callable[[Tensor], Tensor]],
    probes: dict[str, LinearClassifier],
    data: ImageDataModule,
    device: torch.device,
) -> dict[str, dict[str, list[float]]]:
    """Top-1 at each strength, by encoder and corruption."""
    predicted: dict[tuple[str, str, int], list[Tensor]] = {}
    labels = []
    for raw in data.eval_dataloader(data.dataset("test")):
        images = data.decode(raw["input"].to(device))
        labels.append(raw["label"].to(device))
        damaged = {("clean", 0): images}
        for damage, levels in STRENGTHS.items():
            damaged |= {(damage.__name__, i): damage(images, level) for i, level in enumerate(levels)}
        for (name, i), x in damaged.items():
            for encoder, encode in encoders.items():
                found = probes[encoder].predict(encode(data.standardize(x)).flatten(1))
                predicted.setdefault((encoder, name, i), []).append(found)
    true = torch.cat(labels)
    known = true >= 0
    scores: dict[str, dict[str, list[float]]] = {}
    for (encoder, name, _), parts in predicted.items():
        accuracy = top1(torch.cat(parts)[known], true[known])
        scores.setdefault(encoder, {}).setdefault(name, []).append(accuracy)
    return scores
