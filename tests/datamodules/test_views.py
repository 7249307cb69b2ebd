"""The views against torchvision's own operations, its distributions, and the promises of the batch
contract.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from datamodules.transforms.base import apply_views
from datamodules.transforms.functional import (
    adjust_color,
    adjust_hue,
    crop_resize,
    gaussian_blur,
    horizontal_flip,
    rotate,
    solarize,
)
from datamodules.transforms.masks import MAEViews
from datamodules.transforms.recipes import BYOLViews, DINOViews, MoCoViews, SimCLRViews, SwAVViews
from datamodules.transforms.views import NEUTRAL, MultiCrop, TwoViews, View, Views

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int, width: int) -> Tensor:
    """Pieces of scikit-learn's two photographs, shrunk fourfold: (count, 3, height, width) in [0, 1]."""
    generator = make_generator(7)
    pieces = []
    for index in range(count):
        photo = torch.from_numpy(load_sample_image(("china.jpg", "flower.jpg")[index % 2]).copy())[
            ::4, ::4
        ]  # 107x160
        top = int(torch.randint(photo.shape[0] - height + 1, (), generator=generator))
        left = int(torch.randint(photo.shape[1] - width + 1, (), generator=generator))
        pieces.append(photo[top : top + height, left : left + width].permute(2, 0, 1) / 255)
    return torch.stack(pieces)


def each(operation, images: Tensor, *params: Tensor) -> Tensor:
    """One image after another through torchvision's operation, with its own parameters."""
    return torch.stack([operation(image, *(p[i].tolist() for p in params)) for i, image in enumerate(images)])


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def ks_distance(first: Tensor, second: Tensor) -> float:
    """Largest difference of the two empirical distribution functions."""
    points = torch.cat([first, second]).double().sort().values
    cdfs = [
        torch.searchsorted(s.double().sort().values, points, right=True) / len(s) for s in (first, second)
    ]
    return (cdfs[0] - cdfs[1]).abs().max().item()


def ks_limit(first: Tensor, second: Tensor) -> float:
    """A larger distance than this has probability 0.001 when both samples come from one distribution."""
    return 1.95 * math.sqrt(1 / len(first) + 1 / len(second))


# -------------------- equal to torchvision, operation by operation


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


# -------------------- torchvision's laws of the parameters


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (32, 32, (0.08, 1.0)),
        (64, 40, (0.2, 1.0)),
        (20, 60, (0.08, 1.0)),
        (100, 17, (0.3, 1.0)),
        (17, 100, (0.05, 0.3)),
        (40, 50, (0.98, 1.0)),
    ],
)
def test_crop_boxes_follow_torchvisions_law(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    image, ratio = torch.empty(3, height, width), (3 / 4, 4 / 3)
    get_params = transforms.RandomResizedCrop.get_params
    expected = torch.tensor([get_params(image, list(scale), list(ratio)) for _ in range(1500)])
    view = View(32, crop_scale=scale, crop_ratio=ratio)
    actual = view.draw(torch.empty(20000, 3, height, width), make_generator())["box"]
    assert (actual[:, :2] >= 0).all() and (actual[:, 2:] >= 1).all()
    assert (actual[:, 0] + actual[:, 2] <= height).all() and (actual[:, 1] + actual[:, 3] <= width).all()
    statistics = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "bottom": lambda box: box[:, 0] + box[:, 2],
        "right": lambda box: box[:, 1] + box[:, 3],
    }
    for name, statistic in statistics.items():
        distance = ks_distance(statistic(actual), statistic(expected))
        assert distance < ks_limit(actual, expected), f"{name}: {distance}"


@pytest.mark.parametrize(("height", "width"), [(100, 17), (17, 100)])
def test_crop_falls_back_to_torchvisions_central_crop(height: int, width: int) -> None:
    """No try can fit when the crop must be as large as the image and of a shape that the image does not
    have.
    """
    ratio, scale = (3 / 4, 4 / 3), (0.9999, 1.0)
    expected = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), list(scale), list(ratio)
    )
    view = View(8, crop_scale=scale, crop_ratio=ratio)
    boxes = view.draw(torch.empty(50, 3, height, width), make_generator())["box"]
    assert boxes.tolist() == [list(expected)] * 50


