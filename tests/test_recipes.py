"""The configs for ImageNet beside the numbers of their sources: docs/recipes.md names file and line of each.

What is built is compared: optimizer, groups, schedule, momentum, views, numbers of parameters. Where a config
differs from its source, the number here is the config's own and docs/recipes.md lists the difference.
Networks are built without memory, on torch's ``meta`` device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from runtime.command_line import CheckedCommandLine
from runtime.messages import ROOT
from sslmodules.base import SSLModule
from sslmodules.networks import cosine_momentum
from sslmodules.optim import warmup_cosine
from tests.conftest import CONFIGS

RESNET50 = 25_557_032 - 2048 * 1000 - 1000  # torchvision's count without its classifier
VIT_S, VIT_B = (
    21_665_664,
    85_798_656 - 197 * 768,
)  # timm's counts without a classifier; MAE's positions are fixed


class Recipe(NamedTuple):
    """What a source says; learning rates by its own formula."""

    gpus: int  # which with the config's batch per GPU make the source's batch
    batch: int
    epochs: int
    lr: float
    optimizer: dict[str, Any]
    warmup: int = 0  # epochs
    final: float = 0.0  # learning rate at the end / the highest
    model: Mapping[str, Any] = MappingProxyType({})  # attributes of the method
    parameters: Mapping[str, int] = MappingProxyType({})  # trainable ones


LARS = {"momentum": 0.9, "trust": 0.001}
SGD = {"momentum": 0.9, "weight_decay": 1e-4}
RECIPES = {
    "simclr": Recipe(8, 2048, 100, 0.3 * 2048 / 256, {**LARS, "weight_decay": 1e-6}, 10,
                     model={"temperature": 0.1},
                     parameters={"encoder": RESNET50, "projector": 2048 * 2050 + 2049 * 128}),
    "moco": Recipe(8, 256, 200, 0.03, SGD,
                   model={"temperature": 0.2, "momentum": 0.999, "queue_size": 65536},
                   parameters={"encoder": RESNET50, "projector": 2048 * 2049 + 2049 * 128}),
    "byol": Recipe(8, 4096, 100, 0.45 * 4096 / 256, {**LARS, "weight_decay": 1e-6}, 10,
                   model={"momentum": 0.99}, parameters={"encoder": RESNET50}),
    "simsiam": Recipe(8, 512, 100, 0.05 * 512 / 256, SGD,
                      parameters={"encoder": RESNET50, "projector": 3 * 2048**2 + 4 * 2048,
                                  "predictor": 2048 * 512 + 2 * 512 + 512 * 2048 + 2048}),
    "barlow_twins": Recipe(8, 2048, 1000, 0.2 * 2048 / 256, {**LARS, "weight_decay": 1e-6 * 16}, 10, 0.001,
                           model={"bias_lr": 0.0048 * 2048 / 256 / 16},
                           parameters={"encoder": RESNET50, "projector": 8192 * (2048 + 2 * 8192 + 4)}),
    "vicreg": Recipe(8, 2048, 1000, 0.2 * 2048 / 256, {**LARS, "weight_decay": 1e-6}, 10, 0.001,
                     parameters={"encoder": RESNET50, "projector": 8192 * (2048 + 2 * 8192 + 4)}),
    "swav": Recipe(64, 4096, 800, 4.8, {**LARS, "weight_decay": 1e-6}, 10, 0.0048 / 4.8,
                   model={"temperature": 0.1, "freeze_prototypes_steps": 313, "queue_size": 0},
                   parameters={"encoder": RESNET50, "prototypes": 3000 * 128,
                               "projector": 2048 * 2048 + 2 * 2048 + 2049 * 128}),
    "dino": Recipe(8, 512, 100, 0.0005 * 512 / 256, {"betas": (0.9, 0.999), "weight_decay": 0.04}, 10, 1e-3,
                   model={"momentum": 0.996, "student_temperature": 0.1, "teacher_temperature": 0.04,
                          "warmup_teacher_temperature": 0.04, "final_weight_decay": 0.4, "clip_norm": 3.0,
                          "freeze_last_layer_epochs": 1, "center_momentum": 0.9},
                   parameters={"encoder": VIT_S,
                               "projector": 385 * 2048 + 2049 * 2048 + 2049 * 256 + 256 * 65536}),
    "mae": Recipe(64, 4096, 800, 1.5e-4 * 4096 / 256, {"betas": (0.9, 0.95), "weight_decay": 0.05}, 40,
                  model={"normalize_target": True}, parameters={"encoder": VIT_B}),
}  # fmt: skip

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale_p": 0.2}
WEAK_RED = {**JITTER, "saturation": 0.2}
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grayscale_p": 0.2}
BYOL_VIEWS = [
    {
        "size": 224,
        "crop_scale": (0.08, 1),
        "interpolation": "bicubic",
        "blur_p": p,
        "solarize_p": s,
        **WEAK_RED,
    }
    for p, s in ((1.0, 0.0), (0.1, 0.2))
]
VIEWS: dict[str, list[dict[str, Any]]] = {
    "simclr": 2 * [{"size": 224, "crop_scale": (0.08, 1), "blur_p": 0.5, "blur_kernel": 23, **STRONG}],
    "moco": 2 * [{"size": 224, "crop_scale": (0.2, 1), "blur_p": 0.5, **JITTER}],
    "simsiam": 2 * [{"size": 224, "crop_scale": (0.2, 1), "blur_p": 0.5, **JITTER}],
    "byol": BYOL_VIEWS,
    "barlow_twins": BYOL_VIEWS,
    "vicreg": BYOL_VIEWS,
    "swav": 2 * [{"size": 224, "crop_scale": (0.14, 1), "blur_p": 0.5, **STRONG}]
    + 6 * [{"size": 96, "crop_scale": (0.05, 0.14), "blur_p": 0.5, **STRONG}],
    "dino": [{**view, "crop_scale": (0.4, 1)} for view in BYOL_VIEWS]
    + 8 * [{"size": 96, "crop_scale": (0.05, 0.4), "interpolation": "bicubic", "blur_p": 0.5, **WEAK_RED}],
    "mae": [{"size": 224, "crop_scale": (0.2, 1), "interpolation": "bicubic", "blur_p": 0, "grayscale_p": 0}],
}

each = pytest.mark.parametrize("name", RECIPES)


@functools.cache
def built(name: str) -> Any:
    """Method, data and trainer's settings of a config as it is."""
    arguments = ["--config", str(ROOT / f"configs/imagenet/{name}.yaml"), "--data.root", "unused"]
    cli = CheckedCommandLine([*arguments, "--data.synthetic", "true"])
    with torch.device("meta"):
        return cli.parser.instantiate(cli.config), cli.config


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_every_config_for_imagenet_has_its_recipe_and_its_row() -> None:
    names = {config.split("/")[2].removesuffix(".yaml") for config in CONFIGS if "/imagenet/" in config}
    names.discard("finetune")  # not a method
    assert names == RECIPES.keys() == VIEWS.keys()
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"## {config}\n" in page for config in (f"imagenet/{name}.yaml" for name in names))


