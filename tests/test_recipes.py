"""The configs for ImageNet beside the numbers of their sources: docs/recipes.md names file and line of each.

What is built is compared: optimizer, groups, schedule, momentum, views, numbers of parameters. Where a config
differs from its source, the number here is the config's own and docs/recipes.md lists the difference.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import CONFIGS
from tests.recipes import (
    Recipe,
    built,
    check_batch_learning_rate_and_groups,
    check_learning_rate_over_the_run,
    check_page,
    check_settings_and_sizes,
    check_views,
)

RESNET50 = 25_557_032 - 2048 * 1000 - 1000  # torchvision's count without its classifier
VIT_S, VIT_B = (
    21_665_664,
    85_798_656 - 197 * 768,
)  # timm's counts without a classifier; MAE's positions are fixed
VIT_L = 303_301_632
VIT_H = 630_764_800 - 257 * 1280  # likewise of patches of 14 pixels


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
    "simdino": Recipe(8, 512, 100, 0.0005 * 512 / 256, {"betas": (0.9, 0.999), "weight_decay": 0.04},
                      10, 1e-3,
                      model={"momentum": 0.996, "epsilon": 0.05, "rate_weight": 1, "final_weight_decay": 0.4,
                             "clip_norm": 3.0},
                      parameters={"encoder": 85_798_656,
                                  "projector": 769 * 2048 + 2049 * 2048 + 2049 * 256}),
    "simdinov2": Recipe(8, 1024, 100, 0.004 * (1024 / 1024) ** 0.5,
                        {"betas": (0.9, 0.999), "weight_decay": 0.04}, 10, 1e-6 / 0.004,
                        model={"momentum": 0.9, "epsilon": 0.05, "rate_weight": 1, "patch_weight": 1,
                               "layer_decay": 0.9, "final_weight_decay": 0.4, "clip_norm": 3.0},
                        parameters={"encoder": VIT_L - 1024,  # the class token has no position
                                    "projector": 1025 * 2048 + 2049 * 2048 + 2049 * 256}),
    "ibot": Recipe(16, 1024, 800, 0.0005 * 1024 / 256, {"betas": (0.9, 0.999), "weight_decay": 0.04},
                   10, 1e-6 / 0.002,
                   model={"momentum": 0.996, "student_temperature": 0.1, "teacher_temperature": 0.07,
                          "warmup_teacher_temperature": 0.04, "teacher_temperature_epochs": 30,
                          "patch_weight": 1.0, "center_momentum": 0.9, "final_weight_decay": 0.4,
                          "clip_norm": 3.0, "freeze_last_layer_epochs": 1},
                   parameters={"encoder": VIT_S - 384,  # the class token has no position
                               "projector": 385 * 2048 + 2049 * 2048 + 2049 * 256 + 256 * 8192}),
    "i_jepa": Recipe(16, 2048, 300, 0.001, {"betas": (0.9, 0.999), "weight_decay": 0.04}, 40, 1e-3,
                     model={"momentum": 0.996, "final_weight_decay": 0.4},
                     parameters={"encoder": VIT_H,
                                 "predictor": 1281 * 384 + 384 + 12 * (12 * 384**2 + 13 * 384) + 2 * 384
                                 + 385 * 1280}),
    "visreg": Recipe(8, 128, 100, 9e-4, {"betas": (0.9, 0.999), "weight_decay": 0.05}, 5, 1e-3,
                     model={"regularization_weight": 0.9, "slices": 4096, "num_global": 4},
                     parameters={"encoder": 85_798_656,
                                 "projector": 770 * 2048 + 2050 * 2048 + 2049 * 256}),
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
    "i_jepa": [
        {
            "size": 224,
            "crop_scale": (0.3, 1),
            "interpolation": "bicubic",
            "flip_p": 0,
            "brightness": 0,
            "blur_p": 0,
            "grayscale_p": 0,
        }
    ],
}
VISREG = {"interpolation": "bicubic", "blur_p": 0.5, "blur_kernel": 9, "solarize_p": 0.2, **WEAK_RED}
VIEWS["visreg"] = 4 * [{"size": 224, "crop_scale": (0.3, 1), **VISREG}]
VIEWS["visreg"] += 6 * [{"size": 96, "crop_scale": (0.05, 0.3), **VISREG}]
VIEWS["ibot"] = [{**view, "crop_scale": (0.25, 1)} for view in VIEWS["dino"][:2]]
VIEWS["ibot"] += 10 * [{**VIEWS["dino"][-1], "crop_scale": (0.05, 0.25)}]
VIEWS["simdino"] = VIEWS["simdinov2"] = VIEWS["dino"] + VIEWS["dino"][-2:]  # ten local crops

each = pytest.mark.parametrize("name", RECIPES)


def test_every_config_for_imagenet_has_its_recipe_and_its_row() -> None:
    names = {config.split("/")[2].removesuffix(".yaml") for config in CONFIGS if "/imagenet/" in config}
    check_page("imagenet", names)
    assert names - {"finetune"} == RECIPES.keys() == VIEWS.keys()


@each
def test_batch_learning_rate_and_groups(name: str) -> None:
    check_batch_learning_rate_and_groups(f"imagenet/{name}", RECIPES[name])


@each
def test_learning_rate_over_the_run(name: str) -> None:
    check_learning_rate_over_the_run(f"imagenet/{name}", RECIPES[name], images=1_281_167)


@each
def test_settings_and_sizes(name: str) -> None:
    rising = name in ("byol", "dino", "ibot", "simdino", "simdinov2")
    check_settings_and_sizes(f"imagenet/{name}", RECIPES[name], rising)


@pytest.mark.parametrize("name", ["ibot", "simdinov2"])
def test_masks(name: str) -> None:
    views = built(f"imagenet/{name}")[0].data.views
    assert (views.mask_p, views.mask_ratio, views.side) == (0.5, (0.1, 0.5), 14)
    assert views.mask_aspect == pytest.approx((0.3, 1 / 0.3))


def test_learning_rates_of_simdinov2_fall_by_a_tenth_from_block_to_block() -> None:
    groups = built("imagenet/simdinov2")[0].model.parameter_groups()
    scales = sorted({group["lr_scale"] for group in groups}, reverse=True)
    assert scales == pytest.approx([0.9**i for i in range(26)])  # 24 blocks, before and behind them


@each
def test_views(name: str) -> None:
    check_views(f"imagenet/{name}", VIEWS[name])


# ---- fine-tuning -------------------------------------------------------------------------------------------


class Mixing:
    """In the place of torchvision's MixUp and CutMix, which cannot be built without memory."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha


