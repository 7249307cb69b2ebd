"""The configs for CIFAR-10 that follow a source, beside its numbers: see docs/recipes_cifar10.md.

As in tests/test_recipes.py, where a config differs from its source the number here is the config's own, and
docs/recipes_cifar10.md lists the difference.
"""

from __future__ import annotations

from typing import Any

import pytest

from runtime.messages import ROOT
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

#: No published recipe for CIFAR-10: settings of their own, or those that authors chose for other data.
OWN = {
    "autoencoder",
    "finetune",
    "gan",
    "i_jepa",
    "ibot",
    "inpainting",
    "lejepa",
    "mae",
    "simdino",
    "simdinov2",
    "triplet",
    "vae",
    "visreg",
}
HIDDEN = 2 * 2048  # weights and biases of a batch norm
RESNET18 = 11_173_962 - 512 * 10 - 10  # kuangliu/pytorch-cifar's count without its classifier
SGD = {"momentum": 0.9, "weight_decay": 5e-4}
SIMSIAM = {"encoder": RESNET18, "projector": 512 * 2048 + HIDDEN + 2048 * 2048,
           "predictor": 2048 * 512 + 2 * 512 + 513 * 2048}  # fmt: skip
RECIPES = {
    "barlow_twins": Recipe(1, 128, 200, 0.06 * 128 / 128, SGD, model={"off_diagonal_weight": 0.0051},
                           parameters={"encoder": RESNET18, "projector": 512 * 2048 + HIDDEN + 2048 * 2048}),
    "byol": Recipe(1, 512, 200, 0.06 * 512 / 128 / 4, {"momentum": 0.9, "weight_decay": 5e-4 * 4},
                   model={"momentum": 0.99},
                   parameters={"encoder": RESNET18, "projector": 512 * 1024 + 2 * 1024 + 1024 * 256,
                               "predictor": 256 * 1024 + 2 * 1024 + 1024 * 256}),
    "dino": Recipe(1, 512, 200, 0.06 * 512 / 128, SGD,
                   model={"momentum": 0.99, "student_temperature": 0.1, "teacher_temperature": 0.04,
                          "warmup_teacher_temperature": 0.04, "center_momentum": 0.9,
                          "freeze_last_layer_epochs": 0},
                   parameters={"encoder": RESNET18,
                               "projector": 513 * 2048 + 2049 * 2048 + 2049 * 256 + 256 * 2048}),
    "emp_ssl": Recipe(1, 100, 30, 0.3, {"momentum": 0.9, "weight_decay": 1e-4, "trust": 0.0167},
                      model={"similarity_weight": 200, "epsilon": 0.2},
                      parameters={"encoder": RESNET18,
                                  "projector": 512 * 4096 + 2 * 4096 + 4096 * 4096 + 2 * 4096 + 4097 * 1024}),
    "fast_siam": Recipe(1, 128, 200, 0.06, SGD, parameters=SIMSIAM),
    "moco": Recipe(1, 512, 200, 0.06 * 512 / 128, SGD,
                   model={"temperature": 0.1, "momentum": 0.99, "queue_size": 8192, "batch_norm_groups": 8},
                   parameters={"encoder": RESNET18, "projector": 513 * 512 + 513 * 128}),
    "moco_v3": Recipe(1, 256, 1000, 0.3 * 256 / 256, {"momentum": 0.9, "weight_decay": 1e-6, "trust": 0.001},
                      warmup=10, model={"temperature": 0.2, "momentum": 0.99},
                      parameters={"encoder": RESNET18, "projector": 512 * 4096 + 2 * 4096 + 4096 * 256,
                                  "predictor": 256 * 4096 + 2 * 4096 + 4096 * 256}),
    "nnclr": Recipe(1, 128, 200, 0.06 * 128 / 128, SGD, model={"temperature": 0.5, "queue_size": 4096},
                    parameters={"encoder": RESNET18, "predictor": 256 * 4096 + 2 * 4096 + 4097 * 256,
                                "projector": 512 * 2048 + 2048 * 2048 + 2 * HIDDEN + 2048 * 256 + 2 * 256}),
    "simclr": Recipe(1, 512, 200, 0.06 * 512 / 128, SGD, model={"temperature": 0.5},
                     parameters={"encoder": RESNET18, "projector": 512 * 512 + 2 * 512 + 513 * 128}),
    "simclr_record": Recipe(1, 512, 100, 0.06 * 512 / 256, SGD, model={"temperature": 0.5},
                            parameters={"encoder": RESNET18,
                                        "projector": 512 * 1024 + 2 * 1024 + 1025 * 128}),
    "simsiam": Recipe(1, 512, 800, 0.03 * 512 / 256, SGD, parameters=SIMSIAM),
    "swav": Recipe(1, 512, 200, 0.001 * 512 / 128, {"betas": (0.9, 0.999), "weight_decay": 1e-6},
                   model={"temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "queue_size": 0,
                          "freeze_prototypes_steps": 0},
                   parameters={"encoder": RESNET18, "projector": 512 * 512 + 2 * 512 + 513 * 128,
                               "prototypes": 512 * 128}),
    "vicreg": Recipe(1, 256, 1000, 0.06, SGD, 10,
                     parameters={"encoder": RESNET18,
                                 "projector": 512 * 2048 + HIDDEN + 2048 * 2048 + HIDDEN + 2048 * 2048}),
}  # fmt: skip

