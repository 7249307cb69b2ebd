"""The linear probe by SGD: against heads trained one by one and the formula, resumed, and its command."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datamodules import Digits, ImageFolder
from datamodules.errors import ConfigError
from evaluation import sgd_probe
from evaluation.features import Means
from evaluation.sgd_probe import RandomCrops, SGDProbe, check_data, train_and_count
from runtime.messages import ROOT
from tests import pair
from tests.commands.calls import error_of, evaluate
from tests.commands.conftest import run  # noqa: F401  a fixture
from tests.conftest import build

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of four steps, three rates."""
    for name, value in {"RATES": (0.1, 1.0, 10.0), "EPOCHS": 2, "FEWEST_STEPS": 8, "SAVES": 2}.items():
        monkeypatch.setattr(sgd_probe, name, value)


def trained(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The scores on 512 synthetic images, and the heads."""
    kept: list[SGDProbe] = []
    real = SGDProbe.__init__

    def keep(self: SGDProbe, *arguments: Any) -> None:
        real(self, *arguments)
        kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SGDProbe, "__init__", keep)
        module, _ = build("configs/digits/simclr.yaml")
        before = {k: v.clone() for k, v in module.state_dict().items()}
        data = Digits(batch_size=128, synthetic=True)
        scores = train_and_count(module, data, CPU, Means(), folder / "sgd.ckpt", seed=3)
    assert scores is not None and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    return scores, kept[0].state_dict()


@pytest.mark.usefixtures("short")
def test_heads_trained_at_once_are_those_trained_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, heads = trained(tmp_path / "all")
    assert scores["protocol"]["steps"] == 8 and scores["protocol"]["batch"] == 128
    for number, rate in enumerate((0.1, 1.0, 10.0)):
        monkeypatch.setattr(sgd_probe, "RATES", (rate,))
        one, head = trained(tmp_path / str(rate))
        assert one["val_top1"] == {str(rate): scores["val_top1"][str(rate)]}
        assert torch.equal(head["heads.0.weight"], heads[f"heads.{number}.weight"])


@pytest.mark.usefixtures("short")
def test_a_step_is_that_of_the_formula(tmp_path: Path) -> None:
    """w - rate * batch / 256 * gradient, times the cosine, with momentum 0.9; unlabeled samples left out."""
    module, _ = build("configs/digits/simclr.yaml")
    probe = SGDProbe(module, Digits(batch_size=64, synthetic=True), Means(), tmp_path / "x", seed=0)
    probe._trainer = type("Two", (), {"world_size": 2, "estimated_stepping_batches": 4})()
    both = probe.configure_optimizers()
    optimizer, schedule = both["optimizer"], both["lr_scheduler"]["scheduler"]
    weight = probe.heads[1].weight.detach().clone()
    velocity = torch.zeros_like(weight)
    for step in range(2):
        x, label = torch.randn(8, 1, 8, 8), torch.arange(8) - 1
        with torch.no_grad():
            h = module.embed(x)
            p = (h[1:] @ weight.T + (probe.heads[1].bias if step else 0)).softmax(1)
            gradient = (p - F.one_hot(label[1:], 10)).T @ h[1:] / 7
        velocity = 0.9 * velocity + gradient
        weight = weight - 1.0 * 128 / 256 * 0.5 * (1 + math.cos(math.pi * step / 4)) * velocity
        optimizer.zero_grad()
        probe.training_step({"views": [x], "label": label}, step).backward()
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(probe.heads[1].weight.detach(), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_training_that_was_ended_goes_on_to_the_same_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, heads = trained(tmp_path / "whole")
    real = SGDProbe.training_step
    steps: list[int] = []

    def ended(self: SGDProbe, batch: dict[str, Any], batch_idx: int) -> Tensor:
        steps.append(batch_idx)
        if len(steps) == 6:
            raise RuntimeError("killed")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(SGDProbe, "training_step", ended)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "half")
    resumed, same = trained(tmp_path / "half")
    assert steps == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]  # of the second epoch
    assert resumed == whole and all(torch.equal(v, heads[k]) for k, v in same.items())
    monkeypatch.setattr(sgd_probe, "RATES", (0.1,))  # another training: nothing of this one counts
    trained(tmp_path / "half")
    assert len(steps) == 10 + 8


@pytest.mark.usefixtures("short")
def test_the_command_adds_to_the_results_and_they_are_kept(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    results = copy / "results.json"
    assert evaluate("probe", copy, "--protocol", "sgd") == 0
    line = capsys.readouterr().out.splitlines()[-2]
    added = json.loads(results.read_text())
    scores = added.pop("sgd_probe")
    assert added == json.loads((run / "results.json").read_text())
    assert line == (
        f"SGD probe on test: top-1 {scores['top1']:.3f}, macro {scores['macro']:.3f}, with a rate of "
        f"{scores['lr']:g} for 256 samples, chosen on val"
    )
    assert scores["val_top1"][str(scores["lr"])] == max(scores["val_top1"].values())
    assert not list(copy.glob(".sgd_probe*"))
    assert evaluate("probe", copy, "--probes", "knn") == 0
    assert json.loads(results.read_text())["sgd_probe"] == scores
    results.unlink()
    expected = f"--protocol sgd adds to {results}, which is missing: run eval.py probe without it first"
    assert error_of(capsys, "probe", copy, "--protocol", "sgd") == f"error: {expected}\n"
    both = error_of(capsys, "probe", copy, "--protocol", "sgd", "--probes", "knn")
    assert both == "error: --protocol sgd does not use --probes, --measures or --layers: leave them out\n"


def test_it_needs_labeled_images_and_a_whole_batch(tmp_path: Path) -> None:
    _, text = build("configs/text/bert.yaml")
    with pytest.raises(
        ConfigError, match="crops of labeled images, which TextFiles does not have: leave it out"
    ):
        check_data(text)
    module, _ = build("configs/digits/simclr.yaml")
    data = Digits(batch_size=600, synthetic=True)
    with pytest.raises(ConfigError) as few:
        train_and_count(module, data, CPU, Means(), tmp_path / "x", 0)
    assert str(few.value) == (
        "Digits has 512 labeled training samples, fewer than one batch of 600 (batch_size 600 x 1 "
        "processes): give --data.batch_size 512 or less"
    )


def test_crops_are_torchvisions_random_resized_crop_and_flip() -> None:
    (view,) = RandomCrops(224).views
    assert (view.size, view.crop_scale, view.crop_ratio) == (224, (0.08, 1.0), (3 / 4, 4 / 3))
    drawn = view.draw(torch.zeros(64, 3, 32, 32), torch.Generator().manual_seed(0))
    assert sorted(drawn) == ["box", "flip"] and 20 < int(drawn["flip"].sum()) < 44


@pytest.mark.slow
def test_two_processes_train_one_probe(run: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = shutil.copytree(run, tmp_path / "copy")
    script = (
        "import sys, eval, evaluation.sgd_probe as s; s.FEWEST_STEPS = 20; "
        "sys.exit(eval.main(['probe', sys.argv[1], '--protocol', 'sgd', '--device', 'cpu']))"
    )
    command = [sys.executable, "-c", script, str(copy)]
    assert pair.wait(pair.start([command, command], tmp_path, ROOT), 240) == [0, 0], pair.said(tmp_path)
    protocol = json.loads((copy / "results.json").read_text())["sgd_probe"]["protocol"]
    assert protocol["batch"] % 2 == 0 and protocol["steps"] >= 20
    assert pair.said(tmp_path).count("SGD probe on test") == 1


def test_crops_are_cut_out_of_full_images_and_nothing_of_val_is_trained_on(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (50, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = ImageFolder(str(tmp_path / "images"), image_size=16, batch_size=8, train_on_val=True)
    module, _ = build("configs/digits/simclr.yaml")
    probe = SGDProbe(module, data, Means(), tmp_path / "x", 0)
    probe._trainer = type("One", (), {"training": True, "global_rank": 0, "world_size": 1})()
    probe.setup("fit")
    loader: Any = probe.train_dataloader()
    samples = loader.dataset.dataset
    assert set(map(os.fsdecode, samples.paths)) == set(data.files("bank"))
    assert not set(data.files("bank")) & set(data.files("val")) and samples.crops is not None
    assert samples.__getitems__([0, 1])["crops"][0].shape == (2, 1, 3, 16, 16)
    assert data.dataset("bank").crops is None  # type: ignore[attr-defined]
