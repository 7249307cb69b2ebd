"""FastSiam's target by hand, against SimSiam, and a test for each known mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslmodules.fast_siam import FastSiam, mean_of_others
from sslmodules.networks import ConvEncoder
from sslmodules.simsiam import SimSiam
from tests.sslmodules.references import assert_gradients_close, gradients


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


@pytest.mark.parametrize("count", [3, 4])
def test_the_loss_equals_the_slow_reference(count: int) -> None:
    """Values and gradients: sample by sample, and no gradient reaches a target."""
    batch = {"views": [view.double() for view in views(count)]}
    module, twin = small().double().train(), small().double().train()
    z = [twin.projector(twin.encoder(view)) for view in batch["views"]]
    p = [twin.predictor(view) for view in z]
    terms = []
    for v in range(count):
        for i in range(5):
            target = sum(z[o][i].detach() for o in range(count) if o != v) / (count - 1)
            terms.append(-p[v][i] @ target / (p[v][i].norm() * target.norm()))
    found, expected = module.losses(batch)["loss"], sum(terms) / len(terms)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    fast, slow = (
        gradients([loss], list(one.parameters())) for loss, one in ((found, module), (expected, twin))
    )
    assert_gradients_close(fast, slow)


def test_the_predictor_keeps_its_learning_rate() -> None:
    module = small()
    constant = {id(p) for g in module.parameter_groups() if g.get("constant_lr") for p in g["params"]}
    assert constant == {id(p) for p in module.predictor.parameters()}


def test_bad_knobs_are_refused() -> None:
    for knob in ("projector_hidden", "projector_out", "projector_layers", "predictor_hidden"):
        with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
            small(**{knob: 0})
