"""The report: choices are made on val only, and PSNR equals closed forms."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from datamodules import CenterHole, Digits, GaussianNoise, MaskingNoise
from datamodules.base import raw_input
from evaluation.accuracy import top1
from evaluation.features import extract_features
from evaluation.measures.reconstruction import denoising_psnr, median_filter, psnr, reconstruction_psnr
from evaluation.report import evaluate, foreseen_obstacles, is_complete, named_probes
from evaluation.tables import print_report
from runtime import discovery
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
    other = (test[0].flip(1), test[1])
    for probe in named_probes(None):
        first, chosen = probe.score(train, val, test, 4)
        second, chosen_again = probe.score(train, val, other, 4)
        key = f"{probe.name}_top1"
        assert chosen == chosen_again and first[key] > 0.6 > second[key]


def test_only_the_asked_probes_run() -> None:
    module, data = build("configs/digits/simclr.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=("knn",))
    assert set(report["results"]["pretrained"]) == {"knn_top1", "knn_macro"}
    assert report["results"]["pretrained"] == report["results"]["random_init"]
    with pytest.raises(
        ValueError,
        match="probes must be one of linear, knn, fewshot, clustering, retrieval, calibration, got 'knnn'",
    ):
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


# ---- a new file is known, and what cannot run leaves the rest alone ----------------------------------------

PROBE = '''
import torch
from evaluation.probes.base import Fitted, Probe


class NearestMean(Probe):
    """The class with the nearest mean."""

    name, heading = "mean", "nearest mean"

    def fit(self, train, val, num_classes, seed):
        means = torch.stack([train[0][train[1] == c].mean(0) for c in range(num_classes)])
        return Fitted([lambda features: -torch.cdist(features, means)], {"mean_offset": 0.5})
'''

MEASURE = '''
from evaluation.measures.base import Measure


class Parameters(Measure):
    """How large the encoder is."""

    name = "parameters"

    def applies(self, module, data):
        return type(data).__name__ == "Digits"

    def measure(self, module, data, device):
        return {"encoder": sum(p.numel() for p in module.encoder.parameters())}

    def table(self, values):
        return "size", {"encoder": str(values["encoder"])}
'''


@pytest.fixture
def new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the project in which two files were added, and nothing else is edited."""
    for package in discovery.PACKAGES:
        shutil.copytree(discovery.ROOT / package, tmp_path / package)
    for folder, name, text in (("probes", "mean", PROBE), ("measures", "parameters", MEASURE)):
        (tmp_path / "evaluation" / folder / f"{name}.py").write_text(text)
        package_module = sys.modules[f"evaluation.{folder}"]
        monkeypatch.setattr(package_module, "__path__", [str(tmp_path / "evaluation" / folder)])
        monkeypatch.delitem(sys.modules, f"evaluation.{folder}.{name}", raising=False)
    monkeypatch.setattr(discovery, "ROOT", tmp_path)
    discovery.classes.cache_clear()
    yield
    discovery.classes.cache_clear()


def shown(report: dict[str, Any]) -> str:
    """The report as the terminal shows it."""
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200))
    return stream.getvalue()