def test_color_jitter_follows_torchvisions_law() -> None:
    torch.manual_seed(0)
    knobs = {
        "brightness": 0.8,
        "contrast": 1.3,
        "saturation": 0.4,
        "hue": 0.2,
    }  # 1.3: the range ends at 0, not at -0.3
    jitter = transforms.ColorJitter(**knobs)
    expected = torch.tensor(
        [
            jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:]
            for _ in range(2000)
        ]
    )
    params = View(32, **knobs, jitter_p=0.8).draw(torch.empty(20000, 3, 8, 8), make_generator())
    jittered = params["hue"] != 0
    assert jittered.float().mean().item() == pytest.approx(0.8, abs=0.012)
    for column, name in enumerate(knobs):
        actual = params[name]
        assert (actual[~jittered] == NEUTRAL[name]).all(), (
            f"{name} must change with the other three or not at all"
        )
        distance = ks_distance(actual[jittered], expected[:, column])
        assert distance < ks_limit(actual[jittered], expected), f"{name}: {distance}"


def test_other_parameters_have_their_probabilities_and_ranges() -> None:
    torch.manual_seed(0)
    blur = transforms.GaussianBlur(3, (0.1, 2.0))
    expected = torch.tensor([blur.get_params(0.1, 2.0) for _ in range(2000)])
    view = View(
        8, flip_p=0.3, rotation=15, grayscale_p=0.2, blur_p=0.4, blur_kernel=3, solarize_p=0.1, noise_std=0.05
    )
    params = view.draw(torch.empty(20000, 3, 8, 8), make_generator())
    for name, active, probability in (
        ("flip", params["flip"], 0.3),
        ("gray", params["gray"], 0.2),
        ("sigma", params["sigma"] > 0, 0.4),
        ("threshold", params["threshold"] == 0.5, 0.1),
    ):
        assert active.float().mean().item() == pytest.approx(probability, abs=0.015), name
    sigma = params["sigma"][params["sigma"] > 0]
    assert ks_distance(sigma, expected) < ks_limit(sigma, expected)
    angle = params["angle"]
    assert ks_distance(angle, torch.linspace(-15, 15, 5000)) < ks_limit(angle, torch.empty(5000))
    assert params["noise"].std().item() == pytest.approx(0.05, rel=0.01)
    assert params["noise"].mean().item() == pytest.approx(0.0, abs=1e-3)


def test_draws_are_independent_of_each_other() -> None:
    view = View(8, **JITTER, rotation=10, blur_p=1.0, blur_kernel=3, jitter_p=1.0)
    params = view.draw(torch.empty(20000, 3, 32, 32), make_generator())
    box = params.pop("box").float()
    columns = [value.float() for value in params.values()] + [box[:, 2] * box[:, 3], box[:, 2] / box[:, 3]]
    columns += [
        box[:, axis] - (32 - box[:, 2 + axis]) / 2 for axis in (0, 1)
    ]  # place, from the middle of what is free
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert correlation.abs().max().item() < 4.5 / math.sqrt(20000)


def test_a_changed_knob_leaves_the_other_draws_alone() -> None:
    images = torch.empty(50, 3, 32, 32)
    plain = View(16, **JITTER).draw(images, make_generator())
    richer = View(16, **JITTER, rotation=5, grayscale_p=0.2, blur_p=0.5, solarize_p=0.2).draw(
        images, make_generator()
    )
    assert set(plain) < set(richer)
    for name, value in plain.items():
        assert torch.equal(value, richer[name]), name


# -------------------- the batch's contract


def rich_views() -> MultiCrop:
    """Every operation, two sizes, two interpolations."""
    first = View(32, **JITTER, rotation=10, grayscale_p=0.2, blur_p=0.5, blur_kernel=5, noise_std=0.02)
    second = View(32, interpolation="bicubic", **JITTER, blur_p=0.1, blur_kernel=5, solarize_p=0.3)
    local = View(16, crop_scale=(0.05, 0.4), interpolation="bicubic", **JITTER, blur_p=0.5, blur_kernel=3)
    return MultiCrop(first, second, local, num_local=2)


