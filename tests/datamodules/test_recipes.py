"""Published augmentations: the settings of the papers, and what changes on small images."""

from __future__ import annotations

import pytest
import torch

from datamodules.transforms.base import apply_views
from datamodules.transforms.masks import MAEViews
from datamodules.transforms.recipes import BYOLViews, DINOViews, MoCoViews, SimCLRViews, SwAVViews
from datamodules.transforms.views import TwoViews, View, Views
from tests.datamodules.photos import make_generator, photos


def knobs_of(view: View) -> dict[str, object]:
    return {
        name: value for name, value in vars(view).items() if not name.startswith("_") and name != "training"
    }


def test_large_recipes_are_those_of_the_papers() -> None:
    simclr, moco, byol = SimCLRViews(224).views, MoCoViews(224).views, BYOLViews(224).views
    swav, dino, mae = SwAVViews(224).views, DINOViews(224).views, MAEViews(224).views
    assert [len(views) for views in (simclr, moco, byol, swav, dino, mae)] == [2, 2, 2, 8, 10, 1]
    color = ("brightness", "contrast", "saturation", "hue", "jitter_p", "grayscale_p")
    expected = {
        "simclr": (simclr, (0.8, 0.8, 0.8, 0.2, 0.8, 0.2), "bilinear", (0.08, 1.0)),
        "moco": (moco, (0.4, 0.4, 0.4, 0.1, 0.8, 0.2), "bilinear", (0.2, 1.0)),
        "byol": (byol, (0.4, 0.4, 0.2, 0.1, 0.8, 0.2), "bicubic", (0.08, 1.0)),
        "swav": (swav, (0.8, 0.8, 0.8, 0.2, 0.8, 0.2), "bilinear", (0.14, 1.0)),
        "dino": (dino, (0.4, 0.4, 0.2, 0.1, 0.8, 0.2), "bicubic", (0.4, 1.0)),
        "mae": (mae, (0.0, 0.0, 0.0, 0.0, 0.8, 0.0), "bicubic", (0.2, 1.0)),
    }
    for name, (views, values, interpolation, scale) in expected.items():
        for view in views:
            assert tuple(knobs_of(view)[key] for key in color) == values, name
            assert (view.interpolation, view.flip_p, view.blur_sigma) == (interpolation, 0.5, (0.1, 2.0)), (
                name
            )
        assert views[0].crop_scale == scale, name
    assert [view.blur_p for view in (*simclr, *moco, *byol, *mae)] == [0.5, 0.5, 0.5, 0.5, 1.0, 0.1, 0.0]
    assert [view.solarize_p for view in (*simclr, *byol, *dino[:3])] == [0.0, 0.0, 0.0, 0.2, 0.0, 0.2, 0.0]
    assert [view.blur_p for view in (*swav[1:3], *dino[:3])] == [0.5, 0.5, 1.0, 0.1, 0.5]
    assert [view.size for view in swav] == [224] * 2 + [96] * 6
    assert [view.size for view in dino] == [224] * 2 + [96] * 8
    assert (swav[2].crop_scale, dino[2].crop_scale) == ((0.05, 0.14), (0.05, 0.4))
    assert simclr[0].blur_kernel == byol[0].blur_kernel == 23


@pytest.mark.parametrize("recipe", [SimCLRViews, MoCoViews, BYOLViews, SwAVViews, DINOViews])
def test_small_recipes_drop_blur_and_local_views(recipe: type[Views]) -> None:
    small, large = recipe(32), recipe(224)
    assert len(small.views) == 2
    assert all(view.blur_p == 0 for view in small.views)
    assert any(view.blur_p > 0 for view in large.views)
    forced = recipe(32, small=False)
    assert len(forced.views) == len(large.views) and any(view.blur_p > 0 for view in forced.views)
    assert all(view.blur_p == 0 for view in recipe(96, small=True).views)
    output = apply_views(small, photos(4, 32, 32), make_generator())["views"]
    assert [tuple(view.shape) for view in output] == [(4, 3, 32, 32)] * 2


def test_small_variants_change_what_their_sources_change() -> None:
    assert knobs_of(SimCLRViews(32).views[0])["brightness"] == 0.4
    assert knobs_of(SimCLRViews(32).views[0])["hue"] == 0.1
    assert DINOViews(32).views[0].crop_scale == (0.14, 1.0)
    assert DINOViews(32, num_local=4).views[0].crop_scale == (0.4, 1.0)
    assert len(DINOViews(32, num_local=4).views) == 6
    assert len(SwAVViews(224, num_local=0).views) == 2


def test_two_views_keep_their_order() -> None:
    transform = TwoViews(View(16, crop_scale=None, flip_p=0.0), View(16, crop_scale=None, flip_p=1.0))
    images = photos(3, 16, 16)
    first, second = apply_views(transform, images, make_generator())["views"]
    assert torch.equal(first, images)
    assert torch.equal(second, images.flip(3))
