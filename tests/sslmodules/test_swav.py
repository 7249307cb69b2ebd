"""SwAV: codes against the textbook iteration, swapped prediction view by view, and the known mistakes of
re-implementations.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Digits, MultiCrop, View
from sslmodules.base import Gathered
from sslmodules.networks import ConvEncoder, TimmEncoder
from sslmodules.swav import SwAV, encode_views, sinkhorn, swav_loss
from tests.conftest import trainer_for


def slow_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The paper's Q (K x B) with plain exponentials, sums spelt out, in float64."""
    q = torch.exp(scores.double().T / epsilon)
    k, b = q.shape
    for _ in range(iterations):
        for row in range(k):
            q[row] = q[row] / sum(q[row]) / k
        for column in range(b):
            q[:, column] = q[:, column] / sum(q[:, column]) / b
    return (q * b).T


def slow_loss(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Every pair (code of a global view, prediction of another view), sample by sample."""
    views, batch, _ = scores.shape
    terms = []
    for g in range(2):
        for v in range(views):
            if v != g:
                for i in range(batch):
                    e = torch.exp(scores[v, i] / temperature)
                    terms.append(-sum(codes[g, i] * torch.log(e / sum(e))))
    return torch.stack(terms).mean()


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (1.0, 10)])
def test_codes_equal_the_slow_reference(epsilon: float, iterations: int) -> None:
    scores = cosines(7, 4)
    torch.testing.assert_close(
        sinkhorn(scores, epsilon, iterations),
        slow_sinkhorn(scores, epsilon, iterations),
        rtol=1e-10,
        atol=1e-12,
    )


def test_codes_sum_to_one_and_use_prototypes_equally_in_the_limit() -> None:
    scores = cosines(12, 5) + torch.tensor([3.0, 0, 0, 0, 0])  # one prototype is everybody's favorite
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3).sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(
        sinkhorn(scores, 0.5, 200).sum(0), torch.full((5,), 12 / 5, dtype=torch.float64)
    )


def test_closed_forms_of_codes() -> None:
    torch.testing.assert_close(sinkhorn(torch.ones(6, 3)), torch.full((6, 3), 1 / 3))
    torch.testing.assert_close(
        sinkhorn(torch.eye(4)[torch.tensor([2, 0, 3, 1])]), torch.eye(4)[torch.tensor([2, 0, 3, 1])]
    )
    scores = cosines(5, 4)
    torch.testing.assert_close(sinkhorn(scores + 40), sinkhorn(scores))  # only differences count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_codes_do_not_overflow(dtype: torch.dtype) -> None:
    """exp(1 / 0.05) is beyond float16, exp(1 / 0.005) beyond float32."""
    codes = sinkhorn(cosines(64, 8).to(dtype), epsilon=0.005)
    assert codes.dtype == torch.float32 and codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(64))


def example() -> tuple[Tensor, Tensor]:
    scores = cosines(4, 5, 3)
    return scores, torch.stack([sinkhorn(s) for s in scores[:2]])


def test_loss_and_gradient_equal_the_slow_reference() -> None:
    scores, codes = example()
    results = []
    for loss in (swav_loss, slow_loss):
        leaf = scores.clone().requires_grad_()
        value = loss(leaf, codes, 0.1)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_closed_form_when_predictions_are_even_and_when_they_are_right() -> None:
    codes = torch.eye(3)[None, :, :].expand(2, 3, 3)
    assert swav_loss(torch.zeros(5, 3, 3), codes).item() == pytest.approx(math.log(3), abs=1e-6)
    assert swav_loss(torch.eye(3).expand(4, 3, 3), codes, 0.01).item() == pytest.approx(0, abs=1e-6)


def test_a_view_does_not_predict_its_own_code() -> None:
    """With two views each predicts the other: a view's prediction of its own code must not count."""
    scores, codes = example()
    codes[1] = codes[0]
    two = scores[:2].clone().requires_grad_()
    swav_loss(two, torch.stack([codes[0], torch.zeros_like(codes[0])])).backward()
    assert two.grad is not None and not two.grad[0].any() and two.grad[1].any()


def test_symmetries() -> None:
    scores, codes = example()
    loss = swav_loss(scores, codes)
    torch.testing.assert_close(swav_loss(scores[[1, 0, 2, 3]], codes[[1, 0]]), loss)
    torch.testing.assert_close(swav_loss(scores[[0, 1, 3, 2]], codes), loss)
    order = torch.randperm(5)
    torch.testing.assert_close(swav_loss(scores[:, order], codes[:, order]), loss)


def test_no_gradient_into_the_codes() -> None:
    scores, codes = example()
    codes.requires_grad_()
    assert (
        not swav_loss(scores, codes).requires_grad
        and not sinkhorn(scores.clone().requires_grad_()).requires_grad
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    scores = cosines(4, 32, 16).to(dtype).requires_grad_()
    loss = swav_loss(scores, torch.stack([sinkhorn(s) for s in scores[:2]]), temperature=1e-3)
    loss.backward()
    assert (
        loss.dtype == torch.float32
        and loss.isfinite()
        and scores.grad is not None
        and scores.grad.isfinite().all()
    )


# ---- the method --------------------------------------------------------------------------------------------


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1)


def module(**options: Any) -> SwAV:
    torch.manual_seed(0)
    defaults = {"num_prototypes": 6, "projector_hidden": 8, "projector_out": 5, "optimizer": sgd}
    return SwAV(ConvEncoder(1, (4, 8)), **{**defaults, **options})


def views(batch: int = 8, sizes: tuple[int, ...] = (8, 8, 6, 6, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 1, size, size, generator=generator) for size in sizes]


def test_views_are_encoded_in_order_whatever_their_sizes() -> None:
    """In one pass per size, and the order of the list survives."""
    encoder = ConvEncoder(1, (4, 8)).eval()
    calls = []
    encoder.register_forward_hook(lambda _, x, __: calls.append(tuple(x[0].shape[::3])))
    inputs = views(3, (8, 8, 6, 6, 8))
    together = encode_views(encoder, inputs)
    assert calls == [(6, 8), (6, 6), (3, 8)]
    torch.testing.assert_close(together, torch.cat([encoder(x) for x in inputs]))


def test_the_step_is_the_papers() -> None:
    """Projections and prototypes of unit length, codes from the two global views, predictions from all views;
    no gradient through the codes. The same by hand, with codes as constants, has the same gradients.
    """
    net, inputs = module().double(), [v.double() for v in views()]
    net.projector = nn.Sequential(nn.Linear(8, 5)).double()
    net.eval()
    net.encoder.requires_grad_(True)

    def by_hand() -> Tensor:
        c = F.normalize(net.prototypes.weight.detach(), dim=1)
        net.prototypes.weight.data.copy_(c)
        scores = torch.stack(
            [F.normalize(net.projector(net.encoder(v)), dim=1) @ net.prototypes.weight.T for v in inputs]
        )
        return slow_loss(scores, torch.stack([slow_sinkhorn(s.detach(), 0.05, 3) for s in scores[:2]]), 0.1)

    expected = by_hand()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net.training = True  # itself, not its batch norms: prototypes have a gradient only in training
    loss = net.losses({"views": inputs})["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-8, atol=1e-12)


def test_prototypes_are_of_unit_length_before_every_forward_and_stay_the_optimizers() -> None:
    net = module()
    optimizer = sgd(net.parameters())
    parameter = net.prototypes.weight
    for _ in range(3):
        optimizer.zero_grad()
        net.losses({"views": views()})["loss"].backward()
        torch.testing.assert_close(parameter.detach().norm(dim=1), torch.ones(6))
        optimizer.step()
    assert net.prototypes.weight is parameter and (parameter.detach().norm(dim=1) - 1).abs().max() > 1e-3
    before = parameter.detach().clone()
    net.eval()
    value = net.losses({"views": views()})["loss"]
    assert torch.equal(parameter, before)  # validation changes no weight ...
    parameter.data *= 3
    torch.testing.assert_close(
        net.losses({"views": views()})["loss"], value
    )  # ... and still sees unit prototypes


def fit(net: SwAV, folder: Path, steps: int, batch_size: int = 16, **options: Any) -> None:
    data = Digits(views=MultiCrop(View(8), View(8), View(6), 1), batch_size=batch_size)
    trainer_for(folder, max_steps=steps, limit_val_batches=0, **options).fit(net, data)


@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_prototypes_are_frozen_for_the_first_steps_only(frozen: int, tmp_path: Path) -> None:
    """With a gradient of zero, weight decay and momentum would still move them. Directions count, lengths are
    reset.
    """
    net = module(freeze_prototypes_steps=frozen)
    start = F.normalize(net.prototypes.weight.detach(), dim=1)
    fit(net, tmp_path, 3)
    moved = not torch.allclose(F.normalize(net.prototypes.weight.detach(), dim=1), start, atol=1e-6)
    assert moved == (frozen < 3)
    # frozen, they are as the last forward left them: of unit length, not shrunk by weight decay
    assert frozen < 3 or torch.allclose(net.prototypes.weight.detach(), start, atol=1e-6)


# ---- the queue ---------------------------------------------------------------------------------------------


def projections(batch: int, seed: int) -> Tensor:
    return F.normalize(cosines(2, batch, 5, seed=seed).float(), dim=2)


def test_queue_is_used_only_once_full_keeps_the_newest_and_is_read_before_it_is_filled() -> None:
    net = module(queue_size=8, queue_start_epoch=0)
    c = net.unit_prototypes().detach()
    batches = [projections(4, seed) for seed in range(4)]
    codes = [net.codes(z, c) for z in batches]
    for g in range(2):
        for step in (0, 1):  # not full: the batch alone
            torch.testing.assert_close(codes[step][g], sinkhorn(batches[step][g] @ c.T))
        old = torch.cat([batches[1][g], batches[0][g]])
        torch.testing.assert_close(codes[2][g], sinkhorn(torch.cat([batches[2][g], old]) @ c.T)[:4])
        assert not torch.allclose(codes[2][g], sinkhorn(batches[2][g] @ c.T), atol=1e-3)
        torch.testing.assert_close(net.queue[g], torch.cat([batches[3][g], batches[2][g]]))
    assert "queue" in net.state_dict()


def test_queue_waits_for_its_epoch_and_rests_in_validation() -> None:
    late = module(queue_size=8)
    late.codes(projections(4, 0), late.unit_prototypes())
    assert late.queue is not None and not late.queue.any()
    net = module(queue_size=4, queue_start_epoch=0)
    c = net.unit_prototypes().detach()
    net.codes(projections(4, 0), c)
    before = net.queue.clone()
    net.eval()
    z = projections(4, 1)
    torch.testing.assert_close(net.codes(z, c)[0], sinkhorn(z[0] @ c.T))
    assert torch.equal(net.queue, before)


def test_queue_of_all_ranks_and_the_place_of_this_ranks_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 2: codes come from the joined batch, its own rows are returned, and the queue holds everybody
    in rank order.
    """
    both = projections(8, 0)
    net = module(queue_size=8, queue_start_epoch=0)
    c = net.unit_prototypes().detach()
    expected = torch.stack([sinkhorn(z @ c.T)[4:] for z in both])
    monkeypatch.setattr(net, "gather", lambda z: Gathered(both.transpose(0, 1), 4))
    torch.testing.assert_close(net.codes(both[:, 4:], c), expected)
    torch.testing.assert_close(net.queue, both)


def test_the_filled_part_is_counted_anew_after_loading() -> None:
    net, other = module(queue_size=8, queue_start_epoch=0), module(queue_size=8, queue_start_epoch=0)
    for seed in (1, 2):
        net.codes(projections(4, seed), net.unit_prototypes())
    other.codes(projections(4, 3), net.unit_prototypes())
    assert (net.queue_filled, other.queue_filled) == (8, 4)
    other.load_state_dict(net.state_dict())
    assert other.queue_filled is None
    other.codes(projections(4, 3), net.unit_prototypes())
    assert other.queue_filled == 8


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("temperature", 0),
        ("epsilon", -0.05),
        ("num_prototypes", 1),
        ("sinkhorn_iterations", 0),
        ("projector_hidden", 0),
        ("projector_out", 0),
        ("freeze_prototypes_steps", -1),
        ("queue_size", -1),
        ("queue_start_epoch", -1),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module(**{knob: value})


def test_bad_arguments_of_the_functions() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        swav_loss(*example(), 0)
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        sinkhorn(cosines(2, 2), 0)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        sinkhorn(cosines(2, 2), iterations=0)


def test_a_queue_that_the_batch_does_not_divide_is_refused_at_start(tmp_path: Path) -> None:
    for size in (24, 8):
        with pytest.raises(
            ValueError, match=rf"queue_size must be a multiple of the global batch of 16 .*, got {size}"
        ):
            fit(module(queue_size=size), tmp_path, 1)


@pytest.mark.parametrize(
    ("sizes", "match"), [((8,), "two.* views.*, got 1"), ((8, 6), r"equal size, got \(8, 8\)")]
)
def test_views_that_cannot_serve_are_refused(sizes: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=f"SwAV.*{match}"):
        module().check_batch({"views": views(2, sizes)})


def test_a_vit_of_one_size_is_refused_for_local_views_and_what_is_advised_works() -> None:
    inputs = {"views": [torch.randn(2, 3, size, size) for size in (32, 32, 16)]}
    with pytest.raises(
        ValueError, match=r"images of \(32, 32\) only, but views has \(16, 16\): set any_size: true"
    ):
        SwAV(TimmEncoder("vit_tiny_patch16_224", 32, 8), optimizer=sgd).check_batch(inputs)
    net = SwAV(TimmEncoder("vit_tiny_patch16_224", 32, 8, any_size=True), num_prototypes=6, optimizer=sgd)
    net.check_batch(inputs)
    assert net.losses(inputs)["loss"].isfinite()
    with pytest.raises(ValueError, match=r"multiples of the encoder's patches \(8, 8\), got \(12, 12\)"):
        net.check_batch({"views": [*inputs["views"], torch.randn(2, 3, 12, 12)]})
    with pytest.raises(ValueError, match="any_size is for ViTs, but 'resnet10t'"):
        TimmEncoder("resnet10t", any_size=True)