def test_views_are_a_function_of_the_seed() -> None:
    images = photos(8, 40, 40)
    first, again, other = (
        apply_views(rich_views(), images, make_generator(seed))["views"] for seed in (3, 3, 4)
    )
    assert [tuple(view.shape) for view in first] == [(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)] * 2
    for view, same, different in zip(first, again, other, strict=True):
        assert torch.equal(view, same)
        assert (view - different).abs().flatten(1).mean(1).min() > 1e-3
    assert (first[2] - first[3]).abs().flatten(1).mean(
        1
    ).min() > 1e-3  # two local views have draws of their own


def test_samples_of_a_batch_are_drawn_differently() -> None:
    images = photos(1, 40, 40).expand(16, -1, -1, -1)
    for view in apply_views(rich_views(), images, make_generator())["views"]:
        flat = view.flatten(1)
        distance = torch.cdist(flat, flat) + torch.eye(16)
        assert distance.min() > 1e-2


def test_one_sample_does_not_depend_on_the_others() -> None:
    images, transform = photos(12, 40, 40), rich_views()
    params = transform.draw(images, make_generator())
    together = transform(images, params)["views"]
    for index in range(12):
        alone = transform(images[index : index + 1], {k: v[index : index + 1] for k, v in params.items()})[
            "views"
        ]
        for view, one in zip(together, alone, strict=True):
            assert_close(view[index : index + 1], one, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_nothing(chunk: int) -> None:
    images, transform = photos(20, 40, 40), rich_views()
    whole = transform(images, transform.draw(images, make_generator()))["views"]
    transform.chunk_size = lambda images: chunk
    chunked = apply_views(transform, images, make_generator())["views"]
    for view, expected in zip(chunked, whole, strict=True):
        assert_close(view, expected, atol=1e-6)


@pytest.mark.parametrize("size", [32, 70], ids=["matrix", "convolution"])
def test_a_chunk_without_an_active_sample_passes_through(size: int) -> None:
    images = photos(3, size, size)
    view = View(size, crop_scale=None, flip_p=0.0, blur_p=0.5, solarize_p=0.5)
    none_active = {"sigma": torch.zeros(3), "threshold": torch.full((3,), math.inf)}
    assert torch.equal(view.render(images, none_active), images)


def test_chunk_size_is_that_of_the_cache() -> None:
    transform = SimCLRViews(32)
    sizes = {side: transform.chunk_size(torch.empty(1, 3, side, side)) for side in (8, 32, 96, 224, 2000)}
    assert sizes[8] == sizes[32] == 64
    assert 16 <= sizes[96] <= 48
    assert 4 <= sizes[224] <= 10
    assert sizes[2000] == 1


def test_views_joined_into_one_call_equal_separate_ones() -> None:
    """The path of a GPU: BYOL's views have different operations, the missing ones are filled in with neutral
    values.
    """
    images = photos(12, 40, 40)
    everything = {
        **JITTER,
        "rotation": 10,
        "grayscale_p": 0.5,
        "blur_p": 0.5,
        "solarize_p": 0.5,
        "noise_std": 0.1,
    }
    full, plain, narrow = View(32, **everything), View(32, flip_p=0.0), View(32, **everything, blur_kernel=3)
    for transform in (BYOLViews(32, small=False), DINOViews(70), rich_views(), Views(full, plain, narrow)):
        params = transform.draw(images, make_generator())
        split = [
            {k.split(".")[1]: v for k, v in params.items() if k.startswith(f"{index}.")}
            for index in range(len(transform.views))
        ]
        joined = transform._render_together(images, split)
        for view, separate in zip(joined, transform(images, params)["views"], strict=True):
            assert_close(view, separate)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 100])
def test_accelerator_path_reads_no_values(channels: int, side: int) -> None:
    """The meta device has no values: whatever would make a GPU wait (item, nonzero, boolean indexing) raises
    there.
    """
    images = torch.empty(6, channels, side, side, device="meta")
    transform = rich_views()
    params = transform.draw(images, None)
    assert all(value.device.type == "meta" and len(value) == 6 for value in params.values())
    shapes = [tuple(view.shape) for view in transform(images, params)["views"]]
    assert shapes == [(6, channels, 32, 32)] * 2 + [(6, channels, 16, 16)] * 2


