"""BYOL's loss against a slow reference, the target network, and the known mistakes of re-implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules import Digits, TwoViews, View
from sslmodules.byol import BYOL, regression_loss
from sslmodules.networks import ConvEncoder, cosine_momentum
from tests.conftest import trainer_for


def pair(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def small(**knobs: Any) -> BYOL:
    torch.manual_seed(0)
    return BYOL(ConvEncoder(1, (4, 8)), **{"hidden": 16, "out": 6, "optimizer": sgd, **knobs}).double()


def views(n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_equals_the_slow_reference_and_its_gradient() -> None:
    def slow(p: Tensor, z: Tensor) -> Tensor:
        distances = [(p[i] / p[i].norm() - z[i] / z[i].norm()).square().sum() for i in range(len(p))]
        return torch.stack(distances).sum() / len(p)

    p, z = pair()
    torch.testing.assert_close(regression_loss(p, z), slow(p, z), rtol=1e-12, atol=1e-12)
    p.requires_grad_()
    one, two = (torch.autograd.grad(loss(p, z), p)[0] for loss in (regression_loss, slow))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("target", "expected"), [([3.0, 0.0], 0.0), ([0.0, 2.0], 2.0), ([-1.0, 0.0], 4.0)])
def test_closed_forms(target: list[float], expected: float) -> None:
    """Same direction 0, orthogonal 2, opposite 4, whatever the lengths."""
    assert regression_loss(torch.tensor([[5.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_no_gradient_flows_into_the_target() -> None:
    p, z = (x.requires_grad_() for x in pair())
    regression_loss(p, z).backward()
    assert p.grad is not None and z.grad is None


def test_both_directions_are_summed() -> None:
    """Each view is predicted from the other one: the loss does not change when they are swapped, and is in
    [0, 8].
    """
    module, (a, b) = small(), views()
    loss = module.losses({"views": [a, b]})["loss"]
    torch.testing.assert_close(module.losses({"views": [b, a]})["loss"], loss)
    online = nn.Sequential(module.encoder, module.projector, module.predictor)
    ways = [regression_loss(online(x), module.teacher(y)) for x, y in ((a, b), (b, a))]
    assert (ways[0] - ways[1]).abs() > 1e-3
    torch.testing.assert_close(ways[0] + ways[1], loss)
    assert 0 <= loss <= 8


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    p, z = pair(8)
    shares = [regression_loss(p[i : i + 4], z[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, regression_loss(p, z))


def test_the_target_has_no_predictor_and_batch_norms_of_its_own() -> None:
    """Official: the target runs in training mode with its own running statistics; only parameters are
    averaged.
    """
    module = small().train()
    online = nn.Sequential(module.encoder, module.projector)
    assert [n for n, _ in module.teacher.net.named_parameters()] == [n for n, _ in online.named_parameters()]
    norm = next(m for m in module.teacher.modules() if isinstance(m, nn.BatchNorm2d))
    start = norm.running_mean.clone()
    module.losses({"views": views()})
    moved = norm.running_mean.clone()
    assert norm.training and not torch.equal(moved, start)
    with torch.no_grad():
        next(m for m in module.encoder.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.fill_(7.0)
    module.update_teacher()
    assert torch.equal(norm.running_mean, moved)


def test_heads_have_a_batch_norm_inside_and_none_at_the_end() -> None:
    module = small()
    for head in (module.projector, module.predictor):
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_the_target_follows_by_the_formula_once_per_step_and_ends_at_rest(tmp_path: Path) -> None:
    """Official: tau of step k from k / K, after the optimizer's step; accumulated batches count as one."""
    module = small(momentum=0.9).float()
    taus: list[float] = []
    update = module.teacher.update

    def record(source: nn.Module, tau: float) -> None:
        before = [p.clone() for p in module.teacher.parameters()]
        update(source, tau)
        for old, new, online in zip(before, module.teacher.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(new, tau * old + (1 - tau) * online)
        taus.append(tau)

    module.teacher.update = record  # type: ignore[method-assign]
    data = Digits(views=TwoViews(View(8), View(8)), batch_size=8)
    options = {
        "max_epochs": 1,
        "limit_train_batches": 8,
        "limit_val_batches": 0,
        "accumulate_grad_batches": 2,
    }
    trainer_for(tmp_path, **options).fit(module, data)
    assert taus == [cosine_momentum(k / 4, 0.9) for k in range(4)]
    assert taus[0] == pytest.approx(0.9) and cosine_momentum(1.0, 0.9) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16: the loss must leave half precision before it normalizes."""
    p, z = ((300 * x).to(dtype) for x in pair(16, 64))
    p.requires_grad_()
    loss = regression_loss(p, z)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and p.grad is not None and p.grad.isfinite().all()


@pytest.mark.parametrize(
    ("knob", "value"), [("momentum", -0.1), ("momentum", 1.5), ("hidden", 0), ("out", 0)]
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        small(**{knob: value})


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="BYOL needs two views of each sample, got 1"):
        small().check_batch({"input": views()[0], "views": views()[:1]})
