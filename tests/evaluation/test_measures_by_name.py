"""Measures that run only if named: known answers."""

from __future__ import annotations

import math

import pytest
import torch

from evaluation.measures import measures, robustness
from evaluation.measures.confusion import confusion_matrix
from evaluation.measures.spectrum import alpha_req, lidar
from evaluation.report import evaluate
from tests.conftest import build
from tests.evaluation.test_report import shown

NAMES = ("confusion", "robustness", "spectrum")


def test_they_agree_with_the_probes() -> None:
    module, data = build("configs/digits/simclr.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=("linear",), also=NAMES)
    assert set(NAMES) <= set(report) and report["failed"] == {}
    matrix = torch.tensor(report["confusion"]["matrix"])
    assert matrix.shape == (10, 10) and matrix.sum() == 256
    top1 = report["results"]["pretrained"]["linear_top1"]
    assert matrix.diag().sum().item() / 256 == top1
    found = report["robustness"]
    assert found["pretrained"]["clean"] == top1
    assert found["raw_input"]["clean"] == report["results"]["raw_input"]["linear_top1"]
    assert found["pretrained"]["mean"] < top1
    noisy = found["pretrained"]["noise"]
    assert len(noisy) == 5 and noisy[0] > noisy[2] > noisy[4]
    spectrum = report["spectrum"]
    assert spectrum["rankme"] == report["collapse"]["rankme"]
    assert (spectrum["samples"], spectrum["lidar_samples"], spectrum["lidar_views"]) == (256, 256, 10)
    assert 1 < spectrum["lidar"] <= 64 and spectrum["alpha_req"] > 0
    text = shown(report)
    for heading in (" as ", "pixelate", "LiDAR", "alpha-ReQ"):
        assert heading in text


def test_a_named_measure_that_does_not_apply_is_told() -> None:
    module, data = build("configs/tones/apc.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=("knn",), also=("robustness",))
    assert report["left_out"] == {"robustness": "not for APC on Tones"} and "robustness" not in report


def test_no_views_no_lidar() -> None:
    module, data = build("configs/digits/autoencoder.yaml")
    data.setup("test")
    values = measures()["spectrum"].measure(module.eval(), data, torch.device("cpu"))
    assert list(values) == ["samples", "rankme", "alpha_req"]


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    found = confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 0, 2]), 3)
    assert found.tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 0]]


def test_the_most_frequent_errors() -> None:
    values = {"classes": ["a", "b", "c"], "matrix": [[9, 2, 0], [3, 9, 0], [0, 0, 9]]}
    assert measures()["confusion"].table(values)[1] == {"b as a": "3", "a as b": "2"}
    perfect = {"classes": ["a"], "matrix": [[4]]}
    assert measures()["confusion"].table(perfect)[1] == {"errors": "none"}


# ---- spectrum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(columns - columns.mean(0)).Q
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    scale = torch.arange(1, 21).double() ** (-alpha / 2)
    features = (orthonormal * scale) @ rotation + 3
    assert alpha_req(features.float()) == pytest.approx(alpha, abs=1e-4)


def test_one_direction_has_no_exponent() -> None:
    with pytest.raises(ValueError, match="alpha-ReQ needs two directions with variance"):
        alpha_req(torch.ones(10, 3))


def test_lidar_counts_the_directions_that_tell_samples_apart() -> None:
    """Four samples in opposite pairs on two axes; views differ by the same on every axis."""
    centers = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 3, 0], [0, -3, 0]])
    views = torch.cat([torch.eye(3), -torch.eye(3)]) * 0.1  # (V, D), W = 0.02 / 6 on the diagonal
    assert lidar(centers[:, None] + views, epsilon=0) == pytest.approx(2)
    unequal = centers * torch.tensor([2.0, 1, 1])  # eigenvalues 4 : 1
    expected = math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert lidar(unequal[:, None] + views, epsilon=1e-12) == pytest.approx(expected)
    # what views change by twice as much counts a quarter: 4 : 1 becomes 1 : 1 (delta 0)
    wide = views * torch.tensor([2.0, 1, 1])
    assert lidar(unequal[:, None] + wide, delta=0, epsilon=1e-12) == pytest.approx(2)


# ---- robustness --------------------------------------------------------------------------------------------


def test_corruptions_by_hand() -> None:
    x = torch.tensor([[[[0.0, 0.5], [0.5, 1.0]]]])
    assert robustness.contrast(x, 0.4).flatten().tolist() == pytest.approx([0.3, 0.5, 0.5, 0.7])
    assert robustness.brightness(x, 0.3).flatten().tolist() == pytest.approx([0.3, 0.8, 0.8, 1.0])
    assert robustness.pixelate(x, 0.5).flatten().tolist() == [0.5] * 4
    large = torch.full((2, 3, 32, 32), 0.5)
    noisy = robustness.noise(large, 0.08)
    assert (noisy - large).std().item() == pytest.approx(0.08, rel=0.05)
    assert torch.equal(noisy, robustness.noise(large, 0.08))
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = robustness.blur(point, 1 / 33)[0, 0]  # one pixel wide, cut at three
    place = torch.arange(33) - 16.0
    weights = torch.exp(-place.square() / 2) * (place.abs() <= 3)
    weights = weights / weights.sum()
    torch.testing.assert_close(spread, weights[:, None] * weights)


def test_jpeg_keeps_flat_images_and_loses_detail() -> None:
    flat = torch.full((2, 1, 16, 16), 128 / 255)
    torch.testing.assert_close(robustness.jpeg(flat, 25), flat)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    error = [(robustness.jpeg(image, q) - image).square().mean().item() for q in (100, 25, 7)]
    assert error[0] < error[1] < error[2]


@pytest.mark.parametrize("side", [8, 28, 65])
def test_corruptions_keep_shape_and_range(side: int) -> None:
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    for damage, levels in robustness.STRENGTHS.items():
        for level in levels:
            damaged = damage(images, level)
            assert damaged.shape == images.shape and damaged.min() >= 0 and damaged.max() <= 1
            assert not torch.equal(damaged, images)
