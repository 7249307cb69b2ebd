"""The cross-correlation and its loss against a slow reference, closed forms, and the known mistakes of
re-implementations.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datamodules import Digits
from datamodules.transforms.views import TwoViews, View
from sslmodules.barlow_twins import BarlowTwins, barlow_twins_loss, cross_correlation, off_diagonal
from sslmodules.base import Gathered
from sslmodules.networks import ConvEncoder
from sslmodules.optim import LARS, warmup_cosine
from tests.conftest import trainer_for


def slow_loss(z1: Tensor, z2: Tensor, weight: float, eps: float = 1e-5) -> Tensor:
    """The paper's formula, entry by entry in float64; the variance is the biased one."""
    z1, z2 = z1.double(), z2.double()
    n, d = z1.shape
    total = torch.zeros((), dtype=torch.float64)
    for i in range(d):
        for j in range(d):
            a, b = z1[:, i] - z1[:, i].sum() / n, z2[:, j] - z2[:, j].sum() / n
            scale = torch.sqrt((a * a).sum() / n + eps) * torch.sqrt((b * b).sum() / n + eps)
            c = (a * b).sum() / n / scale
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def pair(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def test_off_diagonal_by_hand() -> None:
    assert off_diagonal(torch.arange(9).view(3, 3)).tolist() == [1, 2, 3, 5, 6, 7]
    assert off_diagonal(torch.ones(1, 1)).shape == (0,)
    with pytest.raises(ValueError, match=r"square matrix, got shape \(2, 3\)"):
        off_diagonal(torch.zeros(2, 3))


@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_equals_the_slow_reference(weight: float) -> None:
    z1, z2 = pair()
    torch.testing.assert_close(
        barlow_twins_loss(z1, z2, weight)[0], slow_loss(z1, z2, weight), rtol=1e-10, atol=1e-12
    )


def test_gradient_equals_the_slow_reference() -> None:
    gradients = []
    for loss in (lambda a, b: barlow_twins_loss(a, b, 0.1)[0], lambda a, b: slow_loss(a, b, 0.1)):
        a, b = (z.requires_grad_() for z in pair())
        gradients.append(torch.autograd.grad(loss(a, b), (a, b)))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_normalizes_as_batch_norm_does() -> None:
    """The official code has a batch norm without scale and shift here: biased variance, eps inside the
    root.
    """
    z1, z2 = pair()
    norm = nn.BatchNorm1d(5, affine=False, dtype=torch.float64)
    torch.testing.assert_close(cross_correlation(z1, z2), norm(z1).T @ norm(z2) / 6, rtol=1e-12, atol=1e-14)


def test_closed_form_of_equal_views() -> None:
    """Orthogonal dimensions of variance 1, both views equal: C is the identity up to eps."""
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    loss, invariance, redundancy = barlow_twins_loss(z, z)
    assert invariance.item() == pytest.approx(2 * (1 - 1 / (1 + 1e-5)) ** 2, rel=1e-5, abs=0)
    assert (
        redundancy.item() < 1e-30
    )  # a product's order of summation is the machine's own: not always exactly 0
    assert loss.item() == pytest.approx(invariance.item())
    # opposite views: C = -I, each diagonal entry costs 4. With the unbiased variance it would cost (1 +
    # 3/4)^2
    assert barlow_twins_loss(z, -z)[1].item() == pytest.approx(8, rel=1e-4)


def test_closed_form_of_a_redundant_representation() -> None:
    """All D dimensions the same: the diagonal is free, each of the D (D - 1) other entries costs lambda."""
    z = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64).expand(4, 7)
    assert barlow_twins_loss(z, z, 0.01)[0].item() == pytest.approx(0.01 * 42, rel=1e-4)


def test_constant_projections_are_finite_and_cost_one_per_dimension() -> None:
    z1, z2 = (torch.ones(4, 3, requires_grad=True) for _ in range(2))
    loss = barlow_twins_loss(z1, z2)[0]
    loss.backward()
    assert loss.item() == 3 and z1.grad is not None and z1.grad.isfinite().all()


def test_symmetries() -> None:
    """Swapping the views, the order of samples, scale and shift of a dimension do not matter; which samples
    are paired does.
    """
    z1, z2 = pair(32)
    loss = barlow_twins_loss(z1, z2)[0]
    torch.testing.assert_close(barlow_twins_loss(z2, z1)[0], loss)
    order = torch.randperm(32)
    torch.testing.assert_close(barlow_twins_loss(z1[order], z2[order])[0], loss)
    torch.testing.assert_close(barlow_twins_loss(7 * z1 + 3, z2 - 1)[0], loss, rtol=1e-4, atol=0)
    assert not torch.isclose(barlow_twins_loss(z1[order], z2)[0], loss)