def test_fine_tuning_of_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MixUp", "CutMix"):
        monkeypatch.setattr(f"sslmodules.fine_tune.v2.{name}", Mixing)
    adam = {"betas": (0.9, 0.999), "weight_decay": 0.05}
    recipe = Recipe(16, 1024, 100, 5e-4 * 1024 / 256, adam, 5, 1e-6 / 0.002,
                    model={"layer_decay": 0.65, "label_smoothing": 0.1},
                    parameters={"encoder": VIT_B, "classifier": 769 * 1000})  # fmt: skip
    check_batch_learning_rate_and_groups("imagenet/finetune", recipe)
    check_learning_rate_over_the_run("imagenet/finetune", recipe, images=1_281_167)
    check_settings_and_sizes("imagenet/finetune", recipe, rising=False)
    objects, _ = built("imagenet/finetune")
    model, view = objects.model, objects.data.views
    assert [mix.alpha for mix in model.mixing] == [0.8, 1.0]
    skipped = [block.drop_path1.drop_prob for block in model.encoder.block_list()]
    assert skipped == pytest.approx([0.1 * i / 11 for i in range(12)])
    scales = sorted({group["lr_scale"] for group in model.parameter_groups()}, reverse=True)
    assert scales == pytest.approx([0.65**i for i in range(14)])  # 12 blocks, before and behind them
    assert (view.size, view.crop_scale, view.interpolation, view.flip_p) == (224, (0.08, 1), "bicubic", 0.5)
    assert (view.brightness, view.blur_p, view.grayscale_p) == (0, 0, 0)


def test_fine_tuning_of_bert() -> None:
    objects, settings = built("ag_news/finetune")
    model, data = objects.model, objects.data
    assert (data.batch_size, settings.trainer.max_epochs, model.dropout.p) == (32, 3, 0.1)
    assert model.warmup_epochs == pytest.approx(0.1 * 3)
    for group in model.optimizer(model.parameter_groups()).param_groups:
        decay = 0.01 if all(p.ndim > 1 for p in group["params"]) else 0
        assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.9, 0.999), decay)
