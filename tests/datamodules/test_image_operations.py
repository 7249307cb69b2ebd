"""Image operations against torchvision's own, one by one and as SimCLR's sequence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from datamodules.transforms.functional import (
    adjust_color,
    adjust_hue,
    crop_resize,
    gaussian_blur,
    horizontal_flip,
    rotate,
    solarize,
)
from datamodules.transforms.views import View
from tests.datamodules.photos import JITTER, assert_close, each, make_generator, photos


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (40, 48, 24), (48, 40, 64), (90, 70, 48), (70, 90, 96)],
    ids=["same", "small-down", "small-up", "large-down", "large-up"],
)
def test_crop_and_flip_equal_torchvision(interpolation: str, height: int, width: int, size: int) -> None:
    images = photos(24, height, width)
    params = View(size).draw(images, make_generator())
    actual = crop_resize(images, params["box"], size, interpolation, params["flip"])

    def reference(image: Tensor, box: list[int], flip: bool) -> Tensor:
        mode = InterpolationMode(interpolation)
        crop = tv.resized_crop(image, *box, size=[size, size], interpolation=mode, antialias=True)
        return tv.horizontal_flip(crop) if flip else crop

    assert_close(actual, each(reference, images, params["box"], params["flip"]))


def test_crop_takes_nothing_from_outside_its_box() -> None:
    images = torch.ones(1, 1, 16, 16)
    images[:, :, 4:10, 5:12] = 0.25
    box = torch.tensor([[4, 5, 6, 7]])
    for interpolation in ("bilinear", "bicubic"):
        for size in (16, 5):
            crop = crop_resize(images, box, size, interpolation)
            assert_close(crop, torch.full((1, 1, size, size), 0.25), atol=1e-6)


def test_flip_equals_torchvision() -> None:
    images, flip = photos(6, 20, 30), torch.tensor([True, False, True, True, False, False])
    assert torch.equal(
        horizontal_flip(images, flip),
        each(lambda image, f: tv.horizontal_flip(image) if f else image, images, flip),
    )


def test_rotation_equals_torchvision() -> None:
    images, angle = photos(20, 30, 41), torch.linspace(-40, 40, 20)
    assert_close(
        rotate(images, angle),
        each(lambda image, a: tv.rotate(image, a, interpolation=InterpolationMode.BILINEAR), images, angle),
        atol=2e-5,
    )


def test_hue_equals_torchvision() -> None:
    images = photos(20, 32, 32)
    corners = torch.cartesian_prod(
        *[torch.tensor([0.0, 0.3, 1.0])] * 3
    ).T  # grays, primaries and every kind of tie
    images[:, :, 0, :27] = corners
    factor = torch.linspace(-0.5, 0.5, 20)
    assert_close(adjust_hue(images, factor), each(tv.adjust_hue, images, factor))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_linear_color_operation_equals_torchvision(name: str, channels: int) -> None:
    images, factor = photos(20, 32, 32)[:, :channels], torch.linspace(0.0, 2.0, 20)
    expected = each(getattr(tv, f"adjust_{name}"), images, factor)
    assert_close(adjust_color(images, **{name: factor}), expected, atol=1e-6)


def test_grayscale_equals_torchvision() -> None:
    images, gray = photos(4, 32, 32), torch.tensor([True, False, True, False])
    expected = each(lambda image, g: tv.rgb_to_grayscale(image, 3) if g else image, images, gray)
    assert_close(adjust_color(images, gray=gray), expected, atol=1e-6)


def test_folded_color_equals_torchvisions_sequence_where_nothing_is_clamped() -> None:
    images = photos(32, 32, 32)
    brightness, contrast, saturation = (
        torch.rand(32, generator=make_generator(s)) for s in (1, 2, 3)
    )  # <= 1: no clamp
    gray = torch.arange(32) % 4 == 0

    def reference(image: Tensor, b: float, c: float, s: float, g: bool) -> Tensor:
        image = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, b), c), s)
        return tv.rgb_to_grayscale(image, 3) if g else image

    actual = adjust_color(images, brightness, contrast, saturation, gray)
    assert_close(actual, each(reference, images, brightness, contrast, saturation, gray), atol=1e-6)


@pytest.mark.parametrize("kernel_size", [3, 13, 23])
@pytest.mark.parametrize(("height", "width"), [(32, 24), (72, 80)], ids=["matrix", "convolution"])
def test_blur_equals_torchvision(kernel_size: int, height: int, width: int) -> None:
    images, sigma = photos(12, height, width), torch.linspace(0.1, 3.0, 12)
    expected = each(lambda image, s: tv.gaussian_blur(image, [kernel_size] * 2, [s, s]), images, sigma)
    assert_close(gaussian_blur(images, sigma, kernel_size), expected)
    assert_close(gaussian_blur(images, torch.zeros(12), kernel_size), images, atol=1e-6)


def test_solarize_equals_torchvision() -> None:
    images, threshold = photos(10, 32, 32), torch.linspace(0.0, 0.9, 10)
    images[:, :, 0, 0] = threshold[:, None]  # a value at the threshold is inverted
    assert torch.equal(solarize(images, threshold), each(tv.solarize, images, threshold))
    assert torch.equal(solarize(images, torch.full((10,), math.inf)), images)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_simclr_pipeline_is_within_torchvisions_own_spread(strength: float) -> None:
    """Ours against torchvision in a random order of the jitter, beside torchvision in two random orders."""
    count, size, kernel = 60, 32, 13
    images = photos(count, 48, 48)
    knobs = {name: 2 * strength * value for name, value in JITTER.items()}
    view = View(size, **knobs, grayscale_p=0.2, blur_p=0.5, blur_kernel=kernel)
    params = view.draw(images, make_generator())
    actual = view.render(images, params)
    generator = make_generator(1)

    def reference(index: int) -> Tensor:
        one = {name: value[index].tolist() for name, value in params.items()}
        image = tv.resized_crop(images[index], *one["box"], size=[size, size], antialias=True)
        image = tv.horizontal_flip(image) if one["flip"] else image
        for name in torch.randperm(4, generator=generator).tolist():
            name = list(JITTER)[name]
            image = getattr(tv, f"adjust_{name}")(image, one[name])
        image = tv.rgb_to_grayscale(image, 3) if one["gray"] else image
        return tv.gaussian_blur(image, [kernel] * 2, [one["sigma"]] * 2) if one["sigma"] else image

    first, second = (torch.stack([reference(index) for index in range(count)]) for _ in range(2))
    spread = (first - second).abs().mean().item()
    assert (actual - first).abs().mean().item() <= spread
    assert (
        actual - images.mean()
    ).abs().mean().item() > 10 * spread  # the bound is far below what an image is made of
