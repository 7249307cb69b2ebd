"""MoCo v3's loss against a slow reference, places across ranks, heads, the frozen patch projection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules import Digits, TwoViews, View
from sslmodules.moco_v3 import MoCoV3, contrastive_loss
from sslmodules.networks import ConvEncoder, TimmEncoder, cosine_momentum
from tests.conftest import trainer_for


def rows(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def small(encoder: nn.Module | None = None, **knobs: Any) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(encoder or ConvEncoder(1, (4, 8)), **{"hidden": 16, "out": 6, "optimizer": sgd, **knobs})


def views(n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_equals_the_slow_reference_and_its_gradient(temperature: float) -> None:
    def slow(q: Tensor, keys: Tensor, t: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(q)):
            scores = [torch.exp(torch.dot(q[i], k) / (q[i].norm() * k.norm() * t)) for k in keys]
            total -= 2 * t * torch.log(scores[i] / sum(scores))
        return total / len(q)

    q, keys = rows(6).requires_grad_(), rows(6, seed=1)
    torch.testing.assert_close(
        contrastive_loss(q, keys, temperature), slow(q, keys, temperature), rtol=1e-10, atol=1e-12
    )
    one, two = (torch.autograd.grad(loss(q, keys, temperature), q)[0] for loss in (contrastive_loss, slow))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_closed_forms() -> None:
    """Equal keys: 2T log N. Orthogonal keys: -2T log(e^(1/T) / (e^(1/T) + N - 1)). The factor 2T is part of
    it.
    """
    assert contrastive_loss(torch.ones(4, 3), torch.ones(4, 3), 0.3).item() == pytest.approx(
        0.6 * math.log(4), abs=1e-6
    )
    expected = -0.4 * math.log(math.exp(5) / (math.exp(5) + 2))
    assert contrastive_loss(torch.eye(3), 7 * torch.eye(3), 0.2).item() == pytest.approx(expected, abs=1e-6)


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    """What each rank computes on its rows against everybody's keys, averaged: places included."""
    q, keys = rows(8), rows(8, seed=1)
    shares = [contrastive_loss(q[i : i + 4], keys, 0.2, i) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, contrastive_loss(q, keys, 0.2))


def test_no_gradient_flows_into_the_keys() -> None:
    q, keys = rows(4).requires_grad_(), rows(4, seed=1).requires_grad_()
    contrastive_loss(q, keys).backward()
    assert q.grad is not None and keys.grad is None


def test_both_directions_are_summed() -> None:
    module, (a, b) = small().double().train(), [x.double() for x in views()]
    loss = module.losses({"views": [a, b]})["loss"]
    torch.testing.assert_close(module.losses({"views": [b, a]})["loss"], loss)
    online = nn.Sequential(module.encoder, module.projector, module.predictor)
    ways = [contrastive_loss(online(x), module.teacher(y)) for x, y in ((a, b), (b, a))]
    assert (ways[0] - ways[1]).abs() > 1e-4
    torch.testing.assert_close(ways[0] + ways[1], loss)


def test_heads_are_the_official_ones() -> None:
    """No bias anywhere, no scale in the last norm, which the predictor has with ViTs only."""
    linear, norm = nn.Linear, nn.BatchNorm1d
    resnet, vit = small(), small(projector_layers=3, predictor_last_norm=True)
    assert [type(m) for m in resnet.projector] == [linear, norm, nn.ReLU, linear, norm]
    assert [type(m) for m in vit.projector] == [linear, norm, nn.ReLU] * 2 + [linear, norm]
    assert [type(m) for m in resnet.predictor] == [linear, norm, nn.ReLU, linear]
    assert [type(m) for m in vit.predictor] == [linear, norm, nn.ReLU, linear, norm]
    for head in (resnet.projector, resnet.predictor, vit.projector, vit.predictor):
        assert all(m.bias is None for m in head if isinstance(m, linear))
    assert not any(head[-1].affine for head in (resnet.projector, vit.projector, vit.predictor))


def test_the_key_encoder_has_no_predictor_and_statistics_of_its_own() -> None:
    module = small().train()
    online = nn.Sequential(module.encoder, module.projector)
    assert [n for n, _ in module.teacher.net.named_parameters()] == [n for n, _ in online.named_parameters()]
    norm = next(m for m in module.teacher.modules() if isinstance(m, nn.BatchNorm2d))
    module.losses({"views": views()})["loss"].backward()
    assert norm.training and norm.num_batches_tracked == 2
    assert all(p.grad is None for p in module.teacher.parameters())


def test_the_momentum_rises_by_optimizer_steps(tmp_path: Path) -> None:
    module, taus = small(momentum=0.9), []
    module.teacher.update = lambda source, tau: taus.append(tau)  # type: ignore[method-assign]
    data = Digits(views=TwoViews(View(8), View(8)), batch_size=8)
    options = {
        "max_epochs": 1,
        "limit_train_batches": 8,
        "limit_val_batches": 0,
        "accumulate_grad_batches": 2,
    }
    trainer_for(tmp_path, **options).fit(module, data)
    assert taus == [cosine_momentum(k / 4, 0.9) for k in range(4)]


def test_the_patch_projection_of_a_vit_can_be_frozen() -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", image_size=8, patch_size=4, in_channels=1)
    encoder.net.blocks = encoder.net.blocks[:1]
    module = small(encoder, stop_grad_conv1=True)
    patch = dict(encoder.net.patch_embed.named_parameters())
    assert patch and not any(p.requires_grad for p in patch.values())
    grouped = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert not grouped & {id(p) for p in patch.values()}
    module.losses({"views": views()})["loss"].backward()
    assert all(p.grad is None for p in patch.values()) and encoder.net.pos_embed.grad is not None


def test_freezing_needs_a_vit() -> None:
    with pytest.raises(
        ValueError, match="stop_grad_conv1=True needs a ViT with a patch_embed; ConvEncoder has none"
    ):
        small(stop_grad_conv1=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_a_low_temperature(dtype: torch.dtype) -> None:
    q, keys = (rows(32, 16, seed).to(dtype) for seed in (0, 1))
    q.requires_grad_()
    loss = contrastive_loss(q, keys, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("temperature", 0),
        ("momentum", -0.1),
        ("momentum", 1.5),
        ("hidden", 0),
        ("out", 0),
        ("projector_layers", 0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        small(**{knob: value})


def test_bad_temperature_of_the_loss() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        contrastive_loss(rows(2), rows(2), 0)
