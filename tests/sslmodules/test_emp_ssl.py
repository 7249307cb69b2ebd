"""EMP-SSL's coding rate against a slow reference and closed forms, and a test for each known mistake."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.base import Gathered
from sslmodules.emp_ssl import EMPSSL, coding_rate, patch_similarity
from sslmodules.networks import ConvEncoder
from tests.sslmodules.references import assert_same


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rate(z: Tensor, epsilon: float) -> Tensor:
    """1/2 sum of log(1 + D / (N epsilon) * eigenvalue) of the full (D, D) matrix, view by view."""
    n, d = z.shape[1:]
    each = [0.5 * torch.linalg.eigvalsh(torch.eye(d) + d / (n * epsilon) * v.T @ v).log().sum() for v in z]
    return torch.stack(each)


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (2, 5, 5)])
def test_coding_rate_equals_the_slow_reference(shape: tuple[int, int, int]) -> None:
    """Values and gradients, where there are fewer samples than dimensions and where there are more."""
    assert_same(lambda z: coding_rate(z, 0.2), lambda z: slow_rate(z, 0.2), random(*shape))


def test_coding_rate_by_hand() -> None:
    """Orthogonal unit rows: N/2 log(1 + D / (N eps)). All rows equal: 1/2 log(1 + D / eps)."""
    eye = torch.eye(4, 8, dtype=torch.float64)
    assert coding_rate(eye, 0.5).item() == pytest.approx(2 * math.log(5), rel=1e-12)
    assert coding_rate(eye[:1].expand(4, 8), 0.5).item() == pytest.approx(math.log(17) / 2, rel=1e-12)


@pytest.mark.parametrize(("shape", "side"), [((2, 6, 300), 6), ((2, 300, 6), 6)])
def test_only_the_smaller_matrix_is_factorized(
    shape: tuple[int, int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the paper's 1,024 dimensions and 100 samples that is hundreds of times cheaper."""
    sides, factorize = [], torch.linalg.cholesky_ex

    def recorded(matrix: Tensor) -> Any:
        sides.append(matrix.shape[-2:])
        return factorize(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", recorded)
    coding_rate(random(*shape))
    assert sides == [(side, side)]


def slow_similarity(z: Tensor) -> Tensor:
    """Cosine with the mean, patch by patch."""
    each = []
    for n in range(z.shape[1]):
        patches = z[:, n].unbind()
        mean = sum(patches) / len(patches)
        each += [patch @ mean / (patch.norm() * mean.norm()) for patch in patches]  # type: ignore[union-attr]
    return torch.stack(each).mean()


def test_similarity_equals_the_slow_reference() -> None:
    assert_same(patch_similarity, slow_similarity, random(4, 3, 5))


def test_similarity_by_hand() -> None:
    """Two orthogonal unit vectors have the cosine 1 / sqrt 2 with their mean; and the mean learns too."""
    z = torch.eye(2, dtype=torch.float64)[:, None].requires_grad_()
    assert patch_similarity(z).item() == pytest.approx(1 / math.sqrt(2), rel=1e-12)
    assert torch.autograd.gradcheck(patch_similarity, random(3, 2, 4).requires_grad_())


def small(**options: Any) -> EMPSSL:
    torch.manual_seed(0)
    sizes = {"projector_hidden": 12, "projector_out": 6}
    encoder = ConvEncoder(1, (4, 8))
    return EMPSSL(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **{**sizes, **options})


def patches(count: int = 4, n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 8, 8, generator=generator) for _ in range(count)]


def test_the_loss_rewards_similarity_and_spread() -> None:
    """Of unit vectors, with one coding rate for each view: all views together would reward what keeps the
    patches of an image apart.
    """
    module, batch = small(similarity_weight=3.0), {"views": patches()}
    twin = small()
    z = F.normalize(twin.projector(twin.encoder(torch.cat(batch["views"]))), dim=1).unflatten(0, (4, 5))
    rate = coding_rate(z, 0.2).mean()
    terms = module.losses(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(terms["coding_rate"], rate)
    torch.testing.assert_close(terms["loss"], -3 * patch_similarity(z) - rate)


def test_all_ranks_are_gathered_within_a_view() -> None:
    module, gathered = small().train(), []

    def gather(z: Tensor) -> Gathered:
        gathered.append(torch.cat([z, z.roll(1, 2)]))  # as if there were a second rank
        return Gathered(gathered[-1], 0)

    module.gather = gather  # type: ignore[method-assign]
    terms = module.losses({"views": patches()})  # type: ignore[arg-type]
    assert [tuple(rows.shape) for rows in gathered] == [(10, 4, 6)]
    torch.testing.assert_close(terms["coding_rate"], coding_rate(gathered[0].transpose(0, 1), 0.2).mean())


def test_the_determinant_is_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = small().losses({"views": patches()})  # type: ignore[arg-type]
        rate = coding_rate(random(4, 6).bfloat16())
        inside = coding_rate(random(4, 6).float())
    torch.testing.assert_close(inside[None].double(), slow_rate(random(1, 4, 6), 0.2), rtol=1e-5, atol=0)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in (*terms.values(), rate))


def test_the_bag_is_not_what_probes_see() -> None:
    """The paper's number is of averaged patches behind the projector's first layer, ``embed`` is the clean
    image's.
    """
    module = small().eval()
    first, second = patches(2)
    bag = module.bag([first, second])
    assert bag.shape == (5, 12) and not bag.requires_grad
    torch.testing.assert_close(bag, (module.bag([first]) + module.bag([second])) / 2)
    layer = torch.nn.Sequential(*module.projector[:2])
    torch.testing.assert_close(module.bag([first]), F.relu(layer(module.encoder(first))))
    torch.testing.assert_close(module.embed(first), module.encoder(first))


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon must be positive, got 0"):
        small(epsilon=0)
    with pytest.raises(ValueError, match=r"epsilon must be positive, got -1"):
        coding_rate(torch.eye(2), -1)
    with pytest.raises(ValueError, match=r"similarity_weight must be at least 0, got -1"):
        small(similarity_weight=-1)
    for knob in ("projector_hidden", "projector_out"):
        with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
            small(**{knob: 0})
