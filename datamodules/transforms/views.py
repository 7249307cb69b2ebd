"""Augmented views, made for a whole batch at once on the device that holds it, with random parameters per sample.

A transform works in two steps. ``draw`` draws every random number for the whole batch from one generator; ``forward``
is a deterministic function of images and drawn parameters. So the views are the same whether a batch is worked through
in one piece (GPU) or in cache-sized chunks (CPU, where it is up to three times faster), and a test can hand the same
parameters to torchvision.

Each operation is a pure function of images (B, C, H, W) in [0, 1] and per-sample parameters, equal to torchvision's
operation of that name. One thing differs on purpose: torchvision's ``ColorJitter`` shuffles its four operations and
clamps after each one; here the order is hue, brightness, contrast, saturation, with one clamp at the end. The
difference is smaller than the one between two of torchvision's own orders.

On CUDA nothing here waits for the device: no ``.item()``, no boolean indexing, no copy from the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LUMA = (0.2989, 0.587, 0.114)  # torchvision's grayscale weights (ITU-R 601-2)
CROP_TRIES = 10  # torchvision's RandomResizedCrop

# The value with which a parameter changes nothing: lets two views with different operations share one call.
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


# ---------------------------------------------------------------------------------------------------------------------
# Operations: pure functions of images and per-sample parameters
# ---------------------------------------------------------------------------------------------------------------------


def crop_resize(images: Tensor, box: Tensor, size: int, interpolation: str = "bilinear", flip: Tensor | None = None) -> Tensor:
    """Cut one box out of each image, resize it, antialiased, and mirror it (torchvision's ``resized_crop``, ``hflip``).

    Args:
        images: (B, C, H, W) float.
        box: (B, 4) int64, pixels: top, left, height, width.
        size: side of the square output, pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        flip: (B,) bool, True = left and right swapped; nearly free here, another pass over the images elsewhere.

    Returns:
        (B, C, size, size). Bicubic overshoots [0, 1] at edges, as torchvision's does on floats.
    """
    height, width = images.shape[-2:]
    if interpolation == "bilinear" and max(height, width) <= size:
        return _crop_by_grid(images, box, size, flip)
    if images.device.type == "cpu" and max(height, width) > 64:
        return _crop_one_by_one(images, box, size, interpolation, flip)
    rows = _resize_matrix(box[:, 0], box[:, 2], height, size, interpolation)  # (B, size, H)
    columns = _resize_matrix(box[:, 1], box[:, 3], width, size, interpolation)  # (B, size, W)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (images @ columns[:, None].transpose(2, 3))


def _crop_by_grid(images: Tensor, box: Tensor, size: int, flip: Tensor | None) -> Tensor:
    """Bilinear crop when no box is larger than the output: then antialiasing is the identity, two taps suffice."""
    batch, _, height, width = images.shape
    top, left, rows, columns = box.to(images.dtype).unsqueeze(2).unbind(1)  # each (B, 1)
    centre = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    # Clamping to the box, not to the image: no pixel outside the box may leak in.
    y = top + (centre * (rows / size) - 0.5).clamp_(min=0).minimum(rows - 1)  # (B, size)
    x = left + (centre * (columns / size) - 0.5).clamp_(min=0).minimum(columns - 1)
    if flip is not None:
        x = torch.where(flip[:, None], x.flip(1), x)
    grid = images.new_empty(batch, size, size, 2)
    grid[..., 0] = ((2 * x + 1) / width - 1)[:, None, :]
    grid[..., 1] = ((2 * y + 1) / height - 1)[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _crop_one_by_one(images: Tensor, box: Tensor, size: int, interpolation: str, flip: Tensor | None) -> Tensor:
    """Crop of large images on CPU: a matrix costs H per pixel where torch's own resize costs its few taps."""
    output = images.new_empty(*images.shape[:2], size, size)
    flips = [False] * len(images) if flip is None else flip.tolist()
    for index, (top, left, height, width) in enumerate(box.tolist()):
        crop = images[index : index + 1, :, top : top + height, left : left + width]
        crop = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)[0]
        output[index] = crop.flip(2) if flips[index] else crop
    return output


