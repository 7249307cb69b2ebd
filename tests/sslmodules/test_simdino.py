"""SimDINO's terms against slow references, its teacher, and a test for each known mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor
from torch.nn import functional as F

from sslmodules.base import Gathered
from sslmodules.emp_ssl import coding_rate
from sslmodules.networks import ConvEncoder, ViTEncoder
from sslmodules.simdino import SimDINO, cross_view_similarity, expansion
from tests.sslmodules.references import assert_same


def unit(*shape: int, seed: int = 0) -> Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(z, dim=-1)


def small(**options: Any) -> SimDINO:
    torch.manual_seed(0)
    sizes = {"projector_hidden": 12, "projector_out": 6}
    encoder = ConvEncoder(1, (4, 8))
    return SimDINO(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **{**sizes, **options})


def views(n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, side, side, generator=generator) for side in (8, 8, 6)]


def test_similarity_equals_the_slow_reference() -> None:
    """Known mistake: the pair of a view with itself."""

    def slow(student: Tensor, teacher: Tensor) -> Tensor:
        teacher = teacher.detach()
        places = [(g, v, i) for g in range(2) for v in range(4) if v != g for i in range(5)]
        assert len(places) == 2 * 3 * 5
        total: Any = sum(student[v, i] @ teacher[g, i] for g, v, i in places)
        return total / len(places)

    assert_same(cross_view_similarity, slow, unit(4, 5, 3), unit(2, 5, 3, seed=1))


def test_expansion_equals_the_slow_reference() -> None:
    """The factor is (D + N) / (D N): 1/2 log det as in the official code, by Cholesky's diagonal."""

    def slow(z: Tensor) -> Tensor:
        covariances = [sum(torch.outer(row, row) for row in view) for view in z]
        rates = [0.5 * torch.logdet(torch.eye(3) + 3 / (7 * 0.05) * c) for c in covariances]
        total: Any = sum(rates)
        return (3 + 7) / (3 * 7) * total / 2

    assert_same(lambda z: expansion(z, 0.05), slow, unit(2, 7, 3))


def test_the_loss_is_of_the_mean_of_student_and_teacher() -> None:
    module, batch = small(rate_weight=2.0).eval(), {"views": views()}
    for p in module.teacher.parameters():  # as after some steps
        p.mul_(1.1).add_(0.01)
    z = torch.stack([module.projector(module.encoder(view)) for view in batch["views"]])
    t = torch.stack([module.teacher(view) for view in batch["views"][:2]])
    z, t = F.normalize(z, dim=2), F.normalize(t, dim=2)
    rate = 11 / 30 * coding_rate((z[:2] + t) / 2, 0.05).mean()
    terms = module.losses(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(terms["expansion"], rate)
    torch.testing.assert_close(terms["loss"], -cross_view_similarity(z, t) - 2 * rate)


def test_the_covariance_is_that_of_all_ranks() -> None:
    """Known failure: with a small batch on each process the own covariance has too low a rank."""
    module, gathered = small().train(), []

    def gather(z: Tensor) -> Gathered:
        gathered.append(torch.cat([z, z.roll(1, 2)]))  # as if there were a second rank
        return Gathered(gathered[-1], 0)

    module.gather = gather  # type: ignore[method-assign]
    terms = module.losses({"views": views()})  # type: ignore[arg-type]
    assert [tuple(rows.shape) for rows in gathered] == [(10, 2, 6)]
    torch.testing.assert_close(terms["expansion"], expansion(gathered[0].transpose(0, 1), 0.05))


def test_the_teacher_gets_no_gradient_and_follows() -> None:
    module = small(momentum=0.5).train()
    module.losses({"views": views()})["loss"].backward()  # type: ignore[arg-type]
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    before = [p.clone() for p in module.teacher.parameters()]
    with torch.no_grad():
        for p in module.student().parameters():
            p.add_(1)
    module.update_teacher()
    for old, new in zip(before, module.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)
    assert module.feature_encoder is module.teacher.net[0]  # type: ignore[index]


def test_the_teacher_is_without_noise() -> None:
    """Known mistake: stochastic depth left on in the teacher, which is in training mode."""
    encoder: Any = ViTEncoder(8, 2, 1, width=8, depth=1, heads=2)
    encoder.blocks[0].drop_path1 = DropPath(0.5)
    module = SimDINO(encoder, optimizer=torch.optim.SGD, projector_hidden=12, projector_out=6)
    x = views(20)[0]
    assert module.teacher.training and torch.equal(module.teacher(x), module.teacher(x))
    assert not torch.equal(module.encoder(x), module.encoder(x))


def test_the_determinant_is_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = small().losses({"views": views()})  # type: ignore[arg-type]
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon must be positive, got 0"):
        small(epsilon=0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 2"):
        small(momentum=2)
    with pytest.raises(ValueError, match=r"rate_weight must be at least 0, got -1"):
        small(rate_weight=-1)
    for knob in ("projector_hidden", "projector_layers", "projector_out"):
        with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
            small(**{knob: 0})
