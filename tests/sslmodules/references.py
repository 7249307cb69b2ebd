"""Compares losses with slow references, which are written number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def assert_same(fast: Callable[..., Tensor], slow: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The same values in float64, and the same gradient of each of them for each input, or none for both."""
    results = []
    for function in (fast, slow):
        leaves = [x.detach().double().clone().requires_grad_() for x in inputs]
        values = function(*leaves)
        results.append((values.detach(), gradients(values.flatten(), leaves)))
    (value, found), (expected, wanted) = results
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert_gradients_close(found, wanted)


def gradients(values: Iterable[Tensor], leaves: list[Tensor]) -> list[Tensor | None]:
    """Of each value for each leaf; None where it does not depend on it."""
    return [
        g
        for value in values
        for g in torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    ]


def assert_gradients_close(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None), "only one of them has a gradient"
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)
