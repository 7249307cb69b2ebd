"""Every method with every kind of encoder: a step of training and of validation, or an error that explains
why.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback
from torch import nn

import train
from datamodules.errors import ConfigError
from evaluation.samples import ImageGrid
from runtime.checkpoints import load_module
from runtime.discovery import ROOT, below, find_class
from runtime.names import resolve
from sslmodules import methods
from sslmodules.networks import ConvEncoder, Encoder, TimmEncoder, ViTEncoder, WrappedEncoder, timm_encoder
from sslmodules.networks.encoder import FrameEncoder, MapEncoder, require
from tests.conftest import build, trainer_for

#: Options of an encoder for images of 32 pixels, its width, and the side of its feature map.
ENCODERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "ConvEncoder": ({"channels": "[16,32]"}, 32, 16),
    "ResNetEncoder": ({"stem": "cifar"}, 512, 4),
    "ViTEncoder": ({"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}, 48, 4),
    "resnet10t": ({}, 512, 1),
    "vit_tiny_patch16_224": ({"image_size": 32, "patch_size": 8}, 192, 4),
}
CIFAR10 = Path(__file__).parent.parent / "configs" / "cifar10"
#: Methods of images: those that have a config for 32x32 pixels in color.
METHODS = [
    name
    for name, cls in sorted(methods().items())
    if (CIFAR10 / f"{cls.__module__.rpartition('.')[2]}.yaml").is_file()
]
#: Of some patches without the others, which only one kind of encoder can take.
OF_PATCHES = ("IJEPA", "MAE")


def options(method: str, encoder: str) -> list[str]:
    knobs, width, side = ENCODERS[encoder]
    chosen = ["--data.batch_size", "16", "--model.encoder", encoder]
    for knob, value in knobs.items():
        chosen += [f"--model.encoder.init_args.{knob}", str(value)]
    if method == "Inpainting":  # the mask is one channel more
        chosen += ["--model.encoder.init_args.in_channels", "4"]
        chosen += [
            "--model.decoder.init_args.in_channels",
            str(width),
            "--model.decoder.init_args.map_size",
            str(side),
        ]
    if method == "Autoencoder":
        chosen += ["--model.decoder.init_args.in_features", str(width)]
    if method == "VAE":
        chosen += ["--model.decoder.init_args.in_features", "128"]
    if method in OF_PATCHES:
        chosen += ["--data.views.init_args.patch_size", "8"]
    return chosen


class Learning(Callback):
    """Which parameters of the encoder had a gradient in any step."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.names |= {
            name for name, p in pl_module.encoder.named_parameters() if p.grad is not None and p.grad.any()
        }


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_with_each_kind_of_encoder(method: str, encoder: str, tmp_path: Path) -> None:
    config = f"configs/cifar10/{methods()[method].__module__.rpartition('.')[2]}.yaml"
    if method in OF_PATCHES and encoder != "ViTEncoder":
        with pytest.raises(Exception, match=f"unknown PatchEncoder class '{encoder}'.*; known: ViTEncoder"):
            build(config, *options(method, encoder))
        return
    module, data = build(config, *options(method, encoder))
    assert module.encoder.num_features == ENCODERS[encoder][1]
    learning = Learning()
    callbacks = [learning, ImageGrid(num_samples=2)]
    # a second step: in the first, what lies behind a norm that starts at zero has no gradient
    trainer = trainer_for(
        tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=1, callbacks=callbacks
    )
    trainer.fit(module, data)
    assert (
        trainer.callback_metrics["train/loss"].isfinite() and trainer.callback_metrics["val/loss"].isfinite()
    )
    assert not {name for name, p in module.encoder.named_parameters() if p.requires_grad} - learning.names


# -------------------- what an encoder is

#: A class of torchvision that takes a class, and the line of CONTRIBUTING.md.
WRAPPED = [
    "{class_path: WrappedEncoder, init_args: {net: {class_path: torchvision.models.ResNet, init_args: "
    "{block: torchvision.models.resnet.BasicBlock, layers: [1, 1, 1, 1], num_classes: 64}}, "
    "num_features: 64}}",
    *re.findall("^encoder: (.*WrappedEncoder.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE),
]


@pytest.mark.parametrize("encoder", WRAPPED)
def test_any_torch_module_is_wrapped_from_the_command_line(encoder: str, tmp_path: Path) -> None:
    """Trained, stored and loaded again."""
    (tmp_path / "wrapped.yaml").write_text(f"model: {{init_args: {{encoder: {encoder}}}}}")
    config = str(ROOT / "configs" / "cifar10" / "simclr.yaml")
    command = ["--config", config, "--config", str(tmp_path / "wrapped.yaml")]
    command += ["--data.synthetic", "true", "--data.batch_size", "4", "--evaluate", "false"]
    command += ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert train.main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    loaded = load_module(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert isinstance(loaded.encoder, WrappedEncoder)
    assert loaded.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_a_wrapped_network_gives_what_it_promises() -> None:
    assert WrappedEncoder(nn.Conv2d(1, 2, 3), 8)(torch.zeros(5, 1, 4, 4)).shape == (5, 8)
    with pytest.raises(ConfigError, match=r"^num_features must be at least 1, got 0$"):
        WrappedEncoder(nn.Linear(4, 3), 0)
    with pytest.raises(ConfigError, match=r"the output width of Linear \(3\), got 2$"):
        WrappedEncoder(nn.Linear(4, 3), 2)(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision.models.MobileNetV2",
            "encoder: 'torchvision.models.MobileNetV2' is not an encoder; known: {known}; or wrap it: "
            "{{class_path: WrappedEncoder, init_args: "
            "{{net: torchvision.models.MobileNetV2, num_features: D}}}}",
        ),
        (
            "Encoder",  # a base class
            "encoder: unknown encoder 'Encoder' (did you mean 'ViTEncoder'?); known: {known}, or the name of "
            "a timm model",
        ),
    ],
)
def test_what_is_not_an_encoder_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(name, Encoder, "encoder")
    assert str(refused.value) == message.format(known=", ".join(below(["Encoder"])))


