"""Augmented views for a whole batch, with random parameters per sample.

A transform works in two steps. ``draw`` draws every random number for the whole batch from one generator;
``forward`` is a deterministic function of images and drawn parameters. So the views are the same whether a
batch is processed in one piece (GPU) or in cache-sized chunks (CPU, where it is up to three times faster),
and a test can pass the same parameters to torchvision.

Each operation is a pure function of images (B, C, H, W) in [0, 1] and per-sample parameters, equal to
torchvision's operation of that name. One thing differs on purpose: torchvision's ``ColorJitter`` shuffles its
four operations and clamps after each one; here the order is hue, brightness, contrast, saturation, with one
clamp at the end. The difference is smaller than the one between two of torchvision's own orders.

On CUDA nothing here waits for the device: no ``.item()``, no boolean indexing, no copy from the host.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.checks import check, check_at_least, check_one_of, check_within
from datamodules.errors import ConfigError
from datamodules.transforms.base import BatchTransform, _between
from datamodules.transforms.boxes import TRIES, Box, random_box, random_boxes
from datamodules.transforms.functional import (
    _on_subset,
    adjust_color,
    adjust_hue,
    crop_resize,
    gaussian_blur,
    horizontal_flip,
    rotate,
    solarize,
)

NUMBERS = 2 * TRIES + 3
"""Number of uniform numbers for the geometry of a view."""

# The value of each parameter that changes nothing: lets two views with different operations share one call.
NEUTRAL = {
    "flip": False,
    "angle": 0.0,
    "hue": 0.0,
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "gray": False,
    "sigma": 0.0,
    "threshold": math.inf,
    "noise": 0.0,
}


class View(BatchTransform):
    """One augmented view of each image.

    In this order: crop, flip, rotation, hue, brightness, contrast, saturation, grayscale, blur, solarization,
    noise. An option at 0 disables its operation. With one channel, hue, saturation and grayscale do nothing.
    The random parameters follow torchvision's distributions (RandomResizedCrop, ColorJitter under
    RandomApply, GaussianBlur).

    Args:
        size: side of the square view, pixels.
        crop_scale: range of the crop's share of the image area, in (0, 1]; None = the whole image, resized.
        crop_ratio: range of the crop's width / height, drawn log-uniformly.
        interpolation: ``bilinear`` or ``bicubic``, antialiased.
        flip_p: probability of a horizontal flip.
        rotation: largest angle in degrees, either way, drawn uniformly; corners are filled with zeros.
        brightness: factor drawn from U(max(0, 1 - b), 1 + b).
        contrast: as brightness.
        saturation: as brightness.
        hue: turns, drawn from U(-h, h), h <= 0.5.
        jitter_p: probability of brightness, contrast, saturation and hue, applied together.
        grayscale_p: probability of grayscale.
        blur_p: probability of Gaussian blur.
        blur_kernel: odd number of taps. 13 taps cover 3 sigma of the largest default sigma.
        blur_sigma: range of the blur's standard deviation in pixels, drawn uniformly.
        solarize_p: probability of solarization.
        solarize_threshold: values in [0, 1] at or above it are inverted.
        noise_std: standard deviation of Gaussian noise added to every value.

    Raises:
        ValueError: an option is out of range.
    """

    dimensions = 4

    def __init__(
        self,
        size: int,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
        flip_p: float = 0.5,
        rotation: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        jitter_p: float = 0.8,
        grayscale_p: float = 0.0,
        blur_p: float = 0.0,
        blur_kernel: int = 13,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize_p: float = 0.0,
        solarize_threshold: float = 0.5,
        noise_std: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, size=size)
        if crop_scale is not None:
            check(0 < crop_scale[0] <= crop_scale[1] <= 1, "crop_scale", "0 < low <= high <= 1", crop_scale)
        check(0 < crop_ratio[0] <= crop_ratio[1], "crop_ratio", "0 < low <= high", crop_ratio)
        check_one_of(("bilinear", "bicubic"), interpolation=interpolation)
        check_within(
            0,
            1,
            flip_p=flip_p,
            jitter_p=jitter_p,
            grayscale_p=grayscale_p,
            blur_p=blur_p,
            solarize_p=solarize_p,
            solarize_threshold=solarize_threshold,
        )
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        check_within(0, math.inf, "[)", **strengths, noise_std=noise_std)
        check(0 <= rotation <= 180, "rotation", "in [0, 180] degrees", rotation)
        check(0 <= hue <= 0.5, "hue", "in [0, 0.5] turns", hue)
        check(0 < blur_sigma[0] <= blur_sigma[1], "blur_sigma", "0 < low <= high", blur_sigma)
        if blur_p > 0:
            expected = f"odd and below {2 * size} (half of it is reflected at the border of {size} pixels)"
            check(blur_kernel % 2 == 1 and 0 < blur_kernel < 2 * size, "blur_kernel", expected, blur_kernel)
        self.size = size
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.interpolation = interpolation
        self.flip_p = flip_p
        self.rotation = rotation
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.jitter_p = jitter_p
        self.grayscale_p = grayscale_p
        self.blur_p = blur_p
        self.blur_kernel = blur_kernel
        self.blur_sigma = blur_sigma
        self.solarize_p = solarize_p
        self.solarize_threshold = solarize_threshold
        self.noise_std = noise_std

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Draw the parameters for the whole batch, only for the operations that this view has."""
        batch, channels, height, width = images.shape
        if channels not in (1, 3) and (
            self.brightness or self.contrast or self.saturation or self.hue or self.grayscale_p
        ):
            raise ConfigError(f"color operations need images of 1 or 3 channels, got {channels}")
        # One call with a fixed layout: changing one option leaves the numbers of all the others unchanged.
        uniform = torch.rand(batch, 2 * TRIES + 13, generator=generator, device=images.device)
        place, rest = uniform.split((2 * TRIES + 2, 11), 1)
        (flip, angle, jitter, bright, contrast, saturate, hue, gray, blur, sigma, solar) = rest.unbind(1)

        params: dict[str, Tensor] = {}
        if self.crop_scale is not None:
            params["box"] = random_boxes(place, height, width, self.crop_scale, self.crop_ratio)
        if self.flip_p:
            params["flip"] = flip < self.flip_p
        if self.rotation:
            params["angle"] = _between(angle, -self.rotation, self.rotation)
        jittered = jitter < self.jitter_p
        for name, number, strength in (
            ("brightness", bright, self.brightness),
            ("contrast", contrast, self.contrast),
            ("saturation", saturate, self.saturation),
        ):
            if strength:
                params[name] = torch.where(
                    jittered, _between(number, max(0.0, 1 - strength), 1 + strength), 1.0
                )
        if self.hue:
            params["hue"] = torch.where(jittered, _between(hue, -self.hue, self.hue), 0.0)
        if self.grayscale_p:
            params["gray"] = gray < self.grayscale_p
        if self.blur_p:
            params["sigma"] = torch.where(blur < self.blur_p, _between(sigma, *self.blur_sigma), 0.0)
        if self.solarize_p:
            params["threshold"] = torch.where(solar < self.solarize_p, self.solarize_threshold, math.inf)
        if self.noise_std:
            shape = (batch, channels, self.size, self.size)
            params["noise"] = torch.randn(shape, generator=generator, device=images.device) * self.noise_std
        return params

    def geometry(self, numbers: Sequence[float], height: int, width: int) -> tuple[Box | None, bool]:
        """The geometric half for one image of any size: where to cut, and whether to flip.

        Args:
            numbers: ``NUMBERS`` uniform ones in [0, 1).
            height, width: of the image, pixels.

        Returns:
            Top, left, height, width in pixels, or None for the whole image; True = flip.
        """
        *place, flip = numbers
        box = None
        if self.crop_scale is not None:
            box = random_box(place, height, width, self.crop_scale, self.crop_ratio)
        return box, flip < self.flip_p

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"views": [(B, C, size, size)]} in [0, 1]."""
        return {"views": [self.render(images, params)]}

    def render(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The view itself: images (B, C, H, W) and drawn parameters -> (B, C, size, size), in [0, 1].

        With the parameter ``crop`` (B, C, size, size) uint8, the geometry has already been applied, and
        ``images`` is not used.
        """
        view = images
        if "crop" in params:
            view = params["crop"].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        flip = params.get("flip")
        if "box" in params:
            view = crop_resize(view, params["box"], self.size, self.interpolation, flip)
        else:
            if view.shape[2:] != (self.size, self.size):
                view = F.interpolate(view, (self.size, self.size), mode=self.interpolation, antialias=True)
            if flip is not None:
                view = horizontal_flip(view, flip)
        if self.interpolation == "bicubic":
            view = view.clamp(0, 1)
        if "angle" in params:
            view = rotate(view, params["angle"])
        if "hue" in params and view.shape[1] == 3:
            view = adjust_hue(view, params["hue"])
        linear = {
            name: params[name] for name in ("brightness", "contrast", "saturation", "gray") if name in params
        }
        if linear:
            view = adjust_color(view, **linear)
        if view is images and ("sigma" in params or "threshold" in params):
            view = view.clone()  # on a CPU they work in place
        if "sigma" in params:
            sigma = params["sigma"]
            view = _on_subset(view, sigma > 0, gaussian_blur, sigma, self.blur_kernel)
        if "threshold" in params:
            threshold = params["threshold"]
            view = _on_subset(view, threshold < math.inf, solarize, threshold)
        if "noise" in params:
            view = (view + params["noise"]).clamp_(0, 1)
        return view


