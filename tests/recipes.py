"""What a config's source says, and comparisons of what a config builds with it.

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


@functools.cache
def built(config: str) -> Any:
    """Method, data and trainer's settings of a config, such as ``imagenet/simclr``, as it is."""
    arguments = ["--config", str(ROOT / f"configs/{config}.yaml"), "--data.root", "unused"]
    cli = CheckedCommandLine([*arguments, "--data.synthetic", "true"])
    with torch.device("meta"):
        return cli.parser.instantiate(cli.config), cli.config


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def check_page(folder: str, names: set[str]) -> None:
    """The folder's page on recipes has a section for each of these configs."""
    page = {"imagenet": "recipes.md", "cifar10": "recipes_cifar10.md"}[folder]
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    missing = [name for name in names if f"## {folder}/{name}.yaml\n" not in text]
    assert missing == []


def check_batch_learning_rate_and_groups(config: str, recipe: Recipe) -> None:
    objects, settings = built(config)
    model: SSLModule = objects.model
    assert objects.data.batch_size * recipe.gpus == recipe.batch
    assert settings.trainer.max_epochs == recipe.epochs and settings.trainer.precision == "bf16-mixed"
    optimizer = model.optimizer(model.parameter_groups())
    for group in optimizer.param_groups:
        decayed = all(p.ndim > 1 for p in group["params"])
        assert decayed or not any(p.ndim > 1 for p in group["params"])
        expected = {"lr": recipe.lr} if decayed or "bias_lr" not in recipe.model else {}
        for key, value in {**expected, **recipe.optimizer}.items():
            assert group[key] == pytest.approx(0.0 if key == "weight_decay" and not decayed else value), key
    listed = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert listed == trainable(model)


def check_learning_rate_over_the_run(config: str, recipe: Recipe, images: int) -> None:
    """The source's cosine at the end of warm-up, in the middle and at the end; step 0 is one step on."""
    model, per_epoch = built(config)[0].model, images // recipe.batch
    total, warm = recipe.epochs * per_epoch, recipe.warmup * per_epoch
    assert model.warmup_epochs == recipe.warmup and model.final_lr_factor == pytest.approx(recipe.final)
    factor = warmup_cosine(total, warm, model.final_lr_factor)
    assert factor(0) == pytest.approx(1 / warm if warm else 1.0)
    for step in (warm, (warm + total) // 2, total):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        assert factor(step) == pytest.approx(cosine + recipe.final * (1 - cosine))


def check_settings_and_sizes(config: str, recipe: Recipe, rising: bool) -> None:
    """Args: rising: the momentum rises to 1: 1 - (1 - base) (cos(pi k / K) + 1) / 2."""
    model = built(config)[0].model
    for key, value in recipe.model.items():
        assert getattr(model, key) == pytest.approx(value), key
    for part, count in recipe.parameters.items():
        assert trainable(getattr(model, part)) == count, part
    if rising:
        base = recipe.model["momentum"]
        seen = [cosine_momentum(progress, base) for progress in (0.0, 0.5, 1.0)]
        assert seen == pytest.approx([base, (1 + base) / 2, 1.0])


def check_views(config: str, sources: list[dict[str, Any]]) -> None:
    views = built(config)[0].data.views.views
    assert len(views) == len(sources)
    for view, source in zip(views, sources, strict=True):
        expected = {"crop_ratio": (3 / 4, 4 / 3), "flip_p": 0.5, "interpolation": "bilinear", **source}
        assert view.interpolation == expected.pop("interpolation")
        for key, value in expected.items():
            assert getattr(view, key) == pytest.approx(value), key
        if view.blur_p:
            assert view.blur_sigma == (0.1, 2.0)
        if view.brightness:
            assert view.jitter_p == 0.8
