"""``--init_from``: possible sources, what is reported, and rejected sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import eval as script
import train
from datamodules import TextFiles
from runtime.checkpoints import load_module, read_checkpoint
from runtime.initial_weights import give_vocabulary, read_weights, start_from
from runtime.messages import ROOT
from sslmodules import BYOL
from sslmodules.networks import ConvEncoder, ResNetEncoder, TimmEncoder, ViTEncoder
from tests.conftest import build

QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.batch_size=256"]
SHORT = ["--evaluate=false", "--trainer.limit_val_batches=0"]


def config(name: str) -> list[str]:
    return ["--config", str(ROOT / "configs" / f"{name}.yaml")]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def simclr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    run = tmp_path_factory.mktemp("runs") / "simclr"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        assert (
            train.main(
                [*config("digits/simclr"), *QUICK, *SHORT, "--trainer.max_epochs=1", f"--run_dir={run}"]
            )
            == 0
        )
    return run


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_run_of_the_same_method_goes_on_from_all_weights(
    simclr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate of 0 leaves them unchanged; the results name the source, and random stays random."""
    options = [*config("digits/simclr"), *QUICK, "--trainer.max_epochs=1", f"--init_from={simclr}"]
    still = ["--model.optimizer.lr=0", "--run_dir=next"]
    assert train.main([*options, *still]) == 0
    file = simclr / "checkpoints" / "last.ckpt"
    said = f"SimCLR: 29 of 29 tensors from {file} (SimCLR, step 4); new: nothing; left: nothing"
    assert said in capsys.readouterr().out.splitlines()
    before, after = weights(simclr), weights(tmp_path / "next")
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    record = {"source": str(file), "method": "SimCLR", "step": 4, "part": "SimCLR", "loaded": 29}
    record |= {"new": [], "left": [], "others": []}
    assert json.loads((tmp_path / "next/environment.json").read_text())["init_from"] == record
    results = json.loads((tmp_path / "next/results.json").read_text())
    assert results["init_from"] == record
    assert script.main(["probe", "next", "--probes=knn"]) == 0
    again = json.loads((tmp_path / "next/results.json").read_text())
    assert again["init_from"] == record
    scores = again["results"]
    assert scores["random_init"]["knn_top1"] == results["results"]["random_init"]["knn_top1"]
    assert scores["random_init"]["knn_top1"] != scores["pretrained"]["knn_top1"]


def test_a_resumed_run_needs_its_source_no_more(simclr: Path, tmp_path: Path) -> None:
    """And ends as one that was not interrupted, bit for bit."""
    source = tmp_path / "source"
    shutil.copytree(simclr, source)
    options = [*config("digits/byol"), *QUICK, *SHORT, "--trainer.max_epochs=2", f"--init_from={source}"]
    assert train.main([*options, "--run_dir=whole"]) == 0

    def interrupted(self: BYOL) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BYOL, "on_train_epoch_start", interrupted)
        assert train.main([*options, "--run_dir=parts"]) == 130
    shutil.rmtree(source)
    assert train.main([*options, "--run_dir=parts"]) == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_copy_of_the_encoder_begins_as_the_encoder(simclr: Path) -> None:
    module, _ = build("configs/digits/byol.yaml")
    started = start_from(module, read_weights(str(simclr)))
    assert started.others == ["projector", "predictor"]
    assert " (the encoder): 18 of 18 tensors from " in started.line()
    copied = module.teacher.net[0].state_dict()  # type: ignore[union-attr,index]
    assert all(torch.equal(value, copied[name]) for name, value in module.encoder.state_dict().items())
    assert torch.equal(copied["layers.0.weight"], weights(simclr)["encoder.layers.0.weight"])


def test_the_teacher_is_what_goes_on_where_it_is_what_is_evaluated(tmp_path: Path) -> None:
    arguments = [*config("digits/dino"), *QUICK, *SHORT, "--trainer.max_epochs=1", "--run_dir=dino"]
    assert train.main([*arguments, "--model.optimizer.lr=0.1"]) == 0
    module, _ = build("configs/digits/simclr.yaml")
    started = start_from(module, read_weights("dino"))
    state = weights(tmp_path / "dino")
    name = "layers.0.weight"
    assert torch.equal(module.encoder.state_dict()[name], state[f"teacher.net.0.{name}"])
    assert not torch.equal(module.encoder.state_dict()[name], state[f"encoder.{name}"])
    assert started.left == ["center", "projector", "teacher"]
    assert started.new == [] and started.others == ["projector"]
    assert "; new: projector; left: center, projector, teacher" in started.line()


def holding(encoder: torch.nn.Module) -> torch.nn.Module:
    """A method with this encoder."""
    module, _ = build("configs/digits/simclr.yaml")
    module.encoder = encoder.eval()  # type: ignore[assignment]
    return module


