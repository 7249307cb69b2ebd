"""Exported networks give the run's features, loaded by the code in their model card."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import eval as script
import train
from evaluation.commands.formats import _classifier, example_input
from runtime.checkpoints import load_module, read_checkpoint
from runtime.discovery import first_paragraph
from runtime.messages import ROOT
from runtime.saved_run import build_data
from sslmodules import FineTune, SimCLR
from sslmodules.networks import TimmEncoder
from tests.conftest import TORCH_2_6

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
#: Seen with torch 2.6: it cannot trace all networks for any batch, and its ONNX converter does not fit the
#: onnxscript of today.
needs_tracing = pytest.mark.skipif(TORCH_2_6, reason="torch 2.6 cannot trace or convert it")

RESNET = ["--model.encoder=ResNetEncoder", "--model.encoder.in_channels=1", "--model.encoder.stem=cifar"]
TIMM = ["--model.encoder=vit_tiny_patch16_224", "--model.encoder.image_size=8"]
TIMM += ["--model.encoder.patch_size=4", "--model.encoder.in_channels=1"]
RUNS = {
    "conv": ("digits/simclr", []),
    "resnet": ("digits/simclr", RESNET),
    "timm": ("digits/simclr", TIMM),
    "vit": ("digits/mae", []),
    "dino": ("digits/dino", []),
    "audio": ("tones/apc", []),
    "pixels": ("digits/gpt", []),
    "tuned": ("digits/finetune", ["--model.head=mlp", "--model.ema=0.5"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one step for each name, made when it is asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def made(name: str) -> Path:
        config, options = RUNS[name]
        run = folder / name
        if not run.exists():
            given = ["--config", str(ROOT / f"configs/{config}.yaml"), f"--run_dir={run}", *options]
            given += ["--data.synthetic=true", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
            given += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--evaluate=false"]
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("SSL_RUN_DIR", raising=False)
                assert train.main([*given, "--data.batch_size=16"]) == 0
        return run

    return made


def export(run: Path, folder: Path, *options: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """What the snippet loads, an input, and the run's features of it."""
    assert script.main(["export", str(run), str(folder), "--data.synthetic=true", *options]) == 0
    checkpoint = run / "checkpoints" / "last.ckpt"
    data = build_data(dict(read_checkpoint(checkpoint)["datamodule_hyper_parameters"]), [])
    x = example_input(data, 5)
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("\n```")[0]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(folder)
        exec(code, names)
        return names["model"], x, load_module(checkpoint).embed(x)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("conv", "sslmodules"),
        ("resnet", "torchvision"),
        pytest.param("timm", "timm", marks=pytest.mark.slow),
        ("vit", "timm"),
        pytest.param("dino", "sslmodules", marks=pytest.mark.slow),
    ],
)
def test_safetensors_load_where_the_snippet_names(name: str, library: str, runs: Any, tmp_path: Path) -> None:
    model, x, expected = export(runs(name), tmp_path / "out")
    assert type(model).__module__.startswith(library)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["README.md", "model.safetensors", "preprocess.json"]