def test_draw_reads_only_the_shape_and_images_stay_as_they_are() -> None:
    images = photos(8, 32, 32)
    kept = images.clone()
    whole = {"crop_scale": None, "flip_p": 0.0}  # the view starts as the image itself
    each_first = [
        {**JITTER},
        {"hue": 0.1},
        {"rotation": 9},
        {"blur_p": 1.0},
        {"solarize_p": 1.0},
        {"noise_std": 0.1},
    ]
    for transform in (rich_views(), *(View(32, **whole, **knobs) for knobs in each_first)):
        from_images = transform.draw(images, make_generator())
        from_shape = transform.draw(torch.full_like(images, math.nan), make_generator())
        assert all(torch.equal(value, from_shape[name]) for name, value in from_images.items())
        assert all(len(value) == 8 for value in from_images.values())
        transform(images, from_images)
        assert torch.equal(images, kept)


def test_views_stay_in_range() -> None:
    images = (
        photos(30, 40, 40) > 0.5
    ).float()  # edges from 0 to 1: bicubic overshoots, jitter and noise clip
    strong = View(32, None, interpolation="bicubic", flip_p=0.0)
    noisy = View(32, **{**JITTER, "brightness": 0.8}, noise_std=0.3)
    for view in (strong, noisy):
        output = apply_views(view, images, make_generator())["views"][0]
        assert output.min() >= -1e-6 and output.max() <= 1 + 1e-6


def test_without_crop_the_whole_image_is_resized() -> None:
    images = photos(4, 40, 30)
    view = View(20, crop_scale=None, flip_p=1.0)
    expected = F.interpolate(images, (20, 20), mode="bilinear", antialias=True).flip(3)
    assert_close(apply_views(view, images, make_generator())["views"][0], expected, atol=1e-6)


def test_one_channel_ignores_what_needs_three() -> None:
    digits = photos(10, 8, 8)[:, :1]
    knobs = {
        "crop_scale": (0.6, 1.0),
        "flip_p": 0.0,
        "rotation": 10,
        "brightness": 0.3,
        "contrast": 0.3,
        "noise_std": 0.05,
    }
    plain = apply_views(View(8, **knobs), digits, make_generator())["views"][0]
    colored = View(8, **knobs, saturation=0.5, hue=0.3, grayscale_p=1.0)
    assert plain.shape == (10, 1, 8, 8)
    assert torch.equal(plain, apply_views(colored, digits, make_generator())["views"][0])


@pytest.mark.parametrize("knob", ["brightness", "contrast", "saturation", "hue", "grayscale_p"])
def test_color_refuses_other_channel_counts(knob: str) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        View(8, **{knob: 0.4}).draw(torch.empty(2, 4, 8, 8), None)


def test_four_channels_work_without_color() -> None:
    view = View(8, rotation=5, blur_p=0.5, blur_kernel=3, solarize_p=0.5)
    assert apply_views(view, torch.rand(5, 4, 12, 12), make_generator())["views"][0].shape == (5, 4, 8, 8)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("size", 0),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0.5, 1.2)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("interpolation", "nearest"),
        ("flip_p", 1.5),
        ("rotation", -3),
        ("rotation", 200),
        ("brightness", -0.1),
        ("contrast", math.nan),
        ("saturation", math.inf),
        ("hue", 0.6),
        ("jitter_p", -0.2),
        ("grayscale_p", 2),
        ("blur_p", 1.01),
        ("blur_kernel", 4),
        ("blur_kernel", 65),
        ("blur_kernel", -1),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_sigma", (2.0, 1.0)),
        ("solarize_p", -1),
        ("solarize_threshold", 128),
        ("noise_std", -0.5),
    ],
)
def test_bad_knobs_are_refused_with_name_and_value(knob: str, value: object) -> None:
    knobs = {"size": 32, "blur_p": 0.5, knob: value}
    with pytest.raises(ValueError) as error:
        View(**knobs)
    assert knob in str(error.value) and repr(value) in str(error.value)


def test_bad_number_of_local_views_is_refused() -> None:
    with pytest.raises(ValueError, match="num_local must be at least 0, got -1"):
        MultiCrop(View(32), View(32), View(16), num_local=-1)


# -------------------- the recipes


def knobs_of(view: View) -> dict[str, object]:
    return {
        name: value for name, value in vars(view).items() if not name.startswith("_") and name != "training"
    }


