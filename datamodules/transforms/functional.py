"""Image operations on a batch: pure functions of images (B, C, H, W) in [0, 1] and per-sample parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # torchvision's grayscale weights (ITU-R 601-2)


# ------------------------------------------------------------------------------------------------------------
# Operations: pure functions of images and per-sample parameters
# ------------------------------------------------------------------------------------------------------------


def crop_resize(
    images: Tensor, box: Tensor, size: int, interpolation: str = "bilinear", flip: Tensor | None = None
) -> Tensor:
    """Crop one box from each image, resize it with antialiasing, and flip (torchvision's ``resized_crop``,
    ``hflip``).

    Args:
        images: (B, C, H, W) float.
        box: (B, 4) int64, pixels: top, left, height, width.
        size: side of the square output, pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        flip: (B,) bool, True = mirror left and right; nearly free here, a separate pass over the images
            elsewhere.

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
    """Bilinear crop for boxes no larger than the output: two taps suffice, as nothing is antialiased."""
    batch, _, height, width = images.shape
    top, left, rows, columns = box.to(images.dtype).unsqueeze(2).unbind(1)  # each (B, 1)
    center = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    # Clamp to the box, not to the image: no pixel outside the box may leak in.
    y = top + (center * (rows / size) - 0.5).clamp_(min=0).minimum(rows - 1)  # (B, size)
    x = left + (center * (columns / size) - 0.5).clamp_(min=0).minimum(columns - 1)
    if flip is not None:
        x = torch.where(flip[:, None], x.flip(1), x)
    grid = images.new_empty(batch, size, size, 2)
    grid[..., 0] = ((2 * x + 1) / width - 1)[:, None, :]
    grid[..., 1] = ((2 * y + 1) / height - 1)[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _crop_one_by_one(
    images: Tensor, box: Tensor, size: int, interpolation: str, flip: Tensor | None
) -> Tensor:
    """Crop large images on CPU: a matrix costs H per pixel, torch's own resize only a few taps."""
    output = images.new_empty(*images.shape[:2], size, size)
    flips = [False] * len(images) if flip is None else flip.tolist()
    for index, (top, left, height, width) in enumerate(box.tolist()):
        crop = images[index : index + 1, :, top : top + height, left : left + width]
        crop = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)[0]
        output[index] = crop.flip(2) if flips[index] else crop
    return output


def _resize_matrix(start: Tensor, length: Tensor, source: int, size: int, interpolation: str) -> Tensor:
    """Antialiased resize of ``length`` pixels from ``start``, as one matrix (B, size, source) per sample."""
    scale = length[:, None, None] / size
    widen = scale.clamp(min=1)  # when shrinking, the filter is stretched over all the pixels it averages
    center = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(source, device=start.device) - start[:, None, None]  # (B, 1, source)
    distance = ((pixel + 0.5 - center) / widen).abs()
    if interpolation == "bilinear":
        weight = (1 - distance).clamp_(min=0)
    else:  # Keys' cubic with a = -0.5, as in Pillow's and torch's antialiased resize
        near = (1.5 * distance - 2.5) * distance.square() + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = torch.where(distance < 1, near, far) * (distance < 2)
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Flip left and right where ``flip`` (B,) bool is True. Images (B, C, H, W)."""
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate about the center, bilinear, zeros outside (torchvision's ``rotate``).

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
    """Rotate the hue in HSV space (torchvision's ``adjust_hue``).

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
    # Select by weights 0 and 1: on CPU, comparing into bool and torch.where take ten times as long as
    # arithmetic.
    is_red = torch.eq(red, high, out=torch.empty_like(high))
    is_green = torch.eq(green, high, out=torch.empty_like(high))
    # Hue in sixths of a turn. A gray pixel has chroma 0: any finite hue works, as chroma multiplies it below.
    hue = torch.lerp(red - green, blue - red, is_green).lerp_(green - blue, is_red)
    hue.div_(chroma.clamp(min=torch.finfo(images.dtype).tiny))
    hue.addcmul_(4 - 2 * is_green, 1 - is_red)
    hue.div_(6).add_((factor + 1)[:, None, None]).frac_().mul_(6)  # the + 1 keeps it positive for frac
    # Over one turn each channel is a trapezoid between low and high: red peaks around 0, green 2, blue 4.
    output = torch.empty_like(images)
    torch.sub(hue, 3, out=output[:, 0]).abs_().sub_(1)
    torch.sub(hue, 2, out=output[:, 1]).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=output[:, 2]).abs_().neg_().add_(2)
    output.clamp_(0, 1)
    for channel in output.unbind(1):
        torch.addcmul(low, channel, chroma, out=channel)
    return output