TRACED = [(name, form) for name in ("conv", "vit", "audio", "pixels") for form in ("pt2", "onnx")]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[*([needs_onnx] if form == "onnx" else []), pytest.mark.slow])
        if (name, form) != ("vit", "pt2")
        else (name, form)
        for name, form in TRACED
    ],
)
@needs_tracing
def test_traced_networks_take_any_number_of_samples(
    name: str, form: str, runs: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, x, expected = export(runs(name), tmp_path / "out", f"--format={form}")
    assert [told for told in recwarn if "No complete tensor" in str(told.message)] == []
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(model(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_run_begins_from_an_export(runs: Any, tmp_path: Path) -> None:
    from runtime.initial_weights import read_weights, start_from
    from tests.conftest import build

    export(runs("vit"), tmp_path / "out")
    module, _ = build("configs/digits/mae.yaml", seed=7)
    started = start_from(module, read_weights(str(tmp_path / "out")))
    assert (started.loaded, started.new, started.left) == (54, [], [])


def test_what_a_sample_has_to_look_like(runs: Any, tmp_path: Path) -> None:
    export(runs("conv"), tmp_path / "image")
    assert json.loads((tmp_path / "image/preprocess.json").read_text()) == {
        "num_features": 128,
        "kind": "image",
        "input": "(B, channels, height, width) float32: pixels in [0, 1], minus mean, divided by std",
        "channels": 1,
        "height": 8,
        "width": 8,
        "resize_shorter_side": 9,
        "crop": "center",
        "interpolation": "bilinear, antialiased",
        "mean": [0.3064],
        "std": [0.3767],
        "image_size": 8,
    }
    export(runs("audio"), tmp_path / "audio")
    sound = json.loads((tmp_path / "audio/preprocess.json").read_text())
    assert (sound["kind"], sound["sample_rate"], sound["num_mels"]) == ("audio", 8000, 40)
    assert len(sound["mean"]) == len(sound["std"]) == 40


def test_the_model_card_tells_method_results_and_license(runs: Any, tmp_path: Path) -> None:
    run = runs("conv")
    assert script.main(["probe", str(run), "--probes=knn", "--data.synthetic=true"]) == 0
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for expected in ("# SimCLR on Digits", "Apache-2.0", "Commit ", "torch 2."):
        assert expected in card
    assert card.split("\n\n")[1:3] == [
        "An encoder with 128 features, trained with SimCLR on Digits. Checkpoint: "
        f"`{run / 'checkpoints/last.ckpt'}`.",
        first_paragraph(SimCLR.__doc__),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format=hf"],
            "--format hf writes text networks (BertEncoder, GPTEncoder), but this run's is Conv",
        ),
        (["--format=tf"], "--format must be one of safetensors, onnx, pt2, hf, got 'tf'"),
    ],
)
def test_what_cannot_be_exported(
    options: list[str], message: str, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["export", str(runs("conv")), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_onnx_without_its_libraries(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "evaluation.commands.formats.find_spec"
    monkeypatch.setattr(name, lambda library: None if library == "onnxruntime" else library)
    assert script.main(["export", str(runs("conv")), str(tmp_path / "out"), "--format=onnx"]) == 2
    line = "error: --format onnx needs onnxruntime: pip install 'lightning-ssl[export]'\n"
    assert capsys.readouterr().err == line


def test_another_network_than_the_runs_is_not_written(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SimpleNamespace(module=lambda: lambda x: torch.zeros(len(x), 128))
    monkeypatch.setattr("torch.export.load", lambda file: other)
    assert script.main(["export", str(runs("conv")), str(tmp_path / "out"), "--format=pt2"]) == 2
    assert "features of the exported network differ from the run's by up to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def scores_of(run: Path, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_module(run / "checkpoints" / "last.ckpt").classify(x)


def test_the_classifier_of_a_fine_tuned_run_is_beside_its_encoder(runs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    model, x, features = export(runs("tuned"), folder)
    names: dict[str, Any] = {}
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("\n```")[0]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(folder)
        exec(code, names)
        torch.testing.assert_close(names["classifier"](model(x)), scores_of(runs("tuned"), x))
        torch.testing.assert_close(model(x), features)
    assert json.loads((folder / "preprocess.json").read_text())["classes"] == list("0123456789")
    assert "`classifier` computes from them the scores of the classes" in (folder / "README.md").read_text()


def test_an_attentive_classifier_is_as_wide_as_the_tokens(tmp_path: Path) -> None:
    """Which for a MobileNet are narrower than its features."""
    encoder = TimmEncoder("mobilenetv3_small_050")
    module = FineTune(encoder, 3, head="attentive", optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).eval()
    code = _classifier(SimpleNamespace(module=module), tmp_path)  # type: ignore[arg-type]
    names: dict[str, Any] = {}
    x = torch.randn(2, 3, 32, 32)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(tmp_path)
        exec(code, names)
        torch.testing.assert_close(names["classifier"](*encoder.tokens(x)), module.classify(x))


@pytest.mark.parametrize(
    "name", ["pt2", pytest.param("onnx", marks=[needs_onnx, needs_tracing, pytest.mark.slow])]
)
def test_a_traced_fine_tuned_run_gives_features_and_scores(runs: Any, tmp_path: Path, name: str) -> None:
    model, x, expected = export(runs("tuned"), tmp_path / "out", "--format", name)
    with torch.no_grad():
        features, scores = map(torch.as_tensor, model(x))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, scores_of(runs("tuned"), x), rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_be_converted_is_one_line(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*args: Any, **kwargs: Any) -> None:
        raise torch.onnx.OnnxExporterError("Failed to convert the exported program.\n## Exception summary")

    monkeypatch.setattr(torch.onnx, "export", refuses)
    monkeypatch.setattr("evaluation.commands.formats.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    arguments = ["export", str(runs("vit")), str(tmp_path / "out"), "--data.synthetic=true", "--format=onnx"]
    assert script.main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: --format onnx: torch {torch.__version__} cannot export MAE.embed (Failed to convert the "
        "exported program.): use --format safetensors\n"
    )
    assert not (tmp_path / "out").exists()