@each
def test_batch_learning_rate_and_groups(name: str) -> None:
    (objects, config), recipe = built(name), RECIPES[name]
    model: SSLModule = objects.model
    assert objects.data.batch_size * recipe.gpus == recipe.batch
    assert config.trainer.max_epochs == recipe.epochs and config.trainer.precision == ("bf16-mixed")
    optimizer = model.optimizer(model.parameter_groups())
    for group in optimizer.param_groups:
        decayed = all(p.ndim > 1 for p in group["params"])
        assert decayed or not any(p.ndim > 1 for p in group["params"])
        expected = (
            {"lr": recipe.lr, **recipe.optimizer} if decayed else {**recipe.optimizer, "weight_decay": 0.0}
        )
        for key, value in expected.items():
            assert group[key] == pytest.approx(value), key
    listed = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert listed == trainable(model)


@each
def test_learning_rate_over_the_run(name: str) -> None:
    """The source's cosine at the end of warm-up, in the middle and at the end; step 0 is one step on."""
    recipe, model = RECIPES[name], built(name)[0].model
    per_epoch = 1_281_167 // recipe.batch
    total, warm = recipe.epochs * per_epoch, recipe.warmup * per_epoch
    assert model.warmup_epochs == recipe.warmup and model.final_lr_factor == pytest.approx(recipe.final)
    factor = warmup_cosine(total, warm, model.final_lr_factor)
    assert factor(0) == pytest.approx(1 / warm if warm else 1.0)
    middle = (warm + total) // 2
    for step in (warm, middle, total):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        assert factor(step) == pytest.approx(cosine + recipe.final * (1 - cosine))


@each
def test_settings_and_sizes(name: str) -> None:
    recipe, model = RECIPES[name], built(name)[0].model
    for key, value in recipe.model.items():
        assert getattr(model, key) == pytest.approx(value), key
    for part, count in recipe.parameters.items():
        assert trainable(getattr(model, part)) == count, part
    if name in ("byol", "dino"):  # 1 - (1 - base) (cos(pi k / K) + 1) / 2
        base = recipe.model["momentum"]
        seen = [cosine_momentum(progress, base) for progress in (0.0, 0.5, 1.0)]
        assert seen == pytest.approx([base, (1 + base) / 2, 1.0])


@each
def test_views(name: str) -> None:
    views = built(name)[0].data.views.views
    expected = [{"crop_ratio": (3 / 4, 4 / 3), "flip_p": 0.5, **view} for view in VIEWS[name]]
    assert len(views) == len(expected)
    for view, source in zip(views, expected, strict=True):
        interpolation = source.pop("interpolation", "bilinear")
        assert view.interpolation == interpolation
        for key, value in source.items():
            assert getattr(view, key) == pytest.approx(value), key
        if view.blur_p:
            assert view.blur_sigma == (0.1, 2.0)
        if view.brightness:
            assert view.jitter_p == 0.8