def adjust_color(
    images: Tensor,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
    gray: Tensor | None = None,
) -> Tensor:
    """Brightness, then contrast, saturation and grayscale, as one linear map per sample and one clamp.

    All four are linear in the pixel p, its luma l and the image's mean luma m, so they fold into a p + b l +
    c m. On its own, each one equals torchvision's ``adjust_brightness``, ``adjust_contrast``,
    ``adjust_saturation`` or ``rgb_to_grayscale``.

    Args:
        images: (B, 3, H, W) or (B, 1, H, W) in [0, 1]. Saturation and grayscale do not change a single
            channel.
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
        sigma: (B,) standard deviation in pixels; 0 leaves the sample unchanged.
        kernel_size: odd number of taps, with kernel_size // 2 < min(H, W).

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    tap = torch.arange(kernel_size, device=images.device, dtype=images.dtype) - kernel_size // 2
    # At sigma 1e-3 a neighbor weighs exp(-500000) = 0: the identity, without a division by 0.
    taps = torch.softmax(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]).square(), 1)  # (B, taps)
    radius = kernel_size // 2
    if images.device.type == "cpu" and max(height, width) > 128:
        padded = F.pad(images, (radius,) * 4, mode="reflect")
        return torch.stack([_blur_one(*one) for one in zip(padded, taps.tolist(), strict=True)])
    if images.device.type == "cpu" and max(height, width) > 64:
        weight = taps.repeat_interleave(channels, 0)[
            :, None
        ]  # (B * C, 1, taps): one group for each image and channel
        padded = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
        blurred = F.conv2d(padded, weight[:, :, None, :], groups=batch * channels)
        blurred = F.conv2d(blurred, weight[:, :, :, None], groups=batch * channels)
        return blurred.view_as(images)
    # Small images, or a GPU: two matrix products are faster than a convolution with one group per channel.
    rows = (taps @ _shift_basis(height, kernel_size, images.device, images.dtype)).view(
        batch, 1, height, height
    )
    columns = (taps @ _shift_basis(width, kernel_size, images.device, images.dtype)).view(
        batch, 1, width, width
    )
    return rows @ (images @ columns.transpose(2, 3))


def _blur_one(padded: Tensor, taps: list[float]) -> Tensor:
    """Blur a large image (C, H + 2 r, W + 2 r) with 2 r + 1 symmetric taps to (C, H, W).

    It adds shifted copies, which stay in the cache: faster than a convolution.
    """
    radius = len(taps) // 2
    for dimension in (2, 1):
        length = padded.shape[dimension] - 2 * radius
        total = padded.narrow(dimension, radius, length) * taps[radius]
        for shift in range(1, radius + 1):
            if (weight := taps[radius + shift]) < 1e-8:  # below float32's precision
                break
            total.add_(padded.narrow(dimension, radius - shift, length), alpha=weight)
            total.add_(padded.narrow(dimension, radius + shift, length), alpha=weight)
        padded = total
    return padded


@functools.lru_cache(maxsize=16)
def _shift_basis(length: int, kernel_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """For each tap, the matrix that shifts a row of pixels by that tap, with reflected borders."""
    radius = kernel_size // 2
    position = torch.arange(length, device=device)
    source = (position + torch.arange(-radius, radius + 1, device=device)[:, None]).abs()  # (taps, length)
    source = (length - 1) - ((length - 1) - source).abs()
    return (source[:, :, None] == position).to(dtype).flatten(1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert every value at or above ``threshold`` (B,) (torchvision's ``solarize``); inf changes nothing."""
    return torch.where(images >= _per_sample(threshold), 1 - images, images)


def _per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _on_subset(
    images: Tensor, active: Tensor, operation: Callable[..., Tensor], values: Tensor, *args
) -> Tensor:
    """Apply ``operation(images, values, *args)``; on CPU only to active samples, in place (finding them
    stalls CUDA).
    """
    if images.device.type != "cpu":
        return operation(images, values, *args)
    indices = active.nonzero().squeeze(1)
    if len(indices):  # convolutions reject an empty batch
        images.index_copy_(0, indices, operation(images[indices], values[indices], *args))
    return images
