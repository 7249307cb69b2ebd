"""DINO: the loss pair by pair, the order of center and softmax, schedules, and the known mistakes of
re-implementations.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Digits, MultiCrop, View
from sslmodules.base import Gathered
from sslmodules.dino import DINO, DINOHead, dino_loss, teacher_probabilities
from sslmodules.networks import ConvEncoder, TimmEncoder
from tests.conftest import trainer_for


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_loss(student: Tensor, teacher: Tensor, center: Tensor, student_t: float, teacher_t: float) -> Tensor:
    """Eq. 3 of the paper with the center of section 3.1: pair by pair, sample by sample, plain
    exponentials.
    """
    terms = []
    for g in range(2):
        for v in range(len(student)):
            if v == g:
                continue
            for i in range(student.shape[1]):
                q = torch.exp((teacher[g, i] - center[0]) / teacher_t)
                p = torch.exp(student[v, i] / student_t)
                terms.append(-sum((q / sum(q)).detach() * torch.log(p / sum(p))))
    return torch.stack(terms).mean()


def fast_loss(student: Tensor, teacher: Tensor, center: Tensor, student_t: float, teacher_t: float) -> Tensor:
    return dino_loss(student, teacher_probabilities(teacher, center, teacher_t), student_t)


@pytest.mark.parametrize(("student_t", "teacher_t"), [(0.1, 0.04), (0.1, 0.07), (1.0, 1.0)])
def test_loss_and_gradient_equal_the_slow_reference(student_t: float, teacher_t: float) -> None:
    student, teacher, center = random(4, 5, 3), random(2, 5, 3, seed=1), random(1, 3, seed=2)
    results = []
    for loss in (fast_loss, slow_loss):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, center, student_t, teacher_t)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_closed_forms() -> None:
    """Uniform students score log K whatever the teacher; a correct, certain student scores 0."""
    teacher, center = torch.eye(3).expand(2, 3, 3), torch.zeros(1, 3)
    assert fast_loss(torch.zeros(5, 3, 3), teacher, center, 0.1, 0.04).item() == pytest.approx(
        math.log(3), abs=1e-6
    )
    assert fast_loss(torch.eye(3).expand(4, 3, 3), teacher, center, 0.01, 0.01).item() == pytest.approx(
        0, abs=1e-6
    )


def test_a_center_equal_to_the_output_makes_the_target_even() -> None:
    center = random(1, 4)
    targets = teacher_probabilities(center.expand(2, 3, 4), center, 0.04)
    torch.testing.assert_close(targets, torch.full_like(targets, 0.25))


def test_a_view_is_not_its_own_target_and_the_teacher_has_no_gradient() -> None:
    student, teacher = random(2, 5, 3).requires_grad_(), random(2, 5, 3, seed=1).requires_grad_()
    targets = teacher_probabilities(teacher, torch.zeros(1, 3), 0.04)
    assert not targets.requires_grad
    dino_loss(student, torch.stack([targets[0], torch.zeros_like(targets[0])])).backward()
    assert student.grad is not None and not student.grad[0].any() and student.grad[1].any()
    leaf = targets.clone().requires_grad_()
    dino_loss(student, leaf).backward()
    assert leaf.grad is None


def test_symmetries() -> None:
    student, teacher, center = random(4, 5, 3), random(2, 5, 3, seed=1), random(1, 3, seed=2)
    loss = fast_loss(student, teacher, center, 0.1, 0.04)
    torch.testing.assert_close(fast_loss(student[[1, 0, 2, 3]], teacher[[1, 0]], center, 0.1, 0.04), loss)
    torch.testing.assert_close(fast_loss(student[[0, 1, 3, 2]], teacher, center, 0.1, 0.04), loss)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        fast_loss(student[..., order], teacher[..., order], center[..., order], 0.1, 0.04), loss
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    student, teacher = random(4, 32, 16).to(dtype).requires_grad_(), random(2, 32, 16, seed=1).to(dtype)
    loss = fast_loss(student, teacher, torch.zeros(1, 16), 1e-3, 1e-3)
    loss.backward()
    assert (
        loss.dtype == torch.float32
        and loss.isfinite()
        and student.grad is not None
        and student.grad.isfinite().all()
    )


# ---- the method --------------------------------------------------------------------------------------------


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1)


def module(**options: Any) -> DINO:
    torch.manual_seed(0)
    defaults = {
        "num_prototypes": 6,
        "projector_hidden": 8,
        "bottleneck": 5,
        "optimizer": sgd,
        "freeze_last_layer_epochs": 0,
    }
    return DINO(ConvEncoder(1, (4, 8)), **{**defaults, **options})


def views(batch: int = 8, sizes: tuple[int, ...] = (8, 8, 6, 6, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 1, size, size, generator=generator) for size in sizes]


def fit(
    net: DINO, folder: Path, batch_size: int = 64, callbacks: tuple[Callback, ...] = (), **options: Any
) -> Any:
    data = Digits(views=MultiCrop(View(8), View(8), View(6), 1), batch_size=batch_size)
    trainer = trainer_for(folder, limit_val_batches=0, callbacks=list(callbacks), **options)
    trainer.fit(net, data)
    return trainer


class Watch(Callback):
    """What a method looks like at the start of each batch and after its last step, in the order of calls."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.look(pl_module, trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(self.look(pl_module, trainer))


