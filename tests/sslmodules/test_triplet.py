"""Mining and loss against a slow reference and hand-made geometry; collapse is reported, labels are
unused.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import Digits
from datamodules.transforms.views import TwoViews, View
from sslmodules.networks import ConvEncoder
from sslmodules.triplet import Triplet, mine_distances, triplet_loss
from tests.conftest import trainer_for


def slow_triplets(z1: Tensor, z2: Tensor, mining: str) -> tuple[Tensor, Tensor]:
    """Anchor by anchor in float64: squared distances of unit vectors to the positive and to the mined
    negative.
    """
    z = [v.double() / v.double().norm() for v in torch.cat([z1, z2])]
    n = len(z1)
    positives, negatives = [], []
    for i in range(2 * n):
        positive = ((z[i] - z[(i + n) % (2 * n)]) ** 2).sum()
        others = [((z[i] - z[k]) ** 2).sum() for k in range(2 * n) if k % n != i % n]
        beyond = [d for d in others if d > positive]
        positives.append(positive)
        negatives.append(min(others) if mining == "batch_hard" else min(beyond, default=max(others)))
    return torch.stack(positives), torch.stack(negatives)


def pair(n: int = 6, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
@pytest.mark.parametrize("seed", range(3))
def test_mining_equals_the_slow_reference(mining: Any, seed: int) -> None:
    z1, z2 = pair(seed=seed)
    for fast, slow in zip(mine_distances(z1, z2, mining), slow_triplets(z1, z2, mining), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_gradient_equals_the_slow_reference(mining: Any) -> None:
    gradients = []
    for mine in (mine_distances, slow_triplets):
        a, b = (z.requires_grad_() for z in pair())
        gradients.append(torch.autograd.grad(triplet_loss(*mine(a, b, mining), margin=0.5), (a, b)))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def at(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def squared(degrees: float) -> float:
    """Of the chord between two points of the unit circle."""
    return 2 - 2 * math.cos(math.radians(degrees))


def test_mining_on_a_circle() -> None:
    """Anchor at 0, its positive at 30; the other image's views at 10 and 50 degrees."""
    z1, z2 = at(0, 10), at(30, 50)
    to_positive, semi_hard = mine_distances(z1, z2, "semi_hard")
    _, batch_hard = mine_distances(z1, z2, "batch_hard")
    assert to_positive[0].item() == pytest.approx(squared(30))
    assert batch_hard[0].item() == pytest.approx(squared(10)), "the nearest"
    assert semi_hard[0].item() == pytest.approx(squared(50)), "the nearest beyond the positive"
    # seen from 30 degrees both negatives (20 away) are nearer than the positive: the farthest of them
    assert semi_hard[2].item() == pytest.approx(squared(20))


def test_distances_are_squared_and_of_unit_vectors() -> None:
    """Opposite views: 4, not 2; and the scale of the projector's output plays no part."""
    z1, z2 = at(0, 90), at(180, 270)
    for scale in (1.0, 17.0):
        to_positive, to_negative = mine_distances(scale * z1, z2 / scale, "batch_hard")
        torch.testing.assert_close(to_positive, torch.full((4,), 4.0, dtype=torch.float64))
        torch.testing.assert_close(to_negative, torch.full((4,), 2.0, dtype=torch.float64))


def test_loss_by_hand_is_the_mean_over_all_anchors() -> None:
    """Of three triplets one violates the margin by 0.3 and two are satisfied: 0.1. The mean over active ones
    would be 0.3.
    """
    loss = triplet_loss(torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.4, 2.0, 0.3]), margin=0.2)
    assert loss.item() == pytest.approx(0.1)