def _resize_matrix(start: Tensor, length: Tensor, source: int, size: int, interpolation: str) -> Tensor:
    """Antialiased resize of ``length`` pixels from ``start`` on, as one matrix (B, size, source) for each sample."""
    scale = length[:, None, None] / size
    widen = scale.clamp(min=1)  # a shrinking filter is stretched over all the pixels that it stands for
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(source, device=start.device) - start[:, None, None]  # (B, 1, source)
    distance = ((pixel + 0.5 - centre) / widen).abs()
    if interpolation == "bilinear":
        weight = (1 - distance).clamp_(min=0)
    else:  # Keys' cubic with a = -0.5, Pillow's and torch's antialiased one
        near = (1.5 * distance - 2.5) * distance.square() + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = torch.where(distance < 1, near, far) * (distance < 2)
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right where ``flip`` (B,) bool is True. Images (B, C, H, W)."""
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate about the centre, bilinear, zeros outside (torchvision's ``rotate``).

    Args:
        images: (B, C, H, W) float.
        angle: (B,) degrees, counter-clockwise.
    """
    batch, _, height, width = images.shape
    radians = torch.deg2rad(angle)[:, None, None]
    cosine, sine = radians.cos(), radians.sin()
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    grid = images.new_empty(batch, height, width, 2)
    grid[..., 0] = (cosine * x - sine * y) / (width / 2)
    grid[..., 1] = (sine * x + cosine * y) / (height / 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue in HSV space (torchvision's ``adjust_hue``).

    Args:
        images: (B, 3, H, W) in [0, 1].
        factor: (B,) turns in [-0.5, 0.5].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Selection by weights 0 and 1: on CPU, comparing into bool and torch.where take ten times as long as arithmetic.
    is_red = torch.eq(red, high, out=torch.empty_like(high))
    is_green = torch.eq(green, high, out=torch.empty_like(high))
    # Hue in sixths of a turn. A grey pixel has chroma 0: any finite hue will do, chroma multiplies it below.
    hue = torch.lerp(red - green, blue - red, is_green).lerp_(green - blue, is_red)
    hue.div_(chroma.clamp(min=torch.finfo(images.dtype).tiny))
    hue.addcmul_(4 - 2 * is_green, 1 - is_red)
    hue.div_(6).add_((factor + 1)[:, None, None]).frac_().mul_(6)  # the + 1 keeps it positive for frac
    # Over one turn each channel is a trapezoid between low and high: red is full around 0, green 2, blue 4.
    output = torch.empty_like(images)
    torch.sub(hue, 3, out=output[:, 0]).abs_().sub_(1)
    torch.sub(hue, 2, out=output[:, 1]).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=output[:, 2]).abs_().neg_().add_(2)
    output.clamp_(0, 1)
    for channel in output.unbind(1):
        torch.addcmul(low, channel, chroma, out=channel)
    return output


def adjust_colour(
    images: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    gray: Tensor | None = None,
) -> Tensor:
    """Brightness, then contrast, then saturation, then grayscale, as one linear map for each sample and one clamp.

    All four are linear in the pixel p, its luma l and the mean luma m of the image, so they fold into a p + b l + c m.
    Given alone, each one is torchvision's ``adjust_brightness``, ``adjust_contrast``, ``adjust_saturation`` or
    ``rgb_to_grayscale``.

    Args:
        images: (B, 3, H, W) or (B, 1, H, W) in [0, 1]. Saturation and grayscale leave one channel as it is.
        brightness, contrast, saturation: (B,) factors >= 0; 1 (or None) changes nothing.
        gray: (B,) bool, True = grayscale.

    Returns:
        Same shape, in [0, 1].
    """
    batch, channels = images.shape[:2]
    one = images.new_ones(batch)
    gain = (one if brightness is None else brightness) * (one if contrast is None else contrast)
    offset = None if contrast is None else (1 - contrast) * (one if brightness is None else brightness)
    if channels == 1:
        output = images * _per_sample(gain)
        if offset is not None:
            output += images.mean((1, 2, 3), keepdim=True) * _per_sample(offset)
        return output.clamp_(0, 1)

    luma = images[:, 0] * LUMA[0]
    luma.add_(images[:, 1], alpha=LUMA[1]).add_(images[:, 2], alpha=LUMA[2])
    keep = one if saturation is None else saturation  # p -> keep p + mix luma
    mix = 1 - keep
    if gray is not None:  # the luma of (keep p + mix l): the weights sum to 0.9999, not to 1
        mix = torch.where(gray, keep + mix * sum(LUMA), mix)
        keep = torch.where(gray, 0.0, keep)
    shared = luma * (gain * mix)[:, None, None]
    if offset is not None:
        # A constant image c becomes keep c + mix 0.9999 c.
        shared += (luma.mean((1, 2)) * offset * (keep + mix * sum(LUMA)))[:, None, None]
    return torch.addcmul(shared[:, None], images, _per_sample(gain * keep)).clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur with reflected borders (torchvision's ``gaussian_blur``).

    Args:
        images: (B, C, H, W) float.
        sigma: (B,) standard deviation in pixels; 0 leaves the sample as it is.
        kernel_size: odd number of taps, with kernel_size // 2 < min(H, W).

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    tap = torch.arange(kernel_size, device=images.device, dtype=images.dtype) - kernel_size // 2
    # At sigma 1e-3 a neighbour weighs exp(-500000) = 0: the identity, without a division by 0.
    taps = torch.softmax(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]).square(), 1)  # (B, taps)
    if images.device.type == "cpu" and max(height, width) > 64:
        radius = kernel_size // 2
        weight = taps.repeat_interleave(channels, 0)[:, None]  # (B * C, 1, taps): one group for each image and channel
        padded = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
        blurred = F.conv2d(padded, weight[:, :, None, :], groups=batch * channels)
        blurred = F.conv2d(blurred, weight[:, :, :, None], groups=batch * channels)
        return blurred.view_as(images)
    # Small images, or a GPU: two matrix products are faster than a convolution with a group for each channel.
    rows = (taps @ _shift_basis(height, kernel_size, images.device, images.dtype)).view(batch, 1, height, height)
    columns = (taps @ _shift_basis(width, kernel_size, images.device, images.dtype)).view(batch, 1, width, width)
    return rows @ (images @ columns.transpose(2, 3))