@pytest.mark.usefixtures("new_files")
def test_a_new_probe_and_a_new_measure_are_one_file_each() -> None:
    module, data = build("configs/digits/simclr.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=("mean",))
    assert set(report["results"]["raw_input"]) == {"mean_top1", "mean_macro"}
    assert report["results"]["raw_input"]["mean_top1"] > 0.9
    assert report["protocol"]["mean_offset"] == 0.5
    size = sum(p.numel() for p in module.encoder.parameters())
    assert report["parameters"] == {"encoder": size} and report["failed"] == {}
    text = shown(report)
    assert "nearest mean" in text and "size" in text and str(size) in text
    assert [probe.name for probe in named_probes(None)] == ["linear", "knn", "fewshot", "mean"]


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no\nluck")


def test_what_fails_is_named_and_leaves_the_rest_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A probe, a measure, a baseline and the embedding of one encoder, each with a bug."""
    module, data = build("configs/digits/inpainting.yaml")
    untrained, _ = build("configs/digits/inpainting.yaml")
    whole = evaluate(module, untrained, data, "x.ckpt")
    monkeypatch.setattr("evaluation.probes.knn.knn_votes", broken)
    monkeypatch.setattr("evaluation.measures.reconstruction.reconstruction_psnr", broken)
    monkeypatch.setattr(untrained, "embed", broken)
    report = evaluate(module, untrained, data, "x.ckpt")
    error = "RuntimeError: no luck"
    assert report["failed"] == {
        "features of random_init": error,
        "knn of pretrained": error,
        "knn of raw_input": error,
        "reconstruction": error,
    }
    assert capsys.readouterr().err.count("Traceback") == 4
    kept = {
        encoder: {key: value for key, value in row.items() if not key.startswith("knn")}
        for encoder, row in whole["results"].items()
        if encoder != "random_init"
    }
    assert report["results"] == kept and report["collapse"] == whole["collapse"]
    assert "reconstruction" not in report and "reconstruction" in whole
    assert "failed: knn of pretrained: RuntimeError: no luck\n" in shown(report)


def test_what_was_given_fails_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = build("configs/digits/simclr.yaml")
    monkeypatch.setattr(module, "embed", lambda x: torch.full((len(x), 4), float("nan")))
    report = evaluate(module, module, data, "x.ckpt", probes=("knn",))
    n = len(data.dataset("test"))  # type: ignore[arg-type]
    reason = f"query features: {n} of {n} rows contain NaN or infinity: the encoder has diverged"
    assert report["failed"] == {"knn of pretrained": reason, "knn of random_init": reason}
    assert "knn_top1" in report["results"]["raw_input"] and report["collapse"]["collapsed"]
    assert capsys.readouterr().err == ""
    json.dumps(report, allow_nan=False)


def test_a_class_with_few_samples_costs_the_few_shot_probe_only() -> None:
    module, data = build("configs/digits/simclr.yaml")
    bank: Any = data.dataset("bank")
    few = np.flatnonzero(bank.labels == 3)[2:]
    bank.labels[few] = -1
    reason = "class '3' has 2 labeled training samples, but 5 per class are needed"
    assert foreseen_obstacles(data) == {"fewshot": reason}
    report = evaluate(module, module, data, "x.ckpt")
    assert report["left_out"] == {"fewshot": reason} and report["failed"] == {}
    assert set(report["results"]["pretrained"]) == {"linear_top1", "linear_macro", "knn_top1", "knn_macro"}
    assert "fewshot_shots" not in report["protocol"]
    assert shown(report).endswith(f"left out: fewshot: {reason}\n")


def test_a_split_without_labels_leaves_out_every_probe() -> None:
    module, data = build("configs/digits/simclr.yaml")
    test: Any = data.dataset("test")
    test.labels[:] = -1
    reason = "no sample of the split test has a label"
    expected = {name: reason for name in ("linear", "knn", "fewshot")}
    assert foreseen_obstacles(data) == expected
    report = evaluate(module, module, data, "x.ckpt")
    assert report["left_out"] == expected and report["failed"] == {} and "majority_share" not in report
    assert set(report["results"]["pretrained"]) == set()


def test_a_report_is_complete_unless_something_failed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert not is_complete(path)
    for text, expected in (
        ('{"results": {}}', True),  # schema 1
        ('{"results": {}, "failed": {}}', True),
        ('{"results": {}, "failed": {"knn of pretrained": "RuntimeError"}}', False),
        ("[]", False),
        ("{", False),
    ):
        path.write_text(text)
        assert is_complete(path) is expected


def test_the_table_of_accuracies() -> None:
    report = {
        "method": "SimCLR",
        "data": "Digits",
        "majority_share": 0.125,
        "results": {
            "pretrained": {
                "linear_top1": 0.5,
                "linear_macro": 0.25,
                "fewshot_top1": 1,
                "fewshot_top1_std": 0.1,
            },
            "raw_input": {"fewshot_top1": 0.75},
        },
        "left_out": {},
        "failed": {},
    }
    cells = [[cell.strip() for cell in line.split("\u2502")][1:-1] for line in shown(report).splitlines()]
    assert [row for row in cells if row] == [
        ["pretrained", "0.500", "0.250", "1.000"],
        ["raw_input", "-", "-", "0.750"],
    ]
    assert shown(report).endswith("the most common class has 12.5% of the test split\n")
