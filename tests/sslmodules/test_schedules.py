"""Momentum, weight decay and clipping over a run, of every method that has them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from sslmodules import methods
from sslmodules.networks import MomentumCopy, ViTEncoder

#: Shares of the run done, at which a cosine and a line differ.
SHARES = (0.0, 0.25, 1.0)
CONSTANT, LINEAR = {"MoCo"}, {"IJEPA"}


def having(option: str) -> list[str]:
    """Methods with this option."""
    return [name for name, cls in methods().items() if option in inspect.signature(cls.__init__).parameters]


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    encoder = ViTEncoder(8, 2, 1, width=8, depth=1, heads=2)
    sizes = {"num_prototypes": 8, "queue_size": 8, "projector_hidden": 8, "predictor_hidden": 8}
    known = inspect.signature(methods()[name].__init__).parameters
    fitting = {key: value for key, value in sizes.items() if key in known}
    return methods()[name](encoder=encoder, optimizer=torch.optim.SGD, **fitting, **options)


@pytest.mark.parametrize("name", having("momentum"))
def test_the_momentum_of_a_copy_rises_to_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a half cosine; MoCo's is constant, I-JEPA's rises linearly."""
    module, used = small(name, momentum=0.6), []
    monkeypatch.setattr(MomentumCopy, "update", lambda copy, source, momentum: used.append(momentum))
    for share in SHARES:
        monkeypatch.setattr(module, "progress", lambda share=share: share)
        module.update_teacher()
    risen = 1 - 0.4 * (math.cos(math.pi / 4) + 1) / 2
    middle = {**dict.fromkeys(CONSTANT, 0.6), **dict.fromkeys(LINEAR, 0.7)}.get(name, risen)
    assert used == pytest.approx([0.6, middle, 0.6 if name in CONSTANT else 1.0])


@pytest.mark.parametrize("name", having("final_weight_decay"))
def test_weight_decay_rises_by_a_half_cosine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is any: that of biases and norms stays 0."""
    module, seen = small(name, final_weight_decay=0.4), []
    optimizer = torch.optim.SGD(module.parameter_groups(), lr=0.1, weight_decay=0.04)
    for share in SHARES:
        monkeypatch.setattr(module, "progress", lambda share=share: share)
        module.on_before_optimizer_step(optimizer)
        seen.append(sorted({group["weight_decay"] for group in optimizer.param_groups}))
    assert [least for least, _ in seen] == [0, 0, 0]
    risen = 0.4 - 0.36 * (math.cos(math.pi / 4) + 1) / 2
    assert [most for _, most in seen] == pytest.approx([0.04, risen, 0.4])


@pytest.mark.parametrize("name", [name for name in having("clip_norm") if name != "GAN"])
def test_gradients_are_clipped(name: str) -> None:
    """Each method's own tests tell which of them are clipped together. GAN clips in steps of its own."""
    module = small(name, clip_norm=0.5)
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    module.on_before_optimizer_step(torch.optim.SGD(module.parameter_groups(), lr=0.1))
    assert max(p.grad.norm().item() for p in module.parameters() if p.grad is not None) <= 0.5001
