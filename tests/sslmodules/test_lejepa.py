"""SIGReg against the paper's complex form, closed forms, and a test for each mistake found in other
implementations.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.lejepa import LeJEPA, prediction_loss, random_directions, sigreg
from sslmodules.networks import ConvEncoder


def slow_sigreg(z: Tensor, directions: Tensor, t_max: float = 5.0, points: int = 17) -> Tensor:
    """View by view and direction by direction, in complex128, on all points of [-t_max, t_max]."""
    t = torch.linspace(-t_max, t_max, points, dtype=torch.float64)
    normal = torch.exp(-(t**2) / 2)
    values = []
    for view in z.double():
        for a in directions.double().T:
            phi = torch.stack([torch.exp(1j * s * (view @ a)).mean() for s in t])
            error = (phi - normal).abs() ** 2 * normal
            values.append(
                len(view) * sum((t[i + 1] - t[i]) * (error[i] + error[i + 1]) / 2 for i in range(points - 1))
            )
    return torch.stack(values).mean()


def example(v: int = 3, b: int = 8, d: int = 5, m: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(v, b, d, generator=generator, dtype=torch.float64) * 1.5 + 0.3
    return z, random_directions(d, m, 0, torch.device("cpu")).double()


@pytest.mark.parametrize(("t_max", "points"), [(5.0, 17), (3.0, 9), (5.0, 3)])
def test_equals_the_slow_reference(t_max: float, points: int) -> None:
    z, a = example()
    torch.testing.assert_close(
        sigreg(z, a, t_max, points), slow_sigreg(z, a, t_max, points), rtol=1e-10, atol=1e-12
    )


def test_gradient_equals_the_slow_reference() -> None:
    z, a = example()
    one, two = z.clone().requires_grad_(), z.clone().requires_grad_()
    fast, slow = torch.autograd.grad(sigreg(one, a), one)[0], torch.autograd.grad(slow_sigreg(two, a), two)[0]
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_closed_form_of_collapse() -> None:
    """All embeddings 0: phi = 1, so the integral of (1 - e^(-t^2/2))^2 e^(-t^2/2) = sqrt(2 pi) (1 - 2/sqrt 2
    + 1/sqrt 3).
    """
    a = random_directions(4, 6, 0, torch.device("cpu")).double()
    expected = 10 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    value = sigreg(torch.zeros(2, 10, 4, dtype=torch.float64), a, t_max=8, points=201).item()
    assert value == pytest.approx(expected, rel=1e-6)
    assert sigreg(torch.zeros(2, 10, 4, dtype=torch.float64), a).item() == pytest.approx(expected, rel=1e-3)


def test_expected_value_under_the_gaussian() -> None:
    """E |phi - psi|^2 = (1 - psi^2) / N for samples of N(0, 1): N cancels, and sqrt(2 pi) (1 - 1/sqrt 3)
    remains.
    """
    z = torch.randn(20, 200, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a = random_directions(6, 20, 1, torch.device("cpu")).double()
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert sigreg(z, a).item() == pytest.approx(expected, rel=0.1)
    # what is no isotropic Gaussian is told from it: too wide, shifted, one dimension missing, signs in place
    # of normals
    flat = z.clone()
    flat[..., 0] = 0
    for other in (2 * z, z + 1, flat):
        assert sigreg(other, a) > 2 * expected
    assert sigreg(z.sign(), torch.eye(6, dtype=torch.float64)) > 2 * expected


def test_directions_are_unit_and_follow_from_the_seed_alone() -> None:
    first = random_directions(7, 5, 3, torch.device("cpu"))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(5))
    state = torch.get_rng_state()
    assert torch.equal(first, random_directions(7, 5, 3, torch.device("cpu")))
    assert torch.equal(state, torch.get_rng_state()), "the global random state was moved"
    assert not torch.equal(first, random_directions(7, 5, 4, torch.device("cpu")))


def test_every_view_is_tested_by_itself() -> None:
    """Known mistake: flattened over views, one view too wide and one too narrow pass for a Gaussian
    together.
    """
    z, a = example(2, 64)
    z = torch.stack([0.2 * z[0], 1.6 * z[1]])
    each = (sigreg(z[:1], a) + sigreg(z[1:], a)) / 2
    torch.testing.assert_close(sigreg(z, a), each)
    assert not torch.isclose(sigreg(z.flatten(0, 1)[None], a), each, rtol=0.1)


def test_two_ranks_have_the_value_and_the_gradient_of_one() -> None:
    """Known mistake: N is the rank's own number of samples, which divides lambda by the world size."""
    z, a = example(2, 8)
    whole, left, right = (
        z.clone().requires_grad_(),
        z[:, :4].clone().requires_grad_(),
        z[:, 4:].clone().requires_grad_(),
    )
    kept: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    sigreg(left, a, gather=remember)
    value = sigreg(right, a, gather=lambda x: torch.cat([kept[0], x]))
    torch.testing.assert_close(value, sigreg(whole, a))
    expected = torch.autograd.grad(sigreg(whole, a), whole)[0]
    torch.testing.assert_close(torch.cat(torch.autograd.grad(value, (left, right)), 1), expected)


