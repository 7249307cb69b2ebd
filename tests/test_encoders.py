"""Every method with every kind of encoder: a step of training and of validation, or a refusal that says
why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from evaluation.media import ImageGrid
from sslmodules import methods
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
REFUSED = {
    ("MAE", "ConvEncoder"): "visible patches alone",
    ("MAE", "ResNetEncoder"): "visible patches alone",
    (
        "MAE",
        "resnet10t",
    ): "image_size is for ViTs",  # of the config; without it the words are those of the other encoders
    ("MAE", "vit_tiny_patch16_224"): "visible patches alone",
}


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
    if method == "MAE":
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
    if why := REFUSED.get((method, encoder)):
        with pytest.raises(Exception, match=why):
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