@functools.lru_cache(maxsize=16)
def _shift_basis(length: int, kernel_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(taps, length * length): for each tap the matrix that shifts a row of pixels by it, borders reflected."""
    radius = kernel_size // 2
    position = torch.arange(length, device=device)
    source = (position + torch.arange(-radius, radius + 1, device=device)[:, None]).abs()  # (taps, length)
    source = (length - 1) - ((length - 1) - source).abs()
    return (source[:, :, None] == position).to(dtype).flatten(1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert every value at or above ``threshold`` (B,) (torchvision's ``solarize``); inf leaves a sample as it is."""
    return torch.where(images >= _per_sample(threshold), 1 - images, images)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images - mean) / std with mean and std of shape (C,), in one pass over images (B, C, H, W)."""
    return torch.addcmul((-mean / std)[:, None, None], images, (1 / std)[:, None, None])


def _per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _on_subset(images: Tensor, active: Tensor, operation: Callable[..., Tensor], values: Tensor, *args) -> Tensor:
    """``operation(images, values, *args)``; on CPU for the active samples alone (on CUDA, finding them waits)."""
    if images.device.type != "cpu":
        return operation(images, values, *args)
    indices = active.nonzero().squeeze(1)
    if len(indices) == 0:  # a convolution refuses an empty batch
        return images
    return images.index_copy(0, indices, operation(images[indices], values[indices], *args))


# ---------------------------------------------------------------------------------------------------------------------
# Transforms: drawing of the parameters, order of the operations
# ---------------------------------------------------------------------------------------------------------------------


class BatchTransform(nn.Module):
    """A random transform of a batch that adds keys to it, split into drawing and applying."""

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Draw the parameters of the whole batch.

        Args:
            images: (B, C, H, W); only shape, dtype and device are used.
            generator: generator on ``images.device``; None = torch's default one.

        Returns:
            Parameters, each with leading dimension B, on ``images.device``.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Deterministically apply drawn parameters to images (B, C, H, W) in [0, 1]; returns the keys to be added."""
        raise NotImplementedError

    def chunk_size(self, images: Tensor) -> int:
        """Images to work through at once on CPU, such that a chunk stays in the cache: at most 64, about 1M floats."""
        return max(1, min(64, 1_000_000 // images[0].numel()))


def apply_views(
    transform: BatchTransform, images: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor | list[Tensor]]:
    """Draw once, then apply: on CPU chunk by chunk, elsewhere in one call.

    Args:
        transform: what to apply.
        images: (B, C, H, W) float in [0, 1].
        generator: generator on ``images.device``; None = torch's default one.

    Returns:
        The keys that the transform adds, each of B samples.
    """
    params = transform.draw(images, generator)
    chunk = transform.chunk_size(images)
    if images.device.type != "cpu" or len(images) <= chunk:
        return transform(images, params)
    parts = [
        transform(images[start : start + chunk], {name: value[start : start + chunk] for name, value in params.items()})
        for start in range(0, len(images), chunk)
    ]
    joined: dict[str, Tensor | list[Tensor]] = {}
    for key, first in parts[0].items():
        if isinstance(first, Tensor):
            joined[key] = torch.cat([part[key] for part in parts])
        else:
            joined[key] = [torch.cat(pieces) for pieces in zip(*(part[key] for part in parts), strict=True)]
    return joined


class View(BatchTransform):
    """One augmented view of each image.

    In this order: crop, flip, rotation, hue, brightness, contrast, saturation, grayscale, blur, solarization, noise. A
    knob at 0 leaves its operation out. With one channel, hue, saturation and grayscale do nothing. The random
    parameters follow torchvision's distributions (RandomResizedCrop, ColorJitter under RandomApply, GaussianBlur).

    Args:
        size: side of the square view, pixels.
        crop_scale: range of the crop's share of the image area, in (0, 1]; None = the whole image, resized.
        crop_ratio: range of the crop's width / height, drawn log-uniformly.
        interpolation: ``bilinear`` or ``bicubic``, antialiased.
        flip_p: probability of a mirror image.
        rotation: largest angle in degrees, either way, drawn uniformly; zeros come in at the corners.
        brightness: factor drawn from U(max(0, 1 - b), 1 + b).
        contrast: as brightness.
        saturation: as brightness.
        hue: turns, drawn from U(-h, h), h <= 0.5.
        jitter_p: probability of brightness, contrast, saturation and hue, all together.
        grayscale_p: probability of grayscale.
        blur_p: probability of Gaussian blur.
        blur_kernel: odd number of taps. 13 taps hold 3 sigma of the largest default sigma.
        blur_sigma: range of the blur's standard deviation in pixels, drawn uniformly.
        solarize_p: probability of solarization.
        solarize_threshold: values in [0, 1] from here on are inverted.
        noise_std: standard deviation of Gaussian noise added to every value.

    Raises:
        ValueError: a knob is out of its range.
    """

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
        _require(size >= 1, "size", size, ">= 1")
        if crop_scale is not None:
            _require(0 < crop_scale[0] <= crop_scale[1] <= 1, "crop_scale", crop_scale, "0 < low <= high <= 1")
        _require(0 < crop_ratio[0] <= crop_ratio[1], "crop_ratio", crop_ratio, "0 < low <= high")
        _require(interpolation in ("bilinear", "bicubic"), "interpolation", interpolation, "bilinear or bicubic")
        for name, probability in (
            ("flip_p", flip_p),
            ("jitter_p", jitter_p),
            ("grayscale_p", grayscale_p),
            ("blur_p", blur_p),
            ("solarize_p", solarize_p),
        ):
            _require(0 <= probability <= 1, name, probability, "in [0, 1]")
        for name, strength in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("noise_std", noise_std),
        ):
            _require(0 <= strength < math.inf, name, strength, "finite and >= 0")
        _require(0 <= rotation <= 180, "rotation", rotation, "in [0, 180] degrees")
        _require(0 <= hue <= 0.5, "hue", hue, "in [0, 0.5] turns")
        _require(0 < blur_sigma[0] <= blur_sigma[1], "blur_sigma", blur_sigma, "0 < low <= high")
        _require(0 <= solarize_threshold <= 1, "solarize_threshold", solarize_threshold, "in [0, 1]")
        if blur_p > 0:
            _require(
                blur_kernel % 2 == 1 and 0 < blur_kernel < 2 * size,
                "blur_kernel",
                blur_kernel,
                f"odd and below {2 * size} (its half is reflected within the {size} pixels of the view)",
            )
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
        """Draw the parameters of the whole batch: only those of the operations that this view has."""
        batch, channels, height, width = images.shape
        if channels not in (1, 3) and (self.brightness or self.contrast or self.saturation or self.hue or self.grayscale_p):
            raise ValueError(f"colour operations need images of 1 or 3 channels, got {channels}")
        # One call and a fixed layout: a change of one knob leaves the numbers of all the others as they are.
        uniform = torch.rand(batch, 2 * CROP_TRIES + 13, generator=generator, device=images.device)
        area, aspect, rest = uniform.split((CROP_TRIES, CROP_TRIES, 13), 1)
        (y, x, flip, angle, jitter, bright, contrast, saturate, hue, gray, blur, sigma, solar) = rest.unbind(1)

        params: dict[str, Tensor] = {}
        if self.crop_scale is not None:
            params["box"] = self._draw_box(self.crop_scale, area, aspect, y, x, height, width)
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
                params[name] = torch.where(jittered, _between(number, max(0.0, 1 - strength), 1 + strength), 1.0)
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

    def _draw_box(
        self, scale: tuple[float, float], area: Tensor, aspect: Tensor, y: Tensor, x: Tensor, height: int, width: int
    ) -> Tensor:
        """torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, else the largest central crop.

        Args:
            scale: range of the crop's share of the image area.
            area, aspect: (B, tries) uniform in [0, 1).
            y, x: (B,) uniform in [0, 1).
            height, width: of the image, pixels.

        Returns:
            (B, 4) int64: top, left, height, width.
        """
        area = _between(area, *scale) * (height * width)
        low, high = self.crop_ratio
        aspect = _between(aspect, math.log(low), math.log(high)).exp()
        columns = (area * aspect).sqrt().round().long()  # (B, tries)
        rows = (area / aspect).sqrt().round().long()
        fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
        first = fits.int().argmax(1, keepdim=True)  # argmax returns the first of equals
        fits, rows, columns = (tries.gather(1, first).squeeze(1) for tries in (fits, rows, columns))

        central_rows, central_columns = height, width
        if width / height < low:
            central_rows = round(width / low)
        elif width / height > high:
            central_columns = round(height * high)
        top = (y * (height - rows + 1)).long().minimum(height - rows)  # the minimum guards against rounding up
        left = (x * (width - columns + 1)).long().minimum(width - columns)
        return torch.stack(
            (
                torch.where(fits, top, (height - central_rows) // 2),
                torch.where(fits, left, (width - central_columns) // 2),
                torch.where(fits, rows, central_rows),
                torch.where(fits, columns, central_columns),
            ),
            1,
        )

    def forward(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Images (B, C, H, W) -> {"views": [(B, C, size, size)]} in [0, 1]."""
        return {"views": [self.render(images, params)]}

    def render(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The view itself: images (B, C, H, W) in [0, 1] and drawn parameters -> (B, C, size, size) in [0, 1]."""
        view = images
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
        linear = {name: params[name] for name in ("brightness", "contrast", "saturation", "gray") if name in params}
        if linear:
            view = adjust_colour(view, **linear)
        if "sigma" in params:
            sigma = params["sigma"]
            view = _on_subset(view, sigma > 0, gaussian_blur, sigma, self.blur_kernel)
        if "threshold" in params:
            threshold = params["threshold"]
            view = _on_subset(view, threshold < math.inf, solarize, threshold)
        if "noise" in params:
            view = (view + params["noise"]).clamp_(0, 1)
        return view


class Views(BatchTransform):
    """Several views of each image, each with its own draws.

    Args:
        views: the views in the order of the list that is returned; global (large) ones first.
    """

    views: Sequence[View]

    def __init__(self, *views: View) -> None:
        super().__init__()
        self.views = nn.ModuleList(views)  # type: ignore[assignment]

    def draw(self, images: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Parameters of all views, named ``<index of the view>.<parameter>``."""
        return {
            f"{index}.{name}": value
            for index, view in enumerate(self.views)
            for name, value in view.draw(images, generator).items()
        }

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
        """One call for all views of the same size: a GPU is bound by the number of its calls, not by their width."""
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
            repeated = images.repeat(len(members), 1, 1, 1)
            together = self.views[members[0]].render(repeated, joined)
            for index, rendered in zip(members, together.chunk(len(members)), strict=True):
                output[index] = rendered
        return output


class TwoViews(Views):
    """Two views of each image.

    Args:
        view1, view2: they may differ (BYOL blurs the first and solarizes the second).
    """

    def __init__(self, view1: View, view2: View) -> None:
        super().__init__(view1, view2)


class MultiCrop(Views):
    """Two global views and a number of smaller local ones (Caron et al. 2020, https://arxiv.org/abs/2006.09882).

    Args:
        global_view1, global_view2: the large crops; first in the list.
        local_view: recipe of the small crops.
        num_local: how many of them, >= 0.
    """

    def __init__(self, global_view1: View, global_view2: View, local_view: View, num_local: int) -> None:
        _require(num_local >= 0, "num_local", num_local, ">= 0")
        super().__init__(global_view1, global_view2, *[local_view] * num_local)


# ---------------------------------------------------------------------------------------------------------------------
# Recipes of the papers. "small" is the variant for images of 64 pixels or less, chosen by the size unless it is given.
# ---------------------------------------------------------------------------------------------------------------------


def _is_small(size: int, small: bool | None) -> bool:
    return size <= 64 if small is None else small


def _tenth(size: int) -> int:
    """Blur kernel of SimCLR and BYOL: a tenth of the side, made odd (23 at 224 pixels)."""
    return 2 * (size // 20) + 1


class SimCLRViews(TwoViews):
    """SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709; google-research/simclr data_util.py).

    Crop (.08, 1), flip, colour jitter (.8, .8, .8, .2) with p .8, grayscale .2, blur p .5 with sigma (.1, 2) and a
    kernel of a tenth of the side. Small: colour strength halved to (.4, .4, .4, .1) and no blur, as the official README
    has it for CIFAR-10.

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        small = _is_small(size, small)
        strength = 0.5 if small else 1.0
        view = View(
            size,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            grayscale_p=0.2,
            blur_p=0.0 if small else 0.5,
            blur_kernel=_tenth(size),
        )
        super().__init__(view, view)


class MoCoViews(TwoViews):
    """MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297; facebookresearch/moco main_moco.py); also SimSiam's.

    Crop (.2, 1), colour jitter (.4, .4, .4, .1) with p .8, grayscale .2, blur p .5 with sigma (.1, 2), flip. Small: no
    blur, as in SimSiam's CIFAR-10 experiments (Chen & He 2021, https://arxiv.org/abs/2011.10566).

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        view = View(
            size,
            crop_scale=(0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale_p=0.2,
            blur_p=0.0 if _is_small(size, small) else 0.5,
        )
        super().__init__(view, view)


class BYOLViews(TwoViews):
    """BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733); also Barlow Twins' and VICReg's.

    Crop (.08, 1) bicubic, flip, colour jitter (.4, .4, .2, .1) with p .8, grayscale .2; blur with p 1 and .1,
    solarization with p 0 and .2 in the first and second view. Small: no blur, as solo-learn's CIFAR recipe.

    Args:
        size: side of the views, pixels.
        small: the small variant; None = when size <= 64.
    """

    def __init__(self, size: int, small: bool | None = None) -> None:
        small = _is_small(size, small)
        views = [
            View(
                size,
                interpolation="bicubic",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                grayscale_p=0.2,
                blur_p=0.0 if small else blur_p,
                blur_kernel=_tenth(size),
                solarize_p=solarize_p,
            )
            for blur_p, solarize_p in ((1.0, 0.0), (0.1, 0.2))
        ]
        super().__init__(*views)


class SwAVViews(MultiCrop):
    """SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882; facebookresearch/swav src/multicropdataset.py).

    Two crops (.14, 1) and six of 3/7 of the side (96 at 224 pixels) with (.05, .14); flip, colour jitter
    (.8, .8, .8, .2) with p .8, grayscale .2, blur p .5. Small: no local crops and no blur.

    Args:
        size: side of the global views, pixels.
        small: the small variant; None = when size <= 64.
        num_local: number of local views; None = 6, or 0 in the small variant.
    """

    def __init__(self, size: int, small: bool | None = None, num_local: int | None = None) -> None:
        small = _is_small(size, small)
        large, local = (
            View(
                side,
                crop_scale=scale,
                brightness=0.8,
                contrast=0.8,
                saturation=0.8,
                hue=0.2,
                grayscale_p=0.2,
                blur_p=0.0 if small else 0.5,
            )
            for side, scale in ((size, (0.14, 1.0)), (_local_size(size), (0.05, 0.14)))
        )
        super().__init__(large, large, local, _num_local(num_local, small, 6))


class DINOViews(MultiCrop):
    """DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294; facebookresearch/dino main_dino.py).

    Two crops (.4, 1) and eight of 3/7 of the side (96 at 224 pixels) with (.05, .4), bicubic; flip, colour jitter
    (.4, .4, .2, .1) with p .8, grayscale .2; blur with p 1, .1 and .5 in the first, second and local views,
    solarization with p .2 in the second. Small: no local crops, global crops (.14, 1) as main_dino.py advises
    then, no blur.

    Args:
        size: side of the global views, pixels.
        small: the small variant; None = when size <= 64.
        num_local: number of local views; None = 8, or 0 in the small variant.
    """

    def __init__(self, size: int, small: bool | None = None, num_local: int | None = None) -> None:
        small = _is_small(size, small)
        num_local = _num_local(num_local, small, 8)
        global_scale = (0.4, 1.0) if num_local else (0.14, 1.0)
        view1, view2, local = (
            View(
                side,
                crop_scale=scale,
                interpolation="bicubic",
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                grayscale_p=0.2,
                blur_p=0.0 if small else blur_p,
                solarize_p=solarize_p,
            )
            for side, scale, blur_p, solarize_p in (
                (size, global_scale, 1.0, 0.0),
                (size, global_scale, 0.1, 0.2),
                (_local_size(size), (0.05, 0.4), 0.5, 0.0),
            )
        )
        super().__init__(view1, view2, local, num_local)


def _local_size(size: int) -> int:
    """Side of the local crops: 96 for 224, the proportion of SwAV and DINO."""
    return max(1, round(size * 96 / 224))


def _num_local(num_local: int | None, small: bool, published: int) -> int:
    if num_local is not None:
        return num_local
    return 0 if small else published


class Normalise(nn.Module):
    """Standardise images (B, C, H, W) by mean and standard deviation of each channel.

    Args:
        mean: C values, in the units of the images.
        std: C values > 0.

    Raises:
        ValueError: different lengths, or a std that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        _require(len(mean) == len(std), "mean and std", (mean, std), "of the same length")
        _require(min(std) > 0, "std", std, "> 0")
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> standardised (B, C, H, W)."""
        return normalise(images, self.mean, self.std)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers of [0, 1) moved to [low, high)."""
    return low + (high - low) * uniform


def _require(condition: bool, knob: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{knob} must be {expected}, got {value!r}")
