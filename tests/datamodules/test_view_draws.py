"""What views draw: torchvision's distributions, independent of each other."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision import transforms

from datamodules.transforms.views import NEUTRAL, View
from tests.datamodules.photos import JITTER, ks_distance, ks_limit, make_generator


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