def test_the_step_is_the_papers() -> None:
    """The student sees all views, the teacher the two global ones with ITS weights; the center of earlier
    batches is taken off; then the center moves by the mean of this batch's logits.
    """
    net, inputs = module().double(), [v.double() for v in views()]
    net.eval()  # batch norms, so that a view at a time is the same as all views
    for p in net.teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)
    student = torch.stack([net.projector(net.encoder(v)) for v in inputs])
    teacher = torch.stack([net.teacher.net(v) for v in inputs[:2]])
    # near the logits' mean, or the teacher would be so sure that no center makes a difference
    net.center.copy_(teacher.mean((0, 1)).detach() + 0.05 * random(1, 6))
    center = net.center.clone()
    expected = slow_loss(student, teacher, center, 0.1, 0.04)
    torch.testing.assert_close(net.losses({"views": inputs})["loss"], expected)
    assert torch.equal(net.center, center)  # validation moves nothing
    net.training = True  # itself, not its batch norms
    torch.testing.assert_close(net.losses({"views": inputs})["loss"], expected)
    torch.testing.assert_close(net.center, 0.9 * center + 0.1 * teacher.mean((0, 1)))
    after = slow_loss(student, teacher, net.center, 0.1, 0.04)  # now it is used
    assert not torch.allclose(after, expected, rtol=1e-6)
    torch.testing.assert_close(net.losses({"views": inputs})["loss"], after)


def test_center_is_the_mean_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    net, mine, other = module(), random(2, 4, 6), random(2, 4, 6, seed=1)
    monkeypatch.setattr(net, "gather", lambda z: Gathered(torch.cat([z, other.mean((0, 1))[None]]), 0))
    net.update_center(mine)
    torch.testing.assert_close(
        net.center.double(), 0.1 * torch.cat([mine, other], 1).mean((0, 1))[None], atol=1e-6, rtol=1e-5
    )
    assert "center" in net.state_dict()