def test_encoders_are_found_by_type() -> None:
    """Base classes are not among them, and a method that needs more names those that have it."""
    assert {"ConvEncoder", "TimmEncoder", "WrappedEncoder", "GPTEncoder"} <= set(below(["Encoder"]))
    assert not {"Encoder", "MapEncoder", "PatchEncoder", "SequenceEncoder"} & set(below(["Encoder"]))
    assert below(["PatchEncoder"]) == ["ViTEncoder"]
    require(ViTEncoder(8, 4, 1, 8, 1, 1), MapEncoder)
    with pytest.raises(ConfigError) as refused:
        require(ConvEncoder(), FrameEncoder)
    assert str(refused.value) == (
        "encoder must be a causal network over audio frames (FrameEncoder: GRUFrames, TransformerFrames), "
        "got ConvEncoder"
    )


@pytest.mark.parametrize(
    ("name", "options", "sample"),
    [
        ("BertEncoder", {"vocab_size": 9, "width": 8, "depth": 1, "heads": 2}, torch.ones(5).long()),
        ("ConvEncoder", {"in_channels": 1}, torch.zeros(1, 8, 8)),
        ("DCGANDiscriminator", {"in_channels": 1, "image_size": 8, "channels": [4, 8]}, torch.zeros(1, 8, 8)),
        ("GPTEncoder", {"vocab_size": 9, "width": 8, "depth": 1, "heads": 2}, torch.ones(5).long()),
        ("GRUFrames", {"in_features": 3, "width": 8}, torch.zeros(5, 3)),
        ("MLPEncoder", {"in_features": 64}, torch.zeros(1, 8, 8)),
        ("RecurrentEncoder", {"vocab_size": 9, "width": 8}, torch.ones(5).long()),
        ("ResNetEncoder", {}, torch.zeros(3, 32, 32)),
        ("TimmEncoder", {"name": "resnet10t", "in_channels": 1}, torch.zeros(1, 32, 32)),
        ("TransformerFrames", {"in_features": 3, "width": 8, "heads": 2}, torch.zeros(5, 3)),
        ("ViTEncoder", {"image_size": 8, "patch_size": 4, "width": 8, "heads": 2}, torch.zeros(3, 8, 8)),
        ("WrappedEncoder", {"net": nn.Flatten(), "num_features": 4}, torch.zeros(1, 2, 2)),
    ],
)
def test_features_have_the_promised_width(name: str, options: dict[str, Any], sample: torch.Tensor) -> None:
    cls = find_class(name)
    assert cls is not None
    net = cls(**options).eval()
    assert isinstance(net, Encoder) and net(torch.stack([sample] * 2)).shape == (2, net.num_features)


def test_published_weights_without_a_network_end_in_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm itself tries for a minute or two."""
    unreachable = socket.gaierror(-2, "Name or service not known")
    asked = pytest.fail.Exception("timm was asked")
    monkeypatch.setattr(timm_encoder, "getproxies", dict)
    monkeypatch.setattr(timm_encoder, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(timm_encoder.socket, "create_connection", Mock(side_effect=unreachable))
    monkeypatch.setattr(timm_encoder.timm, "create_model", Mock(side_effect=asked))
    words = ["--config", "configs/digits/simclr.yaml", "--run_dir", str(tmp_path / "r")]
    assert train.main([*words, "--model.encoder", "resnet10t", "--model.encoder.pretrained", "true"]) == 2
    assert capsys.readouterr().err == (
        "error: model.encoder.pretrained: the weights of 'resnet10t' are not on this machine, and "
        "huggingface.co cannot be reached (Name or service not known): give pretrained false, download them "
        "once with a network, or copy https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/"
        "model.safetensors here and give --init_from FILE\n"
    )


def test_weights_that_are_here_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pytest.fail.Exception("the network was asked")
    monkeypatch.setattr(timm_encoder, "try_to_load_from_cache", lambda *args: "model.safetensors")
    monkeypatch.setattr(timm_encoder.socket, "create_connection", Mock(side_effect=asked))
    timm_encoder.check_weights("resnet10t")


def test_weights_that_do_not_exist() -> None:
    published = "^pretrained must be false: timm has published no weights of 'botnet50ts_256'$"
    with pytest.raises(ConfigError, match=published):
        TimmEncoder("botnet50ts_256", pretrained=True)
    with pytest.raises(
        ConfigError, match=r"^name 'resnet10t\.x': Invalid pretrained tag \(x\) for resnet10t"
    ):
        TimmEncoder("resnet10t.x")
