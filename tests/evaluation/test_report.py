"""The report against its parts: what is chosen where, and PSNR against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import CenterHole, Digits, GaussianNoise, MaskingNoise
from datamodules.base import raw_input
from evaluation.accuracy import top1
from evaluation.features import extract_features
from evaluation.measures.reconstruction import denoising_psnr, median_filter, psnr, reconstruction_psnr
from evaluation.report import evaluate, probe_features
from tests.conftest import build


def test_every_labeled_sample_once_and_in_order() -> None:
    data = Digits(batch_size=100)
    rows = extract_features({"raw": raw_input, "twice": lambda x: 2 * x}, data, "bank", torch.device("cpu"))
    features, labels = rows["raw"]
    expected = data.dataset("bank").__getitems__(list(range(1077)))  # type: ignore[attr-defined]
    assert torch.equal(labels, expected["label"])
    torch.testing.assert_close(features, data.transform(expected, None)["input"].flatten(1))
    torch.testing.assert_close(rows["twice"][0], 2 * features)


def test_raw_input_of_large_images_is_averaged() -> None:
    assert raw_input(torch.zeros(2, 3, 64, 64)).shape == (2, 3 * 32 * 32)
    assert raw_input(torch.zeros(2, 1, 8, 8)).shape == (2, 64)


def test_the_test_split_chooses_nothing() -> None:
    """Another test split changes the accuracies and not what was chosen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    train, val, test = ((x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200))
    first, chosen = probe_features(train, val, test, 4)
    second, chosen_again = probe_features(train, val, (test[0].flip(1), test[1]), 4)
    assert chosen == chosen_again and first["linear_top1"] > 0.8 > second["linear_top1"]


def test_only_the_asked_probes_run() -> None:
    module, data = build("configs/digits/simclr.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=("knn",))
    assert set(report["results"]["pretrained"]) == {"knn_top1"}
    assert report["results"]["pretrained"] == report["results"]["random_init"]
    with pytest.raises(ValueError, match="got 'knnn'"):
        evaluate(module, module, data, "x.ckpt", probes=("knnn",))


def test_evaluation_leaves_the_module_as_it_is() -> None:
    module, data = build("configs/digits/simclr.yaml")
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    evaluate(module, module, data, "x.ckpt", probes=("linear",))
    assert module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_psnr_closed_forms() -> None:
    assert psnr(1.0) == 0 and psnr(0.01) == pytest.approx(20) and psnr(0.25, peak=0.5) == pytest.approx(0)
    assert psnr(torch.tensor(0.001)) == pytest.approx(30, abs=1e-5)


class Perfect(torch.nn.Module):
    """Predicts half of the true value everywhere."""

    def __init__(self, data: Digits) -> None:
        super().__init__()
        self.data = data

    def reconstruct(self, batch: Any) -> torch.Tensor:
        return self.data.standardize(self.data.unstandardize(batch["input"]) / 2)


def test_psnr_of_the_hidden_region_counts_hidden_pixels_only() -> None:
    data = Digits(views=CenterHole(2, 6), batch_size=100)
    result = reconstruction_psnr(Perfect(data), data, torch.device("cpu"))  # type: ignore[arg-type]
    test, bank = (data.dataset(s).images[..., 0].astype(np.float64) / 255 for s in ("test", "bank"))  # type: ignore[attr-defined, arg-type]
    hole = test[:, 2:6, 2:6]
    values = result["psnr_hidden"]
    assert result["hidden_pixels"] == 360 * 16
    assert values["model"] == pytest.approx(-10 * math.log10(((hole / 2) ** 2).mean()), abs=1e-4)
    assert values["mean_image"] == pytest.approx(
        -10 * math.log10(((hole - bank.mean(0)[2:6, 2:6]) ** 2).mean()), abs=1e-6
    )
    assert values["best_constant"] == pytest.approx(-10 * math.log10(hole.var()), abs=1e-6)
    assert values["model"] > values["mean_image"] > values["best_constant"]


def test_psnr_of_removed_noise_counts_every_pixel() -> None:
    data = Digits(views=MaskingNoise(0.5), batch_size=360)
    result = denoising_psnr(Perfect(data), data, torch.device("cpu"))  # type: ignore[arg-type]
    test = data.dataset("test").images[..., 0].astype(np.float64) / 255  # type: ignore[attr-defined]
    values = result["psnr"]
    assert result["pixels"] == test.size
    assert values["model"] == pytest.approx(-10 * math.log10(((test / 2) ** 2).mean()), abs=1e-4)
    # half of the values are set to 0: the error is half the mean square, give or take the draw
    assert values["noisy"] == pytest.approx(-10 * math.log10((test**2).mean() / 2), abs=0.1)
    assert values["model"] > values["noisy"]


def test_median_filter_equals_the_slow_reference() -> None:
    images = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    for size in (1, 3, 5):
        padded = np.pad(images.numpy(), [(0, 0), (0, 0), *[(size // 2, size // 2)] * 2], mode="reflect")
        slow = np.empty(images.shape, np.float32)
        for b, c, y, x in np.ndindex(*images.shape):
            slow[b, c, y, x] = np.median(padded[b, c, y : y + size, x : x + size])
        assert np.array_equal(median_filter(images, size).numpy(), slow)
    speck = torch.zeros(1, 1, 8, 8)
    speck[..., 4, 4] = 1
    assert not median_filter(speck).any()
    with pytest.raises(ValueError, match="size must be odd and positive, got 4"):
        median_filter(images, 4)


def test_what_a_method_restores_depends_on_what_the_views_damage() -> None:
    module, _ = build("configs/digits/autoencoder.yaml")
    for views, section in ((GaussianNoise(), {"denoising"}), (None, set())):
        report = evaluate(module, module, Digits(views=views), "x.ckpt", probes=())
        assert set(report) & {"denoising", "reconstruction"} == section


def test_top1_is_a_share() -> None:
    assert top1(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 0, 1])) == 0.5