def test_prediction_by_hand() -> None:
    """Two global views at 0 and 2, one local view at 4: distances to their mean 1 are 1, 1, 9."""
    z = torch.tensor([0.0, 2.0, 4.0])[:, None, None].expand(3, 5, 7)
    assert prediction_loss(z, 2).item() == pytest.approx(11 / 3)
    # the local view is no target: the mean over all views, 2, would give (4 + 0 + 4) / 3
    assert prediction_loss(z, 3).item() == pytest.approx(8 / 3)


def test_no_gradient_is_stopped() -> None:
    """Global views learn both as targets and as predictions."""
    z = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: prediction_loss(z, 2), z)
    prediction_loss(z, 2).backward()
    assert (
        z.grad is not None and z.grad.all() and z.grad.sum(0).abs().max() < 1e-12
    )  # a common shift changes nothing


def module_with(**options: Any) -> LeJEPA:
    knobs = {
        "projector_hidden": 16,
        "projector_out": 8,
        "slices": 8,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        **options,
    }
    torch.manual_seed(0)
    return LeJEPA(ConvEncoder(1, (4, 8)), **knobs)


def views(v: int = 3, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4, 1, size if i < 2 else 6, size if i < 2 else 6, generator=generator) for i in range(v)
    ]


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.5])
def test_the_objective_is_a_convex_combination(weight: float) -> None:
    """Known mistake: prediction + lambda * SIGReg, for which published lambdas mean something else."""
    module = module_with(sigreg_weight=weight)
    terms = module.losses({"views": views()})
    torch.testing.assert_close(terms["loss"], (1 - weight) * terms["prediction"] + weight * terms["sigreg"])


def test_all_views_count_in_both_terms() -> None:
    """Known mistake: global views left out of SIGReg and of the prediction."""
    module = module_with().double().eval()
    batch = [view.double() for view in views()]
    z = module.project(batch)
    assert z.shape == (3, 4, 8)
    terms = module.losses({"views": batch})
    a = module.directions(8, z.device).double()
    torch.testing.assert_close(terms["sigreg"], slow_sigreg(z, a))
    torch.testing.assert_close(terms["prediction"], (z - (z[0] + z[1]) / 2).square().mean())
    for i in range(3):
        other = [view.flip(3) if i == j else view for j, view in enumerate(batch)]
        changed = module.losses({"views": other})
        assert changed["sigreg"] != terms["sigreg"] and changed["prediction"] != terms["prediction"]


def test_views_of_different_sizes_keep_their_places() -> None:
    module = module_with().eval()
    batch = views(5)
    alone = torch.stack([module.projector(module.encoder(view)) for view in batch])
    torch.testing.assert_close(module.project(batch), alone)


def test_directions_are_the_same_on_all_ranks_and_new_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known mistake: directions drawn by each rank for itself; their gathered characteristic functions are of
    no direction.
    """
    module, device = module_with(), torch.device("cpu")
    drawn = []
    for rank, step in ((0, 5), (1, 5), (0, 6)):
        monkeypatch.setattr(LeJEPA, "global_rank", rank, raising=False)
        monkeypatch.setattr(LeJEPA, "global_step", step, raising=False)
        torch.manual_seed(rank)
        drawn.append(module.directions(8, device))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    module.eval()
    assert torch.equal(module.directions(8, device), module.directions(8, device))
    evaluated = module.directions(8, device)
    monkeypatch.setattr(LeJEPA, "global_step", 7, raising=False)
    assert torch.equal(evaluated, module.directions(8, device)), (
        "the validation loss would move with the draw"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_before_the_angles(dtype: torch.dtype) -> None:
    """Angles of t * a.z: in half precision the cosine of 100 is noise."""
    z, a = example(2, 32, 16)
    z = (20 * z).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sigreg(z, a.float())
        assert prediction_loss(z).dtype == torch.float32
    value.backward()
    assert value.dtype == torch.float32 and z.grad is not None and z.grad.isfinite().all()
    torch.testing.assert_close(value.double(), slow_sigreg(z, a), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("sigreg_weight", -0.1),
        ("sigreg_weight", 1.0),
        ("num_global", 0),
        ("slices", 0),
        ("t_max", 0.0),
        ("points", 16),
        ("points", 1),
        ("projector_hidden", 0),
        ("projector_out", 0),
        ("projector_layers", 0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module_with(**{knob: value})


def test_fewer_views_than_global_ones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_global is 3, but data\.views makes 2 views"):
        module_with(num_global=3).check_batch({"input": torch.zeros(4, 1, 8, 8), "views": views(2)})


def test_the_released_codes_quadrature_differs_by_less_than_one_percent() -> None:
    """Its 17 points lie on [0, 3]; the paper's on [-5, 5] (docs/methods/lejepa.md)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 512, 32, generator=generator, dtype=torch.float64)
    directions = F.normalize(torch.randn(32, 256, generator=generator, dtype=torch.float64), dim=0)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    angles = (z[0] @ directions)[..., None] * t  # (N, M, T)
    target = torch.exp(-t.square() / 2)
    distance = (angles.cos().mean(0) - target).square() + angles.sin().mean(0).square()  # (M, T)
    released = 2 * 512 * torch.trapezoid(distance * target, t).mean()
    ratio = (sigreg(z, directions) / released).item()
    assert 1.001 < ratio < 1.01
