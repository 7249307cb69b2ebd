"""InfoNCE against a slow reference, the queue, the key encoder, and the known mistakes of
re-implementations.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Digits, TwoViews, View
from datamodules.errors import ConfigError
from runtime.options import options_of
from sslmodules.base import Gathered
from sslmodules.moco import MoCo, info_nce
from sslmodules.networks import ConvEncoder
from tests.conftest import CONFIGS, method_of, parse, trainer_for


def rows(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def small(**knobs: Any) -> MoCo:
    torch.manual_seed(0)
    return MoCo(
        ConvEncoder(1, (4, 8)), **{"queue_size": 24, "projector_out": 6, "optimizer": sgd, **knobs}
    ).double()


def views(seed: int = 1, n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def slow_info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Query by query."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(q)):
        unit, key = q[i] / q[i].norm(), k[i] / k[i].norm()
        positive = torch.exp(torch.dot(unit, key) / temperature)
        total -= torch.log(
            positive / (positive + sum(torch.exp(torch.dot(unit, n) / temperature) for n in negatives))
        )
    return total / len(q)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_equals_the_slow_reference_and_its_gradient(temperature: float) -> None:
    q, k, negatives = rows(6), rows(6, seed=1), F.normalize(rows(9, seed=2), dim=1)
    arguments = (q.requires_grad_(), k, negatives, temperature)
    torch.testing.assert_close(info_nce(*arguments), slow_info_nce(*arguments), rtol=1e-10, atol=1e-12)
    one, two = (torch.autograd.grad(loss(*arguments), q)[0] for loss in (info_nce, slow_info_nce))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_closed_forms() -> None:
    """Negatives equal to the key: log(1 + K). Orthogonal ones: -log(e^(1/T) / (e^(1/T) + K)). Blind to
    scale.
    """
    q = torch.tensor([[2.0, 0.0, 0.0]])
    assert info_nce(q, 3 * q, (q / 2).repeat(7, 1), 0.3).item() == pytest.approx(math.log(8), abs=1e-6)
    other = torch.tensor([[0.0, 1.0, 0.0]]).repeat(7, 1)
    expected = -math.log(math.exp(2) / (math.exp(2) + 7))
    assert info_nce(q, 3 * q, other, 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    q, k, negatives = rows(8), rows(8, seed=1), F.normalize(rows(9, seed=2), dim=1)
    shares = [info_nce(q[i : i + 4], k[i : i + 4], negatives) for i in (0, 4)]
    torch.testing.assert_close(sum(shares) / 2, info_nce(q, k, negatives))


def test_the_queue_is_read_before_it_is_written_and_is_first_in_first_out() -> None:
    module = small().train()
    start, pushed = module.queue.clone(), []
    for step in range(4):
        batch = {"views": views(step)}
        before = module.queue.clone()
        twin = copy.deepcopy(module)
        k = F.normalize(twin.teacher(batch["views"][1]), dim=1)
        q = twin.projector(twin.encoder(batch["views"][0]))
        terms = module.losses(batch)
        torch.testing.assert_close(terms["loss"], slow_info_nce(q, k, before, 0.2))
        assert terms["queue_fill"].item() == pytest.approx(min(1.0, step * 8 / 24))
        pushed = [k, *pushed]
        expected = torch.cat([*pushed, start])[:24]
        torch.testing.assert_close(module.queue, expected)
        terms["loss"].backward()  # the push must not overwrite what the gradient needs
    assert module.queue_filled == 24
    torch.testing.assert_close(module.queue.norm(dim=1), torch.ones(24, dtype=torch.float64))


def test_validation_reads_the_queue_and_does_not_write_it(tmp_path: Path) -> None:
    module = small().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert module.losses({"views": views()})["loss"].isfinite()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    data = Digits(views=TwoViews(View(8), View(8)), batch_size=8)
    trainer = trainer_for(
        tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=2, num_sanity_val_steps=2
    )
    module = module.float().train()
    trainer.fit(module, data)
    assert module.queue_filled == 8


def test_the_queue_is_in_the_checkpoint() -> None:
    module = small().train()
    module.losses({"views": views()})
    state = copy.deepcopy(module.state_dict())
    other = small()
    other.load_state_dict(state)
    assert torch.equal(other.queue, module.queue) and other.queue_filled == 8


def test_every_rank_pushes_the_keys_of_all_ranks_in_their_order() -> None:
    module, gathered = small().train(), []

    def gather(z: Tensor) -> Gathered:
        gathered.append(torch.cat([z, -z]))  # as if a second rank had the opposite keys
        return Gathered(gathered[-1], 0)

    module.gather = gather  # type: ignore[method-assign]
    module.losses({"views": views()})
    assert torch.equal(module.queue[:16], gathered[0]) and module.queue_filled == 16


def test_no_gradient_reaches_keys_or_queue() -> None:
    module = small().train()
    module.losses({"views": views()})["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    assert not module.queue.requires_grad
    assert all(p.grad is not None for p in module.projector.parameters())


def test_the_key_encoder_runs_in_training_mode_on_its_own_statistics() -> None:
    module = small().train()
    mine, theirs = (
        next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        for net in (module.teacher, module.encoder)
    )
    module.losses({"views": views()})
    assert (
        mine.training
        and mine.num_batches_tracked == 1
        and not torch.equal(mine.running_mean, theirs.running_mean)
    )


def test_updating_after_the_step_is_the_official_order() -> None:
    """Official: at each step the copy moves towards the current weights, then the keys are made."""

    def losses_of(official: bool) -> tuple[list[float], list[Tensor]]:
        module = small(momentum=0.9).train()
        optimizer = sgd(module.parameter_groups())
        history = []
        for step in range(4):
            if official:
                module.update_teacher()
            loss = module.losses({"views": views(step)})["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not official:
                module.update_teacher()
            history.append(loss.item())
        if official:
            module.update_teacher()
        return history, [*module.teacher.parameters(), module.queue]

    (here, ours), (there, theirs) = losses_of(False), losses_of(True)
    assert here == there and all(map(torch.equal, ours, theirs))


def test_groups_give_a_query_and_its_key_different_statistics_and_keep_the_order() -> None:
    module = small(batch_norm_groups=2).train()
    order = torch.tensor([1, 4, 7, 2, 0, 3, 5, 6])
    module.rand = lambda n: order.argsort() / n  # type: ignore[method-assign]
    twin = copy.deepcopy(module)
    a, b = views()
    loss = module.losses({"views": [a, b]})["loss"]
    q = torch.cat([twin.projector(twin.encoder(part)) for part in (a[:4], a[4:])])
    shuffled = torch.cat([twin.teacher(part) for part in (b[order[:4]], b[order[4:]])])
    k = torch.empty_like(shuffled)
    k[order] = shuffled
    torch.testing.assert_close(loss, info_nce(q, k, twin.queue))
    torch.testing.assert_close(module.queue[:8], F.normalize(k, dim=1))


def test_without_batch_norm_groups_change_nothing() -> None:
    """Each key comes back to its place."""
    losses = []
    for groups in (1, 4):
        torch.manual_seed(0)
        encoder = nn.Flatten()
        encoder.num_features = 64
        module = (
            MoCo(encoder, queue_size=24, projector_out=6, batch_norm_groups=groups, optimizer=sgd)
            .double()
            .train()
        )
        losses.append(module.losses({"views": views()})["loss"])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_a_low_temperature(dtype: torch.dtype) -> None:
    """exp(1 / 0.05) overflows float16: the loss must leave half precision before it divides."""
    q, k, negatives = (rows(n, 16, n).to(dtype) for n in (32, 32, 64))
    q.requires_grad_()
    loss = info_nce(q, k, F.normalize(negatives.float(), dim=1), 0.05)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize(("size", "batch"), [(24, 16), (24, 48), (8, 9)])
def test_a_queue_that_is_no_multiple_of_the_batch_stops_at_the_start(
    size: int, batch: int, tmp_path: Path
) -> None:
    match = f"queue_size must be a multiple of the global batch of {batch} .*, got {size}"
    with pytest.raises(ValueError, match=match):
        small(queue_size=size).check_batch_size(batch)
    with pytest.raises(ValueError, match=match):
        trainer_for(tmp_path, max_steps=1).fit(small(queue_size=size).float(), Digits(batch_size=batch))


def test_too_many_groups_for_the_batch_stop_at_the_start() -> None:
    small(batch_norm_groups=4).check_batch_size(8)
    with pytest.raises(
        ValueError, match=r"batch_norm_groups must be at most half of each device's batch of 8.*got 5"
    ):
        small(batch_norm_groups=5).check_batch_size(8)
    module = small(batch_norm_groups=4, queue_size=16)
    module._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    module.check_batch_size(16)
    with pytest.raises(
        ValueError, match=r"each device's batch of 4.*got 4"
    ):  # a global batch of 8 on two devices
        module.check_batch_size(8)


def test_no_group_has_a_single_sample() -> None:
    """Ten samples in four groups: 3, 3, 2, 2. Pieces of one length would leave one sample for the last."""
    sizes: list[int] = []
    module = small(batch_norm_groups=4, queue_size=20).train()
    module.encoder.register_forward_hook(lambda net, args, h: sizes.append(len(h)))
    module.losses({"views": views(n=10)})
    assert sizes == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("queue_size", 0),
        ("projector_hidden", 0),
        ("projector_out", 0),
        ("batch_norm_groups", 0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        small(**{knob: value})


def test_bad_temperature_of_the_loss() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        info_nce(rows(2), rows(2), rows(2), 0)


def test_groups_and_synchronized_statistics_exclude_each_other() -> None:
    synchronized = SimpleNamespace(
        strategy=SimpleNamespace(_layer_sync=TorchSyncBatchNorm()),
        datamodule=None,
        accumulate_grad_batches=1,
        world_size=2,
    )
    module = small(batch_norm_groups=2)
    module._trainer = synchronized  # type: ignore[assignment]
    with pytest.raises(ConfigError) as refused:
        module.setup("fit")
    assert str(refused.value) == (
        "batch_norm_groups 2 gives each group its own statistics, but trainer.sync_batchnorm true shares "
        "them among all processes: give --trainer.sync_batchnorm false, or --model.batch_norm_groups 1"
    )
    module = small()
    module._trainer = synchronized  # type: ignore[assignment]
    module.setup("fit")


def test_no_config_asks_for_both() -> None:
    asked = [config for config in CONFIGS if "batch_norm_groups" in options_of(method_of(config))]
    assert asked
    for config in asked:
        options = parse(config).config
        assert options.model.init_args.batch_norm_groups == 1 or not options.trainer.sync_batchnorm, config
