"""Heads on frozen features: against heads trained one by one, on tokens that are padding, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from datamodules.errors import ConfigError
from evaluation import head_probe
from evaluation.features import Means
from evaluation.head_probe import Frozen, head_scores, train_heads
from sslmodules import SimCLR
from sslmodules.networks import WrappedEncoder
from sslmodules.networks.classifier import make_head
from tests.commands.calls import error_of, evaluate
from tests.commands.conftest import run  # noqa: F401  a fixture
from tests.conftest import build

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps and two rates."""
    for name, value in {"RATES": (1e-3, 1e-2), "EPOCHS": 1, "FEWEST_STEPS": 10}.items():
        monkeypatch.setattr(head_probe, name, value)


def few(data: Any, count: int) -> None:
    """The same samples as every split."""
    data.setup("test")
    samples = Subset(data.dataset("val"), range(count))
    data.dataset = lambda split: samples


def marked_tokens(seed: int) -> Frozen:
    """One of six tokens, in any place, tells the class; the last two are padding that tells another class."""
    generator = torch.Generator().manual_seed(seed)
    h = 0.1 * torch.randn(256, 6, 8, generator=generator)
    labels = torch.randint(3, (256,), generator=generator)
    place = torch.randint(4, (256,), generator=generator)
    rows = torch.arange(256)
    h[rows, place, labels] += 3
    h[:, 4:, 3] += 3
    h[rows, 4, (labels + 1) % 3] += 9
    valid = torch.ones(256, 6, dtype=torch.bool)
    valid[:, 4:] = False
    return Frozen(h, valid, labels)


def test_heads_trained_at_once_are_those_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = marked_tokens(0)
    torch.manual_seed(0)
    head = make_head("attentive", 8, 3)

    def trained() -> list[dict[str, Tensor]]:
        torch.manual_seed(1)
        return [h.state_dict() for h in train_heads(head, bank)]

    both = trained()
    for number, rate in enumerate((1e-3, 1e-2)):
        monkeypatch.setattr(head_probe, "RATES", (rate,))
        (one,) = trained()
        assert all(torch.equal(value, both[number][name]) for name, value in one.items())


def test_a_query_finds_the_token_that_tells_the_class_and_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_probe, "FEWEST_STEPS", 100)
    torch.manual_seed(0)
    head = train_heads(make_head("attentive", 8, 3), marked_tokens(0))[1]
    other = marked_tokens(1)
    scores = head_probe._predict(head, other)
    assert (scores.argmax(1) == other.labels).float().mean() > 0.98
    other.h[:, 4:] = 100.0
    assert torch.equal(head_probe._predict(head, other), scores)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("configs/digits/simclr.yaml", "linear"),
        ("configs/digits/mae.yaml", "mlp"),
        ("configs/digits/inpainting.yaml", "attentive"),
        ("configs/tones/apc.yaml", "attentive"),
    ],
)
def test_every_kind_of_encoder(config: str, kind: Any) -> None:
    """The same numbers twice; neither the encoder nor the global random state change."""
    module, data = build(config)
    module.eval()
    few(data, 60)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    first = head_scores(kind, module, data, CPU, Means(), 3)
    assert first == head_scores(kind, module, data, CPU, Means(), 3)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.feature_encoder.parameters())
    assert first["val_top1"][str(first["lr"])] == max(first["val_top1"].values())
    assert first["samples"] == len(data.dataset("bank"))  # type: ignore[arg-type]


def test_pixels_are_tokens_and_a_vector_has_none() -> None:
    module, data = build("configs/digits/gpt.yaml")
    few(data, 20)
    found = head_probe._extract("attentive", module.eval(), data, CPU, Means())
    assert found["test"].h.shape == (20, 64, 64) and found["test"].valid is not None
    vector = WrappedEncoder(torch.nn.Flatten(), 64)
    with pytest.raises(ConfigError) as told:
        head_scores("attentive", SimCLR(vector, optimizer=torch.optim.SGD), data, CPU, Means(), 0)
    assert str(told.value) == (
        "head attentive needs an encoder with tokens or positions, but WrappedEncoder gives one vector: "
        "choose another"
    )


def test_padded_frames_are_no_positions() -> None:
    """The synthetic clips have from a half of their length up to the whole."""
    module, data = build("configs/tones/audio_mae.yaml")
    few(data, 20)
    valid = head_probe._extract("attentive", module.eval(), data, CPU, Means())["test"].valid
    assert valid is not None and 0.5 < valid.float().mean() < 1


def test_a_split_without_labels() -> None:
    module, data = build("configs/digits/simclr.yaml")
    data.setup("test")
    dataset: Any = data.dataset("val")
    dataset.labels[:] = -1
    for kind in ("linear", "attentive"):
        with pytest.raises(ConfigError, match=r"^--head: no sample of the split val has a label$"):
            head_scores(kind, module.eval(), data, CPU, Means(), 0)  # type: ignore[arg-type]


def test_the_command_adds_to_the_results_and_they_are_kept(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    results = copy / "results.json"
    assert evaluate("probe", copy, "--head", "attentive") == 0
    lines = capsys.readouterr().out.splitlines()
    added = json.loads(results.read_text())
    found = added.pop("head_attentive")
    assert added == json.loads((run / "results.json").read_text())
    assert list(found) == ["pretrained", "random_init", "protocol", "weights"]
    assert lines == [
        *(
            f"attentive head on test, {name}: top-1 {found[name]['top1']:.3f}, macro "
            f"{found[name]['macro']:.3f}, with a rate of {found[name]['lr']:g}"
            for name in ("pretrained", "random_init")
        ),
        f"added to {results}: head_attentive",
    ]
    assert found["protocol"] == {
        "features": "tokens or positions of the encoder, after a layer norm; of the clean input, eval mode, "
        "frozen",
        "optimizer": "AdamW, weight decay 0.01, a twentieth of the steps warm-up, then a cosine to 0",
        "rates": [0.001, 0.01],
        "batch": 256,
        "steps": 10,
        "selection_split": "val",
        "reported_split": "test",
        "seed": 0,
    }
    assert evaluate("probe", copy, "--probes", "knn") == 0
    assert json.loads(results.read_text())["head_attentive"] == found
    results.write_text(json.dumps(added | {"head_attentive": found | {"weights": "of another network"}}))
    assert evaluate("probe", copy, "--probes", "knn") == 0
    assert "head_attentive" not in json.loads(results.read_text())
    results.unlink()
    expected = f"--head mlp adds to {results}, which is missing: run eval.py probe without it first"
    assert error_of(capsys, "probe", copy, "--head", "mlp") == f"error: {expected}\n"