def test_an_image_is_no_negative_of_itself() -> None:
    """Equal views of two orthogonal images: positives at 0, negatives at 2, nothing to learn."""
    z = torch.eye(2)
    to_positive, to_negative = mine_distances(z, z, "batch_hard")
    assert to_positive.abs().max() < 1e-6 and to_negative.tolist() == [2, 2, 2, 2]
    assert triplet_loss(to_positive, to_negative).item() == 0


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_one_image_has_no_negative_and_no_loss(mining: Any) -> None:
    z1, z2 = (z.requires_grad_() for z in pair(1))
    loss = triplet_loss(*mine_distances(z1, z2, mining))
    loss.backward()
    assert loss.item() == 0 and z1.grad is not None and z1.grad.isfinite().all()


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_symmetric_in_the_views_and_blind_to_order(mining: Any) -> None:
    z1, z2 = pair()
    loss = triplet_loss(*mine_distances(z1, z2, mining))
    torch.testing.assert_close(triplet_loss(*mine_distances(z2, z1, mining)), loss)
    order = torch.randperm(len(z1))
    torch.testing.assert_close(triplet_loss(*mine_distances(z1[order], z2[order], mining)), loss)


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
def test_shares_of_two_ranks_average_to_the_whole(mining: Any) -> None:
    """Each rank mines for its own anchors among everybody's views: the places of itself and the positive
    included.
    """
    z1, z2 = pair(8)
    whole = triplet_loss(*mine_distances(z1, z2, mining))
    shares = [
        triplet_loss(*mine_distances(z1[i : i + 4], z2[i : i + 4], mining, (z1, z2), i)) for i in (0, 4)
    ]
    torch.testing.assert_close(sum(shares) / 2, whole)
    alone = sum(triplet_loss(*mine_distances(z1[i : i + 4], z2[i : i + 4], mining)) for i in (0, 4)) / 2
    assert not torch.isclose(alone, whole), "half of the negatives would do as well"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    z1, z2 = ((300 * z).to(dtype).requires_grad_() for z in pair(32, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        to_positive, to_negative = mine_distances(z1, z2)
        loss = triplet_loss(to_positive, to_negative)
    loss.backward()
    assert (
        loss.dtype == torch.float32 and loss.isfinite() and z1.grad is not None and z1.grad.isfinite().all()
    )
    torch.testing.assert_close(
        to_positive.double(), slow_triplets(z1, z2, "semi_hard")[0], rtol=1e-4, atol=1e-5
    )


def module_with(**options: Any) -> Triplet:
    knobs = {"projector_out": 8, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0), **options}
    return Triplet(ConvEncoder(1, (4, 8)), **knobs)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("margin", 0.0),
        ("margin", 4.0),
        ("margin", -0.2),
        ("mining", "hardest"),
        ("projector_hidden", 0),
        ("projector_out", 0),
        ("projector_layers", 0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module_with(**{knob: value})


def test_bad_arguments_of_the_functions() -> None:
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        triplet_loss(torch.zeros(1), torch.zeros(1), 0)
    with pytest.raises(ValueError, match="mining must be one of semi_hard, batch_hard, got 'all'"):
        mine_distances(*pair(), "all")  # type: ignore[arg-type]


def test_active_is_the_share_of_triplets_that_violate_the_margin() -> None:
    module = module_with(margin=0.3).eval()
    views = [torch.randn(6, 1, 8, 8) for _ in range(2)]
    with torch.no_grad():
        z1, z2 = (module.projector(module.encoder(view)) for view in views)
        to_positive, to_negative = slow_triplets(z1, z2, "semi_hard")
        terms = module.losses({"views": views})
    assert terms["active"].item() == pytest.approx(
        ((to_positive - to_negative + 0.3) > 0).double().mean().item()
    )
    assert terms["collapsed"].item() == 0


def fit(module: Triplet, folder: Path) -> list[str]:
    data = Digits(views=TwoViews(View(8), View(8)), batch_size=16, synthetic=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_for(folder, max_steps=3, limit_val_batches=0).fit(module, data)
    return [str(w.message) for w in caught if "all embeddings are equal" in str(w.message)]


def test_collapse_is_told_once(tmp_path: Path) -> None:
    """All embeddings equal: the loss is the margin exactly and stays there, which looks like a plateau."""
    module = module_with(margin=0.5)
    with torch.no_grad():
        module.projector[-1].weight.zero_()
    z = F.normalize(torch.ones(4, 3), dim=1)
    assert triplet_loss(*mine_distances(z, z), margin=0.5).item() == pytest.approx(0.5)
    messages = fit(module, tmp_path)
    assert len(messages) == 1 and "the loss is the margin 0.5" in messages[0]


def test_no_alarm_where_nothing_has_collapsed(tmp_path: Path) -> None:
    assert not fit(module_with(), tmp_path)
