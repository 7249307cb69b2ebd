"""The momentum copy of a network: teacher, target or key encoder."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.checks import check_within


class MomentumCopy(nn.Module):
    """A copy of ``source`` that follows it: without gradient, not in the optimizer, but in the checkpoint.

    The copy has its own batch-norm buffers (it runs in training mode on its own inputs, as in the official
    MoCo and BYOL); only parameters are averaged.

    Args:
        source: network to copy, including its values.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the copied network, outside the graph."""
        return self.net(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """copy <- momentum * copy + (1 - momentum) * source, for every parameter; once per optimizer step.

        Raises:
            ValueError: ``momentum`` is not in [0, 1].
        """
        check_within(0, 1, momentum=momentum)
        mine: list[Tensor] = [*self.net.parameters()]
        theirs: list[Tensor] = [*source.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - momentum)  # a few kernel launches for all, not one for each


def cosine_momentum(progress: float, base: float) -> float:
    """Momentum that rises from ``base`` to 1 (BYOL, https://arxiv.org/abs/2006.07733, section 3.3).
    Args:
        progress: share of the run already done, in [0, 1].
        base: value at the start.

    Returns:
        1 - (1 - base) * (cos(pi * progress) + 1) / 2, a pure function of the step, so a resumed run needs no
        state.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, progress)) + 1) / 2
