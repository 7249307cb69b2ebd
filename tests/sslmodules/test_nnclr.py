"""NNCLR's loss against a slow reference and a closed form, neighbors, the queue over steps and ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.base import Gathered
from sslmodules.networks import ConvEncoder
from sslmodules.nnclr import NNCLR, nearest_neighbors, neighbor_loss
from tests.sslmodules.references import assert_same


def small(**options: Any) -> NNCLR:
    torch.manual_seed(0)
    sizes = {"queue_size": 16, "projector_hidden": 12, "projector_out": 6, "predictor_hidden": 10}
    encoder = ConvEncoder(1, (4, 8))
    return NNCLR(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **{**sizes, **options})


def views(n: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_loss(neighbors: Tensor, p: Tensor, temperature: float, offset: int = 0) -> Tensor:
    terms = []
    for i, n in enumerate(neighbors):
        weights = [torch.exp(n @ row / row.norm() / temperature) for row in p]
        terms.append(-torch.log(weights[offset + i] / sum(weights)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_slow_reference(temperature: float) -> None:
    neighbors, p = F.normalize(random(5, 3), dim=1), 4 * random(7, 3, seed=1)

    def fast(neighbors: Tensor, p: Tensor) -> Tensor:
        return neighbor_loss(neighbors, p, temperature, 2)

    assert_same(fast, lambda neighbors, p: slow_loss(neighbors, p, temperature, 2), neighbors, p)
    torch.testing.assert_close(fast(neighbors, 7 * p), fast(neighbors, p), rtol=1e-12, atol=0)


def test_values_by_hand() -> None:
    """Orthogonal pairs: -log(e^(1/T) / (e^(1/T) + N - 1)). All predictions equal: log N."""
    unit = torch.eye(4, dtype=torch.float64)
    expected = -math.log(math.exp(2) / (math.exp(2) + 3))
    assert neighbor_loss(unit, 3 * unit, 0.5).item() == pytest.approx(expected, rel=1e-12)
    assert neighbor_loss(unit, torch.ones(4, 4), 0.5).item() == pytest.approx(math.log(4), rel=1e-6)


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    neighbors, p = F.normalize(random(8, 3), dim=1), random(8, 3, seed=1)
    shares = [neighbor_loss(neighbors[i : i + 4], p, 0.2, i) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, neighbor_loss(neighbors, p, 0.2))


def test_the_neighbor_is_the_most_similar_by_cosine() -> None:
    """Whatever the length of an embedding; and a loop over all rows finds the same."""
    z, support = random(20, 3), F.normalize(random(9, 3, seed=1), dim=1)
    slow = [max(range(9), key=lambda j, row=row: float(row @ support[j])) for row in z]  # type: ignore[misc]
    assert torch.equal(nearest_neighbors(z, support), support[slow])
    assert torch.equal(nearest_neighbors(100 * z, support), support[slow])


def test_the_loss_is_that_of_both_directions() -> None:
    """The neighbor of each view with the prediction of the other, halved; not with its own."""
    module, batch = small().train(), {"views": views()}
    twin = small().train()
    z1, z2 = (twin.projector(twin.encoder(view)) for view in batch["views"])
    p1, p2 = twin.predictor(z1), twin.predictor(z2)
    n1, n2 = (nearest_neighbors(z, twin.queue) for z in (z1, z2))
    expected = (neighbor_loss(n1, p2) + neighbor_loss(n2, p1)) / 2
    terms = module.losses(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(terms["loss"], expected)
    assert not torch.isclose(terms["loss"], (neighbor_loss(n1, p1) + neighbor_loss(n2, p2)) / 2)
    similarity = (F.normalize(z1, dim=1) * n1).sum(1).mean()
    torch.testing.assert_close(terms["neighbor_similarity"], similarity.detach())


def test_the_queue_is_read_before_it_is_written() -> None:
    """Or each view would be its own nearest neighbor. Newest first, oldest out."""
    module, start = small().train(), small().queue
    first = F.normalize(module.projector(module.encoder(views()[0])), dim=1).detach()
    module = small().train()
    assert module.losses({"views": views()})["neighbor_similarity"] < 0.99  # type: ignore[arg-type]
    torch.testing.assert_close(module.queue, torch.cat([first, start[:8]]))
    module.losses({"views": views(seed=1)})  # type: ignore[arg-type]
    torch.testing.assert_close(module.queue[8:], first)
    assert module.queue_filled == 16
    torch.testing.assert_close(module.queue.norm(dim=1), torch.ones(16))


def test_no_gradient_reaches_neighbors_or_queue() -> None:
    module = small().train()
    module.losses({"views": views()})["loss"].backward()  # type: ignore[arg-type]
    assert not module.queue.requires_grad and module.queue.grad_fn is None
    assert nearest_neighbors(random(2, 6).requires_grad_(), module.queue).grad_fn is None


def test_nothing_enters_the_queue_outside_of_training() -> None:
    module = small().eval()
    before = module.queue.clone()
    module.losses({"views": views()})  # type: ignore[arg-type]
    assert torch.equal(module.queue, before) and module.queue_filled == 0


def test_every_rank_pushes_the_projections_of_all_ranks() -> None:
    module, gathered = small().train(), []

    def gather(z: Tensor) -> Gathered:
        gathered.append(torch.cat([z, -z]))  # as if a second rank had the opposite
        return Gathered(gathered[-1], 0)

    module.gather = gather  # type: ignore[method-assign]
    module.losses({"views": views()})  # type: ignore[arg-type]
    assert [len(rows) for rows in gathered] == [16, 16, 16]  # two predictions, one projection
    torch.testing.assert_close(module.queue, F.normalize(gathered[-1], dim=1))


def test_half_precision_does_not_overflow() -> None:
    """exp(1 / 0.01) is beyond float16 and float32."""
    neighbors, p = F.normalize(torch.randn(4, 3), dim=1), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = neighbor_loss(neighbors, p.bfloat16(), 0.01)
    assert value.isfinite() and value.dtype == torch.float32


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        small(temperature=0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        neighbor_loss(torch.eye(2), torch.eye(2), -1)
    for knob in ("queue_size", "projector_hidden", "projector_out", "predictor_hidden"):
        with pytest.raises(ValueError, match=f"{knob} must be at least 1, got 0"):
            small(**{knob: 0})
    with pytest.raises(ValueError, match=r"queue_size must be a multiple of the global batch of 5 .*got 16"):
        small().check_batch_size(5)