def test_teacher_starts_as_the_student_follows_it_and_ends_still(tmp_path: Path) -> None:
    """One EMA step per optimizer step, also under accumulation, with a momentum that is 1 at the end of the
    run.
    """
    net = module(momentum=0.5)
    for mine, theirs in zip(net.teacher.parameters(), net.student().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    watch = Watch(
        lambda m, _: (m.projector.mlp[0].weight.detach().clone(), m.teacher.net[1].mlp[0].weight.clone())
    )
    fit(net, tmp_path, callbacks=(watch,), max_epochs=1, limit_train_batches=8, accumulate_grad_batches=2)
    assert len(watch.seen) == 9
    for batch in range(0, 8, 2):
        (_, t0), (_, t1), (s2, t2) = watch.seen[batch : batch + 3]
        assert torch.equal(t0, t1)
        m = 1 - 0.5 * (math.cos(math.pi * batch / 8) + 1) / 2
        torch.testing.assert_close(t2, m * t0 + (1 - m) * s2)


def test_the_teacher_is_without_noise() -> None:
    """It is in training mode for the sake of its batch norms: dropout and stochastic depth must be off all
    the same.
    """
    import timm

    vit = timm.models.VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=0,
        drop_path_rate=0.5,
        proj_drop_rate=0.5,
    )
    net = DINO(vit, num_prototypes=6, projector_hidden=8, bottleneck=5, optimizer=sgd)
    x = torch.randn(16, 3, 16, 16)
    assert net.teacher.training
    assert torch.equal(net.teacher(x), net.teacher(x)) and not torch.equal(net.encoder(x), net.encoder(x))


@pytest.mark.parametrize(("frozen", "moves"), [(1, [False, True]), (2, [False, False]), (0, [True, True])])
def test_last_layer_is_frozen_for_whole_epochs(frozen: int, moves: list[bool], tmp_path: Path) -> None:
    """Not by a gradient of zero, with which weight decay (0.1 here) and momentum would still move it."""
    net = module(freeze_last_layer_epochs=frozen)
    watch = Watch(
        lambda m, _: (
            m.projector.last_layer.weight.detach().clone(),
            m.projector.mlp[0].weight.detach().clone(),
        )
    )
    fit(net, tmp_path, callbacks=(watch,), max_epochs=2, limit_train_batches=2)
    assert [not torch.equal(watch.seen[e][0], watch.seen[e + 2][0]) for e in (0, 2)] == moves
    assert not torch.equal(watch.seen[0][1], watch.seen[2][1])


def test_each_gradient_is_clipped_by_itself(tmp_path: Path) -> None:
    """A small gradient is left alone beside a large one: one norm over all would shrink both."""
    net = module(clip_norm=0.5)
    with torch.no_grad():
        for p in net.parameters():
            p.grad = torch.full_like(p, 0.0)
        large, small = net.projector.mlp[0].weight, net.projector.mlp[0].bias
        large.grad.fill_(10.0)
        small.grad.fill_(0.01)
    net.on_before_optimizer_step(sgd(net.parameters()))
    assert large.grad.norm().item() == pytest.approx(0.5, abs=1e-4) and small.grad.eq(0.01).all()

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.extend(p.grad.norm().item() for p in pl_module.parameters() if p.grad is not None)

    for limit in (1e-3, None):  # in a run: what reaches the optimizer
        seen: list[float] = []
        fit(module(clip_norm=limit), tmp_path, callbacks=(Norms(),), max_steps=2)
        assert seen and (max(seen) <= 1.001e-3) == (limit is not None)


def test_temperature_of_the_teacher_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    net = module(teacher_temperature=0.07, teacher_temperature_epochs=4)
    values = []
    for epoch in range(6):
        monkeypatch.setattr(DINO, "current_epoch", epoch)
        values.append(net.current_teacher_temperature())
    assert values == pytest.approx(
        [0.04, 0.05, 0.06, 0.07, 0.07, 0.07]
    )  # the official schedule, and no end to it
    monkeypatch.setattr(DINO, "current_epoch", 0)
    assert module(teacher_temperature_epochs=0).current_teacher_temperature() == 0.07
    assert module(teacher_temperature_epochs=1).current_teacher_temperature() == 0.04


def test_the_temperature_of_the_epoch_is_the_one_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    net = module().eval()
    first = net.losses({"views": views()})["loss"]
    monkeypatch.setattr(DINO, "current_epoch", 40)
    last = net.losses({"views": views()})["loss"]
    torch.testing.assert_close(
        last, module(warmup_teacher_temperature=0.07).eval().losses({"views": views()})["loss"]
    )
    assert not torch.equal(first, last)


