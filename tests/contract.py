"""The contract's checks that need more than a line, as functions of a method and a batch.

tests/test_contract.py asks them of every config, tests/test_broken_methods.py of methods that are broken on
purpose.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sslmodules.base import SSLModule
from sslmodules.networks import MomentumCopy

Example = dict[str, Any]


def loss_of(module: SSLModule, batch: Example) -> Tensor:
    """The loss, with the same noise in every call."""
    torch.manual_seed(0)
    return module.losses(batch)["loss"]  # type: ignore[arg-type]


def momentum_copies(module: SSLModule) -> dict[str, MomentumCopy]:
    """Teachers, whatever the name of their attribute."""
    return {name: part for name, part in module.named_modules() if isinstance(part, MomentumCopy)}


def without_gradient(module: SSLModule, batches: list[Example]) -> list[str]:
    """Trainable parameters whose gradient is zero in every step of a short training.

    Steps, because what lies behind a layer that starts at zero has no gradient in the first one.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    idle = set(trainable)
    optimizer = torch.optim.Adam(trainable.values(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        module.losses(batch)["loss"].backward()  # type: ignore[arg-type]
        idle -= {name for name in idle if (g := trainable[name].grad) is not None and bool(g.any())}
        optimizer.step()
        module.update_teacher()
    return sorted(idle)


def resting(module: SSLModule, batch: Example) -> list[str]:
    """Momentum copies that do not follow after a step."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    module.losses(batch)["loss"].backward()  # type: ignore[arg-type]
    optimizer.step()
    before = copy.deepcopy(momentum_copies(module))
    module.update_teacher()
    return [
        name
        for name, part in momentum_copies(module).items()
        if all(map(torch.equal, part.parameters(), before[name].parameters()))
    ]


# ---- does a sample's loss depend on its neighbors? ---------------------------------------------------------


def injected(module: SSLModule) -> list[nn.Module]:
    """The networks that a method is given, and copies of them in a teacher."""
    options = inspect.signature(type(module).__init__).parameters
    given = [getattr(module, name, None) for name in options]
    kinds = tuple(type(part) for part in given if isinstance(part, nn.Module))
    return [part for part in module.modules() if isinstance(part, kinds)]


def other_content(value: Any) -> Any:
    """Other samples of the same form: the same masks, padding and special tokens, so that nothing changes in
    how many values are predicted.
    """
    if isinstance(value, list):
        return [other_content(v) for v in value]
    if value.is_floating_point():
        return value.roll(len(value) // 2, 0)
    ids = value[value >= 5].unique()
    changed = value.clone()
    changed[value >= 5] = ids.roll(1)[torch.searchsorted(ids, value[value >= 5])]
    return changed


def interaction(module: SSLModule, batch: Example) -> float:
    """How far the loss is from a sum over samples, relative to it: 0 where neighbors do not matter.

    For two halves of a batch, each with two contents, L(a, b) + L(a', b') - L(a, b') - L(a', b). The networks
    that were injected take the running statistics of their batch norms: those are the user's choice.
    """
    module, size = module.double(), len(batch["input"]) // 2
    torch.set_default_dtype(torch.float64)
    for part in injected(module):
        part.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(v) for v in value]
        return value.double() if value.is_floating_point() else value

    first = {key: cast(value) for key, value in batch.items()}
    second = {key: other_content(value) for key, value in first.items()}

    def halves(one: Any, two: Any) -> Any:
        if isinstance(one, list):
            return [halves(a, b) for a, b in zip(one, two, strict=True)]
        return torch.cat([one[:size], two[size:]])

    def loss(one: Example, two: Example) -> Tensor:
        module.load_state_dict(state)
        return loss_of(module, {key: halves(one[key], two[key]) for key in one}).detach()

    try:
        same = loss(first, first) + loss(second, second)
        mixed = loss(first, second) + loss(second, first)
    finally:
        torch.set_default_dtype(torch.float32)
    return float((same - mixed).abs() / same.abs())


# ---- does it learn from the batch? -------------------------------------------------------------------------


def rows(batch: Example, order: Tensor) -> Example:
    """The samples of a batch in another order."""
    return {k: [x[order] for x in v] if isinstance(v, list) else v[order] for k, v in batch.items()}


def unpaired(batch: Example) -> list[Example]:
    """The batch with every sample's partner replaced by another sample, in all ways that keep the order;
    empty where there are no pairs.
    """
    shifts = range(1, len(batch["input"]))
    if len(batch.get("views", [])) > 1:
        views = batch["views"]
        return [{**batch, "views": [v.roll(i * shift, 0) for i, v in enumerate(views)]} for shift in shifts]
    if "corrupted" in batch:
        return [{**batch, "corrupted": batch["corrupted"].roll(shift, 0)} for shift in shifts]
    return []


def fit(module: SSLModule, batch: Example, steps: int) -> None:
    """Steps of Adam on one batch, of whatever is trainable, with the same noise in each.

    Pairs come in another order each time, so that a method that pairs a sample with its neighbor finds
    another neighbor. A queue keeps its start: a batch that comes again would be its own negatives. Other
    buffers change as in training: if DINO's center rests, nothing prevents a collapse to one prototype.
    """
    pairs = bool(unpaired(batch))
    kept = {name: b.clone() for name, b in module.named_buffers() if name.startswith("queue")}
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        module.load_state_dict(kept, strict=False)
        order = torch.randperm(len(batch["input"]), generator=generator)
        loss = loss_of(module, rows(batch, order) if pairs else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.update_teacher()
    module.load_state_dict(kept, strict=False)


def faults_of_learning(module: SSLModule, batch: Example, steps: int = 16) -> list[str]:
    """Reasons to doubt that the method learns from a batch.

    - Trained alone, with everything else as it was, the encoder does not lower the loss.
    - Trained as a whole, the method does not lower the loss by a tenth. (Gray pixels as tokens cannot
      fall much: nine tenths of the cross entropy that they begin with is their own.)
    - A method of pairs does not prefer two views of one sample to views of two samples.
    """
    start, alone, whole = (copy.deepcopy(module) for _ in range(3))
    before, faults = float(loss_of(start, batch)), []
    for name, p in alone.named_parameters():
        p.requires_grad_(p.requires_grad and name.startswith("encoder."))
    if not any(p.requires_grad for p in alone.parameters()):
        return ["nothing of the encoder can be trained"]
    try:
        fit(alone, batch, steps)
    except RuntimeError as error:
        return [f"nothing of the encoder can be trained: {error}"]
    if not float(loss_of(alone, batch)) < before - 1e-3 * abs(before):
        faults.append(
            f"the encoder alone does not lower the loss: {before} -> {float(loss_of(alone, batch))}"
        )
    fit(whole, batch, steps)
    after = float(loss_of(copy.deepcopy(whole), batch))
    if not after < before - 0.1 * abs(before):
        faults.append(f"the loss does not fall: {before} -> {after}")
    apart = [float(loss_of(copy.deepcopy(whole), wrong)) for wrong in unpaired(batch)]
    if apart and not after < min(apart) - 0.1 * abs(before - after):
        faults.append(f"two samples are as good a pair as two views of one: {min(apart)} and {after}")
    return faults
