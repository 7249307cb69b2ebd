"""Parameter groups, the learning-rate schedule, and LARS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datamodules.checks import check_at_least


def record_matrices(module: nn.Module) -> None:
    """Record which parameters have two or more dimensions for ``decay_groups``: FSDP flattens all of them."""
    for part in module.modules():
        part._matrices = frozenset(  # type: ignore[assignment]
            name for name, p in part.named_parameters(recurse=False) if p.ndim > 1
        )


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: with weight decay, and without (biases and norms).

    Parameters with fewer than two dimensions are not decayed: a rule on dimensions, not names, as in the
    official DINO and MAE code.
    """
    decayed: dict[nn.Parameter, None] = {}  # in order, tied parameters once
    plain: dict[nn.Parameter, None] = {}
    for part in module.modules():
        noted = getattr(part, "_matrices", None)
        for name, p in part.named_parameters(recurse=False):
            if p.requires_grad:
                matrix = p.ndim > 1 if noted is None else name in noted
                (decayed if matrix else plain)[p] = None
    groups: list[dict[str, Any]] = [{"params": list(decayed)}, {"params": list(plain), "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def layer_groups(
    groups: list[dict[str, Any]], depth: dict[nn.Parameter, int], last: int, decay: float
) -> list[dict[str, Any]]:
    """Groups for a learning rate that falls from the last layer to the first, as in BEiT and DINOv2.

    Args:
        groups: of ``decay_groups``; each is split by depth.
        depth: depth of parameters; those that are not in it have depth ``last``.
        last: the largest depth.
        decay: ``lr_scale`` of a group is ``decay`` to the power of (last - depth).
    """
    parts: list[dict[str, Any]] = []
    for group in groups:
        for level in range(last + 1):
            members = [p for p in group["params"] if depth.get(p, last) == level]
            scale = decay ** (last - level)
            parts += [{**group, "params": members, "lr_scale": scale}] if members else []
    return parts


def constant(step: int) -> float:
    """Factor 1 at every step: the schedule of a group with constant learning rate."""
    return 1.0


def factor_of_group(group: dict[str, Any], factor: Callable[[int], float]) -> Callable[[int], float]:
    """The schedule of a parameter group: ``factor`` times its ``lr_scale``, or 1 with ``constant_lr``."""
    if group.get("constant_lr"):
        return constant
    scale = group.get("lr_scale", 1.0)
    return factor if scale == 1 else lambda step: scale * factor(step)


def raise_weight_decay(optimizer: Optimizer, progress: float, final: float) -> None:
    """Set the weight decay of each group by a half cosine from its own value to ``final``; 0 stays 0.

    Args:
        optimizer: its groups keep their initial value as ``initial_weight_decay``, also in checkpoints.
        progress: share of the run already done, in [0, 1].
        final: value at the end.
    """
    for group in optimizer.param_groups:
        if group.get("weight_decay"):
            start = group.setdefault("initial_weight_decay", group["weight_decay"])
            group["weight_decay"] = start + 0.5 * (1 - math.cos(math.pi * progress)) * (final - start)


def warmup_cosine(total: int, warmup: int, final: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor at each optimizer step: linear from 1/warmup to 1, half cosine to ``final``.
    Args:
        total: optimizer steps of the run.
        warmup: warm-up steps, at most ``total``.
        final: factor that the last step approaches (Loshchilov & Hutter 2017, one cycle without restarts).

    Returns:
        step (from 0) -> factor; beyond ``total`` it stays at ``final``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, https://arxiv.org/abs/1708.03888).

    As in the official self-supervised code. For a parameter p with gradient g::

        g <- g + weight_decay * p;   r = trust * |p| / |g|;   m <- momentum * m + r * g;   p <- p - lr * m

    Parameters with fewer than two dimensions (biases, norms) get neither decay nor r, as in SimCLR, BYOL,
    MoCo v3, Barlow Twins and VICReg. timm's and lightly's LARS divide by |g| + weight_decay * |p| and scale
    nothing where weight_decay is 0.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: m in the formula.
        weight_decay: for parameters with two or more dimensions.
        trust: eta in the papers.

    Raises:
        ValueError: a negative setting.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        check_at_least(0, lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` recomputes the loss with gradients and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in with_gradient if p.ndim > 1]
            vectors = [p for p in with_gradient if p.ndim <= 1]
            self._move(matrices, self._scaled(matrices, group), group)
            self._move(vectors, _gradients(vectors), group)
        return loss

    @staticmethod
    def _scaled(parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """r * (g + weight_decay * p) for each parameter, in a few launches for all of them."""
        if not parameters:
            return []
        updates = torch._foreach_add(_gradients(parameters), parameters, alpha=group["weight_decay"])
        p_norm, g_norm = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
        ratio = group["trust"] * p_norm / g_norm
        # a norm of 0 leaves the rate unscaled; `where` avoids a device synchronization
        ratio = torch.where((p_norm > 0) & (g_norm > 0), ratio, torch.ones_like(ratio))
        torch._foreach_mul_(updates, list(ratio.unbind()))
        return list(updates)

    def _move(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], norm: float) -> None:
    """Scale the gradient of each parameter separately to a norm of at most ``norm``, as in DINO's code.

    ``clip_grad_norm_`` uses one norm over all parameters.
    """
    if gradients := _gradients(parameters):
        lengths = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, list((norm / (lengths + 1e-6)).clamp(max=1.0).unbind()))