def test_weight_decay_rises_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """A half cosine over optimizer steps from the optimizer's value; biases and norms stay without."""

    def look(m: Any, trainer: Any) -> list[float]:
        return [group["weight_decay"] for group in trainer.optimizers[0].param_groups]

    watch = Watch(look)
    trainer = fit(
        module(final_weight_decay=0.5), tmp_path, callbacks=(watch,), max_epochs=4, limit_train_batches=2
    )
    expected = [0.5 + (0.1 - 0.5) * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert [seen[0] for seen in watch.seen[1:]] == pytest.approx(expected)
    assert {seen[1] for seen in watch.seen} == {0.0}
    assert (
        trainer.optimizers[0].state_dict()["param_groups"][0]["initial_weight_decay"] == 0.1
    )  # goes into the checkpoint
    constant = Watch(look)
    fit(module(final_weight_decay=None), tmp_path, callbacks=(constant,), max_epochs=1, limit_train_batches=2)
    assert {seen[0] for seen in constant.seen} == {0.1}


def test_head_gives_cosines_with_prototypes() -> None:
    """Weight norm with its gain frozen at 1: the length of a prototype does not matter and nothing can grow
    it into a gain.
    """
    head = DINOHead(4, 8, 5, 6)
    h = torch.randn(7, 4)
    out = head(h)
    assert out.shape == (7, 6) and out.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(
        out, F.cosine_similarity(head.mlp(h)[:, None], head.last_layer.weight[None], dim=2)
    )
    head.last_layer.weight.data *= torch.rand(6, 1) + 0.5
    torch.testing.assert_close(head(h), out)
    kinds = [type(m) for m in head.mlp]
    assert kinds == [
        nn.Linear,
        nn.GELU,
        nn.Linear,
        nn.GELU,
        nn.Linear,
    ]  # no batch norm, and none after the last


def test_features_are_the_teachers() -> None:
    net, x = module().eval(), torch.randn(2, 1, 8, 8)
    assert torch.equal(net.embed(x), net.encoder(x)) and net.embed(x).shape == (2, 8)
    net.encoder.layers[0].weight.data += 1
    assert not torch.equal(net.embed(x), net.encoder(x)) and torch.equal(net.embed(x), net.teacher.net[0](x))


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("student_temperature", 0),
        ("teacher_temperature", -0.04),
        ("warmup_teacher_temperature", 0),
        ("teacher_temperature_epochs", -1),
        ("center_momentum", 1.1),
        ("momentum", -0.1),
        ("num_prototypes", 1),
        ("projector_hidden", 0),
        ("projector_layers", 0),
        ("bottleneck", 0),
        ("freeze_last_layer_epochs", -1),
        ("clip_norm", 0),
        ("final_weight_decay", -0.1),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module(**{knob: value})


def test_bad_temperatures_of_the_functions() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        dino_loss(random(2, 2, 2), random(2, 2, 2), 0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        teacher_probabilities(random(2, 2, 2), random(1, 2), -1)


@pytest.mark.parametrize(
    ("sizes", "match"), [((8,), "two.* views.*, got 1"), ((8, 6), r"equal size, got \(8, 8\)")]
)
def test_views_that_cannot_serve_are_refused(sizes: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=f"DINO.*{match}"):
        module().check_batch({"views": views(2, sizes)})


def test_a_vit_of_one_size_is_refused_for_local_views() -> None:
    inputs = {"views": [torch.randn(2, 3, size, size) for size in (32, 32, 16)]}
    net = DINO(
        TimmEncoder("vit_tiny_patch16_224", 32, 8),
        num_prototypes=6,
        projector_hidden=8,
        bottleneck=5,
        optimizer=sgd,
    )
    with pytest.raises(
        ValueError, match=r"images of \(32, 32\) only, but views has \(16, 16\): set any_size: true"
    ):
        net.check_batch(inputs)