def test_files_of_torchvision_and_timm(tmp_path: Path) -> None:
    """Outputs equal the library's, and unused names are reported."""
    x = torch.randn(2, 3, 32, 32)
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save({"state_dict": {f"module.backbone.{k}": v for k, v in theirs.state_dict().items()}}, "tv.pth")
    module = holding(ResNetEncoder("resnet18"))
    started = start_from(module, read_weights("tv.pth"))
    assert (started.loaded, started.new) == (120, [])
    assert started.left == ["module.backbone.fc.weight", "module.backbone.fc.bias"]
    theirs.fc = torch.nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(module.encoder(x), theirs(x))

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5).eval()
    save_file(vit.state_dict(), "vit.safetensors")
    module = holding(TimmEncoder("vit_tiny_patch16_224", image_size=32, patch_size=8))
    assert start_from(module, read_weights("vit.safetensors")).left == ["head.bias", "head.weight"]
    torch.testing.assert_close(module.encoder(x), vit.forward_head(vit.forward_features(x), pre_logits=True))


def test_a_vit_of_timm_in_ours(tmp_path: Path) -> None:
    """It has no learned positions: they are reported as left, and its own as new."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    vit = timm.models.VisionTransformer(**options).eval()
    save_file(vit.state_dict(), "vit.safetensors")
    module = holding(ViTEncoder(32, 8, 3, 48, 2, 3))
    started = start_from(module, read_weights("vit.safetensors"))
    assert started.new == ["pos_embed"] and started.left == ["pos_embed"]
    with torch.no_grad():
        vit.pos_embed.copy_(module.encoder.published_state()["pos_embed"])
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(module.encoder(x), vit(x))


def test_what_does_not_fit(simclr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = simclr / "checkpoints" / "last.ckpt"
    options = [*QUICK, *SHORT, "--run_dir=new"]
    start = f"error: --init_from {file} matches"
    remedy = "Give the options of --model.encoder that the weights were trained with\n"
    wider = ["--model.encoder.channels=[32,64,256]", f"--init_from={simclr}"]
    assert error_of([*config("digits/simclr"), *options, *wider], capsys) == (
        f"{start} 13 of 18 tensors of ConvEncoder, but at least 90% are expected: layers.6.weight is "
        "(128, 64, 3, 3) there, (256, 64, 3, 3) here; layers.7.weight is (128,) there, (256,) here; "
        f"layers.7.bias is (128,) there, (256,) here; ... (5 in all). {remedy}"
    )
    error = error_of([*config("digits/mae"), *options, f"--init_from={simclr}"], capsys)
    assert (
        f"{start} 0 of 54 tensors of ViTEncoder" in error and "It contains encoder.layers.0.weight" in error
    )
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"step": 3}, "none.pth")
    torch.save({"weights": ConvEncoder()}, "code.pth")
    (tmp_path / "folder").mkdir()
    for name, expected in {
        "text.pth": "text.pth is not a file of weights, or contains more than tensors, which",
        "text.safetensors": "text.safetensors is not a safetensors file, or is damaged",
        "none.pth": "none.pth contains no weights: expected tensors by name",
        "code.pth": "code.pth is not a file of weights, or contains more than tensors",
        "absent": "--init_from absent does not exist: expected a run folder, a checkpoint, or a file",
        "": "--init_from '' does not exist: expected a run folder, a checkpoint, or a file",
        "folder": "folder contains no checkpoints/last.ckpt",
    }.items():
        assert expected in error_of([*config("digits/simclr"), *options, f"--init_from={name}"], capsys)
    assert not (tmp_path / "new").exists()


def test_a_longer_run_is_told_the_ways(simclr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = [*config("digits/simclr"), *QUICK, *SHORT, "--trainer.max_epochs=3", f"--run_dir={simclr}"]
    assert error_of(longer, capsys) == (
        f"error: --run_dir {simclr} contains a run of another length (trainer.max_epochs: 1 there, 3 now), "
        "whose learning-rate schedule cannot be extended. Continue from its weights with a new schedule: "
        f"--init_from {simclr} --run_dir NEW; or give the full length from the start and interrupt the run "
        "at any time: the same command resumes it\n"
    )


def test_text_goes_on_with_the_tokens_that_the_weights_know(tmp_path: Path) -> None:
    old, new = (TextFiles(root=None, length=16, synthetic=True) for _ in range(2))
    vocabulary = old.tokenizer.to_json().replace("ABC", "AEC")
    give_vocabulary(new, vocabulary)
    assert new.tokenizer.to_json() == vocabulary != old.tokenizer.to_json()
    with pytest.raises(ValueError, match=r"--data\.vocabulary differs from the vocabulary of --init_from"):
        give_vocabulary(old, vocabulary)


@pytest.mark.parametrize("name", ["text/gpt", "tones/apc", "digits/gpt"])
def test_other_kinds_of_data(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text, audio and sequences begin from a run as images do."""
    options = [*config(name), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *SHORT]
    options += ["--data.synthetic=true", "--trainer.max_steps=1", "--trainer.max_epochs=1"]
    assert train.main([*options, "--run_dir=first"]) == 0
    assert train.main([*options, "--run_dir=second", "--init_from=first", "--model.optimizer.lr=0"]) == 0
    assert "new: nothing; left: nothing" in capsys.readouterr().out
    one, two = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(one[k], two[k]) for k in one)
    load_module("second/checkpoints/last.ckpt")