def test_shares_of_two_ranks_are_not_the_whole() -> None:
    """Why projections are gathered before they are normalized: the mean over ranks' own losses is another
    function.
    """
    z1, z2 = pair(8)
    shares = sum(barlow_twins_loss(z1[i : i + 4], z2[i : i + 4])[0] for i in (0, 4)) / 2
    assert (shares - barlow_twins_loss(z1, z2)[0]).abs() > 0.05


def test_the_loss_is_of_the_gathered_batch_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank with half of the batch that gathers all of it has the loss and the gradients of one process."""
    module = module_with().double().eval()  # batch statistics of the network would differ between the halves
    views = [torch.randn(16, 1, 8, 8, dtype=torch.float64) for _ in range(2)]
    parameters = list(module.parameters())
    whole = module.losses({"views": views})["loss"]
    expected = torch.autograd.grad(whole, parameters)
    everyone = iter([module.projector(module.encoder(view)) for view in views])
    monkeypatch.setattr(module, "gather", lambda z: Gathered(next(everyone), 0))
    loss = module.losses({"views": [view[8:] for view in views]})["loss"]
    torch.testing.assert_close(loss, whole)
    for got, right in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    """Values of 300 have a square beyond float16's 65,504: statistics must leave half precision first."""
    z1, z2 = ((300 * z).to(dtype).requires_grad_() for z in pair(64, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = barlow_twins_loss(z1, z2)[0]
    loss.backward()
    assert (
        loss.dtype == torch.float32 and loss.isfinite() and z1.grad is not None and z1.grad.isfinite().all()
    )
    torch.testing.assert_close(loss.double(), slow_loss(z1, z2, 0.0051), rtol=1e-4, atol=0)


def module_with(**options: object) -> BarlowTwins:
    knobs = {"projector_hidden": 16, "projector_out": 8, "optimizer": lambda p: LARS(p, lr=1.6), **options}
    return BarlowTwins(ConvEncoder(1, (4, 8)), **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("off_diagonal_weight", -0.1),
        ("projector_hidden", 0),
        ("projector_out", 1),
        ("projector_layers", 0),
        ("bias_lr", -1.0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module_with(**{knob: value})


def test_bad_weight_of_the_loss() -> None:
    with pytest.raises(ValueError, match="off_diagonal_weight must be at least 0, got -1"):
        barlow_twins_loss(*pair(), -1)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="BarlowTwins needs two views of each sample, got 1"):
        module_with().check_batch({"input": torch.zeros(2, 1, 8, 8), "views": [torch.zeros(2, 1, 8, 8)]})


def test_projector_is_the_papers() -> None:
    """Three linear layers without bias, batch norm and ReLU between them, nothing after the last."""
    kinds = [type(layer).__name__ for layer in module_with().projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert all(layer.bias is None for layer in module_with().projector if isinstance(layer, nn.Linear))


def test_biases_have_a_rate_of_their_own_and_the_schedule_keeps_the_ratio(tmp_path: Path) -> None:
    module = module_with(bias_lr=0.0024, warmup_epochs=1)
    data = Digits(views=TwoViews(View(8), View(8)), batch_size=16, synthetic=True)
    rates: list[tuple[float, ...]] = []
    monitored = module.on_train_batch_start

    def remember(batch: object, batch_idx: int) -> None:
        rates.append(tuple(group["lr"] for group in module.trainer.optimizers[0].param_groups))
        monitored(batch, batch_idx)  # type: ignore[arg-type]

    module.on_train_batch_start = remember  # type: ignore[method-assign, assignment]
    trainer = trainer_for(tmp_path, max_epochs=3, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, data)
    weights, biases = trainer.optimizers[0].param_groups
    assert {p.ndim for p in biases["params"]} == {1} and min(p.ndim for p in weights["params"]) == 2
    factor = warmup_cosine(total=6, warmup=2)
    for step, (of_weights, of_biases) in enumerate(rates):
        assert of_weights == pytest.approx(1.6 * factor(step)) and of_biases == pytest.approx(
            0.0024 * factor(step)
        )
    assert len(rates) == 6


def test_without_a_rate_of_their_own_biases_follow_the_optimizer() -> None:
    assert all("lr" not in group for group in module_with().parameter_groups())
    assert math.isclose(module_with().optimizer(module_with().parameter_groups()).param_groups[1]["lr"], 1.6)
