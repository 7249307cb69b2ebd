"""FastSiam's target by hand, against SimSiam, and a test for each known mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.fast_siam import FastSiam, mean_of_others
from sslmodules.networks import ConvEncoder
from sslmodules.simsiam import SimSiam


def small(kind: Any = FastSiam, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"projector_out": 6, "predictor_hidden": 4}
    return kind(
        ConvEncoder(1, (4, 8)), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **{**sizes, **options}
    )


def views(count: int, n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 8, 8, generator=generator) for _ in range(count)]


def test_the_target_is_the_mean_of_the_other_views() -> None:
    """Known mistake: with the view itself in the mean, it predicts itself in part."""
    z = torch.tensor([1.0, 2.0, 6.0])[:, None, None].expand(3, 2, 4)
    assert mean_of_others(z)[:, 0, 0].tolist() == [4.0, 3.5, 1.5]


def test_the_mean_is_of_projections_as_they_are() -> None:
    """Not of unit vectors: a long projection counts for more."""
    z = torch.tensor([[[0.0, 1.0]], [[3.0, 0.0]], [[0.0, 1.0]]])
    assert mean_of_others(z)[0].tolist() == [[1.5, 0.5]]


def test_two_views_are_simsiam() -> None:
    batch = {"views": views(2)}
    torch.testing.assert_close(small().losses(batch), small(SimSiam).losses(batch))


def test_the_loss_is_the_mean_over_all_views() -> None:
    module, twin, batch = small().train(), small().train(), {"views": views(4)}
    z = [twin.projector(twin.encoder(view)) for view in batch["views"]]
    terms = []
    for v in range(4):
        target = sum(z[o] for o in range(4) if o != v) / 3
        terms.append(-F.cosine_similarity(twin.predictor(z[v]), target.detach(), dim=1).mean())
    torch.testing.assert_close(module.losses(batch)["loss"], sum(terms) / 4)


def test_no_gradient_reaches_the_target() -> None:
    """With three views of which one is only a target, its projection gets a gradient as prediction alone."""
    module = small().train()
    module.losses({"views": views(3)})["loss"].backward()
    expected = [p.grad.clone() for p in module.parameters()]
    twin = small().train()
    z = torch.stack([twin.projector(twin.encoder(view)) for view in views(3)])
    targets = mean_of_others(z).detach()
    pairs = zip(z, targets, strict=True)
    loss = -sum(F.cosine_similarity(twin.predictor(a), b, dim=1).mean() for a, b in pairs) / 3
    loss.backward()
    for got, p in zip(expected, twin.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)


def test_the_predictor_keeps_its_learning_rate() -> None:
    module = small()
    constant = {id(p) for g in module.parameter_groups() if g.get("constant_lr") for p in g["params"]}
    assert constant == {id(p) for p in module.predictor.parameters()}


def test_bad_knobs_are_refused() -> None:
    for knob in ("projector_hidden", "projector_out", "projector_layers", "predictor_hidden"):
        with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
            small(**{knob: 0})
