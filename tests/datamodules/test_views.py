"""Views of a batch: reproducible, independent samples, chunks, ranges, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from datamodules.transforms.base import apply_views
from datamodules.transforms.functional import _on_subset
from datamodules.transforms.recipes import BYOLViews, DINOViews, SimCLRViews
from datamodules.transforms.views import MultiCrop, View, Views
from tests.datamodules.photos import JITTER, assert_close, make_generator, photos


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


def test_blur_and_solarization_change_only_their_samples_in_place() -> None:
    images, active = photos(4, 16, 16), torch.tensor([False, True, False, True])
    kept = images.clone()

    def scaled(own: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return own * factor[:, None, None, None]

    changed = _on_subset(images, active, scaled, torch.arange(4.0))
    assert changed is images  # no copy of the others
    assert torch.equal(changed, kept * torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None, None, None])


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


@pytest.mark.parametrize(("option", "least"), [("num_local", 0), ("num_global", 2)])
def test_bad_numbers_of_views_are_refused(option: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least {least}, got -1"):
        MultiCrop(View(32), View(32), View(16), **{"num_local": 0, option: -1})


def test_all_global_views_but_the_first_are_the_second_recipe() -> None:
    first, second, local = View(32), View(24), View(16)
    views = MultiCrop(first, second, local, num_local=2, num_global=4)
    assert list(views.views) == [first, second, second, second, local, local]
    made = apply_views(views, photos(3, 40, 40), make_generator(0))["views"]
    assert [view.shape[-1] for view in made] == [32, 24, 24, 24, 16, 16]
    assert not torch.equal(made[1], made[2])  # each has draws of its own
