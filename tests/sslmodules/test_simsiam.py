"""SimSiam's loss against a slow reference, the stop-gradient, the constant learning rate of the predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sslmodules.simsiam
from datamodules import Digits, TwoViews, View
from sslmodules.networks import ConvEncoder
from sslmodules.optim import warmup_cosine
from sslmodules.simsiam import SimSiam, negative_cosine, spread
from tests.conftest import trainer_for


def pair(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def small(**knobs: Any) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(
        ConvEncoder(1, (4, 8)), **{"projector_out": 16, "predictor_hidden": 4, "optimizer": sgd, **knobs}
    )


def views(n: int = 16) -> list[Tensor]:
    """Two views that share content: an image with noise on it."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(n, 1, 8, 8, generator=generator)
    return [image + 0.3 * torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2)]


def test_equals_the_slow_reference_and_its_gradient() -> None:
    def slow(p: Tensor, z: Tensor) -> Tensor:
        return -sum(torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)) / len(p)

    p, z = pair()
    torch.testing.assert_close(negative_cosine(p, z), slow(p, z), rtol=1e-12, atol=1e-12)
    p.requires_grad_()
    one, two = (torch.autograd.grad(loss(p, z), p)[0] for loss in (negative_cosine, slow))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("target", "expected"), [([3.0, 0.0], -1.0), ([0.0, 2.0], 0.0), ([-1.0, 0.0], 1.0)])
def test_closed_forms(target: list[float], expected: float) -> None:
    assert negative_cosine(torch.tensor([[5.0, 0.0]]), torch.tensor([target])).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_no_gradient_flows_into_the_target() -> None:
    p, z = (x.requires_grad_() for x in pair())
    negative_cosine(p, z).backward()
    assert p.grad is not None and z.grad is None


def test_without_the_stop_gradient_the_loss_goes_to_minus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's experiment in small: the same steps on very noisy views, with and without it. The spread
    tells too.
    """

    def train() -> tuple[float, float]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        encoder.num_features = 8
        module = SimSiam(encoder, projector_out=16, predictor_hidden=4, optimizer=sgd)
        optimizer = sgd(module.parameters())
        generator = torch.Generator().manual_seed(1)
        lowest = 0.0
        for _ in range(70):
            image = torch.randn(64, 16, generator=generator)
            terms = module.losses(
                {"views": [image + torch.randn(64, 16, generator=generator) for _ in range(2)]}
            )
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            lowest = min(lowest, terms["loss"].item())
        return lowest, terms["z_spread"].item()

    lowest, still_spread = train()
    assert lowest > -0.6 and still_spread > 0.9
    monkeypatch.setattr(
        sslmodules.simsiam, "negative_cosine", lambda p, z: -F.cosine_similarity(p, z, dim=1).mean()
    )
    lowest, still_spread = train()
    assert lowest < -0.85 and still_spread < 0.6


def test_both_directions_are_averaged() -> None:
    module, (a, b) = small(), views()
    loss = module.losses({"views": [a, b]})["loss"]
    torch.testing.assert_close(module.losses({"views": [b, a]})["loss"], loss)
    z1, z2 = (module.projector(module.encoder(x)) for x in (a, b))
    ways = [negative_cosine(module.predictor(z1), z2), negative_cosine(module.predictor(z2), z1)]
    assert (ways[0] - ways[1]).abs() > 1e-4
    torch.testing.assert_close((ways[0] + ways[1]) / 2, loss)


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    p, z = pair(8)
    shares = [negative_cosine(p[i : i + 4], z[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, negative_cosine(p, z))


def test_spread() -> None:
    """0 for one direction, near 1 for directions all over the sphere; alive at a batch of one."""
    assert spread(torch.ones(5, 3) * torch.arange(1, 6)[:, None]).item() == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert spread(torch.randn(2000, 64)).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.randn(1, 8)).item() == 0


def test_heads_are_the_papers() -> None:
    projector, predictor = small().projector, small().predictor
    linear, norm = nn.Linear, nn.BatchNorm1d
    assert [type(m) for m in projector] == [linear, norm, nn.ReLU, linear, norm, nn.ReLU, linear, norm]
    assert all(m.bias is None for m in projector if isinstance(m, linear))
    assert [m.affine for m in projector if isinstance(m, norm)] == [True, True, False]
    assert [type(m) for m in predictor] == [linear, norm, nn.ReLU, linear]
    assert predictor[0].bias is None and predictor[-1].bias is not None


def test_the_predictors_learning_rate_stays(tmp_path: Path) -> None:
    """All other groups warm up and decay."""
    module = small(warmup_epochs=0.5)
    rates: list[list[float]] = []
    losses = module.losses

    def record(batch: Any) -> dict[str, Tensor]:
        rates.append([group["lr"] for group in module.trainer.optimizers[0].param_groups])
        return losses(batch)

    module.losses = record  # type: ignore[method-assign]
    trainer = trainer_for(tmp_path, max_epochs=1, limit_train_batches=6, limit_val_batches=0)
    trainer.fit(module, Digits(views=TwoViews(View(8), View(8)), batch_size=8))
    groups = trainer.optimizers[0].param_groups
    predictor = {id(p) for p in module.predictor.parameters()}
    constant = [i for i, group in enumerate(groups) if predictor & {id(p) for p in group["params"]}]
    assert {id(p) for i in constant for p in groups[i]["params"]} == predictor and len(constant) == 2
    factor = warmup_cosine(6, 3)
    for step, lrs in enumerate(rates):
        expected = [0.1 if i in constant else 0.1 * factor(step) for i in range(len(groups))]
        assert lrs == pytest.approx(expected)
    assert len(rates) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16: the loss must leave half precision before it normalizes."""
    p, z = ((300 * x).to(dtype) for x in pair(16, 64))
    p.requires_grad_()
    loss = negative_cosine(p, z)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and p.grad is not None and p.grad.isfinite().all()
    assert spread(z).isfinite()


@pytest.mark.parametrize(
    "knob", ["projector_hidden", "projector_out", "projector_layers", "predictor_hidden"]
)
def test_a_bad_knob_is_named_with_its_value(knob: str) -> None:
    with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
        small(**{knob: 0})