PLAIN = {"size": 32, "blur_p": 0, "solarize_p": 0}
HALF = {**PLAIN, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale_p": 0.2}
WEAK_RED = {**HALF, "saturation": 0.2}
SIMCLR = 2 * [{**HALF, "crop_scale": (0.08, 1)}]
SIMSIAM_VIEW = {**HALF, "crop_scale": (0.2, 1)}
BYOL = [{**WEAK_RED, "crop_scale": (0.08, 1), "interpolation": "bicubic", "solarize_p": p} for p in (0, 0.2)]
PATCH = {
    **HALF,
    "crop_scale": (0.25, 0.25),
    "crop_ratio": (1, 1),
    "hue": 0.2,
    "blur_p": 0.1,
    "solarize_p": 0.1,
}
VIEWS: dict[str, list[dict[str, Any]]] = {
    "barlow_twins": BYOL,
    "byol": BYOL,
    "dino": [{**view, "crop_scale": (0.4, 1)} for view in BYOL],
    "emp_ssl": 20 * [PATCH],
    "fast_siam": 4 * [SIMSIAM_VIEW],
    "moco": SIMCLR,
    "moco_v3": BYOL,
    "nnclr": SIMCLR,
    "simclr": SIMCLR,
    "simclr_record": 2 * [{**SIMSIAM_VIEW, "grayscale_p": 0.1}],
    "simsiam": 2 * [SIMSIAM_VIEW],
    "swav": 2 * [{**HALF, "crop_scale": (0.14, 1)}],
    "vicreg": 2 * [{**WEAK_RED, "crop_scale": (0.2, 1), "solarize_p": 0.1}],
}

each = pytest.mark.parametrize("name", RECIPES)


def test_every_config_for_cifar10_has_its_recipe_or_is_of_its_own() -> None:
    names = {config.split("/")[2].removesuffix(".yaml") for config in CONFIGS if "/cifar10/" in config}
    assert RECIPES.keys() == VIEWS.keys() and names - {"finetune"} == (RECIPES.keys() | OWN) - {"finetune"}
    check_page("cifar10", set(RECIPES))
    headers = {
        name: (ROOT / f"configs/cifar10/{name}.yaml").read_text().split("model:")[0] for name in RECIPES
    }
    assert [name for name, header in headers.items() if "docs/rec" not in header] == []


@each
def test_batch_learning_rate_and_groups(name: str) -> None:
    check_batch_learning_rate_and_groups(f"cifar10/{name}", RECIPES[name])


@each
def test_learning_rate_over_the_run(name: str) -> None:
    check_learning_rate_over_the_run(f"cifar10/{name}", RECIPES[name], images=45_000)


@each
def test_settings_and_sizes(name: str) -> None:
    rising = name in ("byol", "dino", "moco_v3")
    check_settings_and_sizes(f"cifar10/{name}", RECIPES[name], rising=rising)


@each
def test_views(name: str) -> None:
    check_views(f"cifar10/{name}", VIEWS[name])


def test_images() -> None:
    """The sources train on all 50,000; here the record does, which is compared with its published time."""
    asked = {name: built(f"cifar10/{name}")[0].data.train_on_val for name in RECIPES}
    assert asked == {name: name == "simclr_record" for name in RECIPES}