class Views(BatchTransform, ABC):
    """Several views of each image, each with its own random parameters.

    Args:
        views: the views in output order; global (large) ones first.
    """

    dimensions = 4

    views: Sequence[View]

    def __init__(self, *views: View) -> None:
        super().__init__()
        self.views = nn.ModuleList(views)  # type: ignore[assignment]

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Parameters of all views, named ``<view index>.<parameter>``."""
        return {
            f"{index}.{name}": value
            for index, view in enumerate(self.views)
            for name, value in view.draw(images, generator).items()
        }

    def sizes(self) -> list[int]:
        """Sides of the views, each once, in the order of the views."""
        return list(dict.fromkeys(view.size for view in self.views))

    def with_crops(self, params: dict[str, Tensor], crops: Sequence[Tensor]) -> dict[str, Tensor]:
        """Drawn parameters whose geometry has been applied to the full images (``ViewCrops``).

        Args:
            params: of ``draw``.
            crops: for each of ``sizes()`` the crops of its views, (B, V, C, size, size) uint8.
        """
        kept = {name: value for name, value in params.items() if not name.endswith((".box", ".flip"))}
        cut = {size: iter(group.unbind(1)) for size, group in zip(self.sizes(), crops, strict=True)}
        return {**kept, **{f"{i}.crop": next(cut[view.size]) for i, view in enumerate(self.views)}}

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"views": [(B, C, size, size), ...]} in [0, 1]."""
        split: list[dict[str, Tensor]] = [{} for _ in self.views]
        for name, value in params.items():
            index, name = name.split(".")
            split[int(index)][name] = value
        if images.device.type == "cpu":
            return {"views": [view.render(images, own) for view, own in zip(self.views, split, strict=True)]}
        return {"views": self._render_together(images, split)}

    def _render_together(self, images: Tensor, params: list[dict[str, Tensor]]) -> list[Tensor]:
        """Render all views of a size in one call: GPU time depends on the number of calls, not their
        width.
        """
        groups: dict[tuple, list[int]] = {}
        for index, view in enumerate(self.views):
            key = (view.size, view.interpolation, view.blur_kernel, view.crop_scale is None)
            groups.setdefault(key, []).append(index)
        output: list[Tensor] = [images] * len(self.views)
        for members in groups.values():
            names = {name: value for index in members for name, value in params[index].items()}
            joined = {
                name: torch.cat(
                    [
                        params[index][name] if name in params[index] else torch.full_like(like, NEUTRAL[name])
                        for index in members
                    ]
                )
                for name, like in names.items()
            }
            repeated = images if "crop" in joined else images.repeat(len(members), 1, 1, 1)
            together = self.views[members[0]].render(repeated, joined)
            for index, rendered in zip(members, together.chunk(len(members)), strict=True):
                output[index] = rendered
        return output


class TwoViews(Views):
    """Two views of each image.

    Args:
        view1, view2: may differ (BYOL blurs the first and solarizes the second).
    """

    def __init__(self, view1: View, view2: View) -> None:
        super().__init__(view1, view2)


class MultiCrop(Views):
    """Two or more global views and several smaller local ones (Caron et al. 2020, https://arxiv.org/abs/2006.09882).

    Args:
        global_view1, global_view2: the large crops, first in the list.
        local_view: recipe of the small crops.
        num_local: number of local views, >= 0.
        num_global: number of global views, >= 2; all but the first are made by ``global_view2``.
    """

    def __init__(
        self, global_view1: View, global_view2: View, local_view: View, num_local: int, num_global: int = 2
    ) -> None:
        check_at_least(0, num_local=num_local)
        check_at_least(2, num_global=num_global)
        super().__init__(global_view1, *[global_view2] * (num_global - 1), *[local_view] * num_local)
