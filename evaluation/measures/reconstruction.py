"""PSNR of predicted hidden pixels and of denoising, next to simple baselines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch, SSLDataModule
from datamodules.checks import check
from datamodules.seeding import mix_seed
from evaluation.measures.base import Measure
from runtime.optional import offers
from sslmodules.base import SSLModule


class Reconstruction(Measure):
    """PSNR of a method's prediction of pixels that the views hide."""

    name = "reconstruction"

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return offers(module, "reconstruct") and "mask" in _views_of_one(data)

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        return reconstruction_psnr(module, data, device)

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        title = "hidden region of the test images: PSNR in dB"
        return title, {name: f"{value:.2f}" for name, value in values["psnr_hidden"].items()}

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        return {f"psnr_hidden_{name}": value for name, value in values["psnr_hidden"].items()}


class Denoising(Measure):
    """PSNR of a method's output for images to which the views add noise."""

    name = "denoising"

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        added = _views_of_one(data) if offers(module, "reconstruct") else {}
        return "corrupted" in added and "mask" not in added

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        return denoising_psnr(module, data, device)

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        title = "test images without their noise: PSNR in dB"
        return title, {name: f"{value:.2f}" for name, value in values["psnr"].items()}


def _views_of_one(data: SSLDataModule) -> Batch:
    """A batch of one test sample with the keys that the views add."""
    raw = data.dataset("test").__getitems__([0])  # type: ignore[attr-defined]
    return data.transform(raw, torch.Generator(raw["input"].device).manual_seed(0))


def psnr(squared_error: Tensor | float, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error: 10 log10(peak^2 / mse).

    Hand-written, because ``torchmetrics`` computes it for whole images only and in float32. Here it can be
    that of a region, in float64.

    Args:
        squared_error: mean squared error.
        peak: the values are in [0, ``peak``].
    """
    mse = torch.as_tensor(squared_error, dtype=torch.float64)
    return float(10 * torch.log10(peak**2 / mse))


@torch.no_grad()
def reconstruction_psnr(module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
    """PSNR of the hidden pixels of the test split, from the mean squared error over all of them.

    Args:
        module: in eval mode, with ``reconstruct(batch) -> (B, C, H, W)``.
        data: set up, with ``views`` that add a ``mask``; masks are drawn from a fixed seed.
        device: where ``module`` is.

    Returns:
        ``{"psnr_hidden": {"model": dB, "mean_image": dB, "best_constant": dB}, ...}``: the model's
        prediction, clamped to [0, 1]; the mean training image (bank split); and the constant color with the
        smallest error ON THE TEST PIXELS THEMSELVES, an upper bound for any constant prediction.
    """
    mean_image, count = torch.zeros((), device=device, dtype=torch.float64), 0
    for raw in data.eval_dataloader(data.dataset("bank")):
        decoded = data.decode(raw["input"].to(device)).double()
        mean_image, count = mean_image + decoded.sum(0), count + len(decoded)
    mean_image = mean_image / count  # (C, H, W)

    model_error = image_error = total = square = hidden_count = torch.zeros(
        (), device=device, dtype=torch.float64
    )
    for index, raw in enumerate(data.eval_dataloader(data.dataset("test"))):
        generator = torch.Generator(device).manual_seed(mix_seed(0, index))
        batch = data.transform({"input": raw["input"].to(device)}, generator)
        x = data.decode(raw["input"].to(device)).double()
        hidden = batch["mask"].expand_as(x)
        prediction = data.unstandardize(module.reconstruct(batch)).double()
        model_error = model_error + ((prediction - x).square() * hidden).sum()
        image_error = image_error + ((mean_image - x).square() * hidden).sum()
        per_channel = (0, 2, 3)
        total = total + (x * hidden).sum(per_channel)  # (C,)
        square = square + (x.square() * hidden).sum(per_channel)
        hidden_count = hidden_count + hidden.sum(per_channel)
    n = hidden_count.sum()
    constant_error = (square - total.square() / hidden_count.clamp(min=1)).sum()
    return {
        "psnr_hidden": {
            "model": psnr(model_error / n),
            "mean_image": psnr(image_error / n),
            "best_constant": psnr(constant_error / n),
        },
        "hidden_pixels": int(n),
    }


def median_filter(images: Tensor, size: int = 3) -> Tensor:
    """Replace each value by the median of size x size values around it in its channel; borders are mirrored.
    Args:
        images: (B, C, H, W).
        size: odd side of the window, in pixels.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: ``size`` is not odd and positive.
    """
    check(size >= 1 and size % 2 == 1, "size", "odd and positive", size)
    padded = F.pad(images, [size // 2] * 4, mode="reflect")
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (B, C, H, W, size, size)
    return windows.flatten(4).median(-1).values


@torch.no_grad()
def denoising_psnr(module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
    """PSNR against the clean images of the test split, from the mean squared error over all pixels.

    Args:
        module: in eval mode, with ``reconstruct(batch) -> (B, C, H, W)``.
        data: set up, with ``views`` that add ``corrupted``; the noise is drawn from a fixed seed.
        device: where ``module`` is.

    Returns:
        ``{"psnr": {"model": dB, "noisy": dB, "median_filter": dB}, "pixels": count}``: of the model's output,
        clamped to [0, 1]; of the noisy image itself; and of the noisy image after a 3x3 median filter.
    """
    errors: dict[str, Tensor] = {}
    count = 0
    for index, raw in enumerate(data.eval_dataloader(data.dataset("test"))):
        x = raw["input"].to(device)
        batch = data.transform({"input": x}, torch.Generator(device).manual_seed(mix_seed(0, index)))
        clean = data.decode(x).double()
        noisy = data.unstandardize(batch["corrupted"])
        outputs = {
            "model": data.unstandardize(module.reconstruct(batch)),
            "noisy": noisy,
            "median_filter": median_filter(noisy),
        }
        for name, output in outputs.items():
            errors[name] = errors.get(name, 0) + (output.double() - clean).square().sum()
        count += clean.numel()
    return {"psnr": {name: psnr(error / count) for name, error in errors.items()}, "pixels": count}