def test_large_recipes_are_those_of_the_papers() -> None:
    simclr, moco, byol = SimCLRViews(224).views, MoCoViews(224).views, BYOLViews(224).views
    swav, dino, mae = SwAVViews(224).views, DINOViews(224).views, MAEViews(224).views
    assert [len(views) for views in (simclr, moco, byol, swav, dino, mae)] == [2, 2, 2, 8, 10, 1]
    color = ("brightness", "contrast", "saturation", "hue", "jitter_p", "grayscale_p")
    expected = {
        "simclr": (simclr, (0.8, 0.8, 0.8, 0.2, 0.8, 0.2), "bilinear", (0.08, 1.0)),
        "moco": (moco, (0.4, 0.4, 0.4, 0.1, 0.8, 0.2), "bilinear", (0.2, 1.0)),
        "byol": (byol, (0.4, 0.4, 0.2, 0.1, 0.8, 0.2), "bicubic", (0.08, 1.0)),
        "swav": (swav, (0.8, 0.8, 0.8, 0.2, 0.8, 0.2), "bilinear", (0.14, 1.0)),
        "dino": (dino, (0.4, 0.4, 0.2, 0.1, 0.8, 0.2), "bicubic", (0.4, 1.0)),
        "mae": (mae, (0.0, 0.0, 0.0, 0.0, 0.8, 0.0), "bicubic", (0.2, 1.0)),
    }
    for name, (views, values, interpolation, scale) in expected.items():
        for view in views:
            assert tuple(knobs_of(view)[key] for key in color) == values, name
            assert (view.interpolation, view.flip_p, view.blur_sigma) == (interpolation, 0.5, (0.1, 2.0)), (
                name
            )
        assert views[0].crop_scale == scale, name
    assert [view.blur_p for view in (*simclr, *moco, *byol, *mae)] == [0.5, 0.5, 0.5, 0.5, 1.0, 0.1, 0.0]
    assert [view.solarize_p for view in (*simclr, *byol, *dino[:3])] == [0.0, 0.0, 0.0, 0.2, 0.0, 0.2, 0.0]
    assert [view.blur_p for view in (*swav[1:3], *dino[:3])] == [0.5, 0.5, 1.0, 0.1, 0.5]
    assert [view.size for view in swav] == [224] * 2 + [96] * 6
    assert [view.size for view in dino] == [224] * 2 + [96] * 8
    assert (swav[2].crop_scale, dino[2].crop_scale) == ((0.05, 0.14), (0.05, 0.4))
    assert simclr[0].blur_kernel == byol[0].blur_kernel == 23


@pytest.mark.parametrize("recipe", [SimCLRViews, MoCoViews, BYOLViews, SwAVViews, DINOViews])
def test_small_recipes_drop_blur_and_local_views(recipe: type[Views]) -> None:
    small, large = recipe(32), recipe(224)
    assert len(small.views) == 2
    assert all(view.blur_p == 0 for view in small.views)
    assert any(view.blur_p > 0 for view in large.views)
    forced = recipe(32, small=False)
    assert len(forced.views) == len(large.views) and any(view.blur_p > 0 for view in forced.views)
    assert all(view.blur_p == 0 for view in recipe(96, small=True).views)
    output = apply_views(small, photos(4, 32, 32), make_generator())["views"]
    assert [tuple(view.shape) for view in output] == [(4, 3, 32, 32)] * 2


def test_small_variants_change_what_their_sources_change() -> None:
    assert knobs_of(SimCLRViews(32).views[0])["brightness"] == 0.4
    assert knobs_of(SimCLRViews(32).views[0])["hue"] == 0.1
    assert DINOViews(32).views[0].crop_scale == (0.14, 1.0)
    assert DINOViews(32, num_local=4).views[0].crop_scale == (0.4, 1.0)
    assert len(DINOViews(32, num_local=4).views) == 6
    assert len(SwAVViews(224, num_local=0).views) == 2


def test_two_views_keep_their_order() -> None:
    transform = TwoViews(View(16, crop_scale=None, flip_p=0.0), View(16, crop_scale=None, flip_p=1.0))
    images = photos(3, 16, 16)
    first, second = apply_views(transform, images, make_generator())["views"]
    assert torch.equal(first, images)
    assert torch.equal(second, images.flip(3))
