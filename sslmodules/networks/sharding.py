"""Training with FSDP, where each process has a part of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import Tensor, nn

from datamodules.errors import ConfigError
from sslmodules.networks.momentum import MomentumCopy
from sslmodules.optim import LARS, record_matrices

T = TypeVar("T")


def is_sharded(trainer: Trainer) -> bool:
    """Whether FSDP has split the weights, so that this process has a part of them."""
    return isinstance(trainer.strategy, FSDPStrategy) and trainer.model is not trainer.lightning_module


def with_whole_weights(trainer: Trainer, call: Callable[[], T]) -> T:
    """The result of ``call``, which uses the networks of the run's method outside of its training step.

    Under FSDP the weights are whole only in the forward pass of the wrapped method, so ``call`` takes its place.
    All processes must make the same calls.
    """
    if not is_sharded(trainer):
        return call()
    module, wrapped = trainer.lightning_module, trainer.model
    assert isinstance(wrapped, nn.Module)

    def forward() -> T:
        del module.forward  # while `call` runs, it is the method's again
        return call()

    module.forward = forward  # type: ignore[method-assign]
    try:
        return wrapped()
    finally:
        module.__dict__.pop("forward", None)


def total_norm(trainer: Trainer, tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The norm of all values, also of those that other processes have under FSDP; a scalar on ``device``."""
    norm = torch.nn.utils.get_total_norm(tensors).to(device, torch.float32)
    return sum_of_shards(trainer, norm.double().square()).sqrt().float() if is_sharded(trainer) else norm


def sum_of_shards(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum over the processes that share a copy of the weights; without FSDP, ``values`` themselves."""
    if not is_sharded(trainer):
        return values
    group = trainer.model.process_group  # type: ignore[union-attr]
    return trainer.strategy.reduce(values, group, "sum")  # type: ignore[return-value]


def prepare_sharding(module: Any, strategy: Strategy) -> None:
    """Record the shapes that decide on weight decay, and reject methods that FSDP cannot train.

    Args:
        module: an ``SSLModule``, before the strategy wraps it.
        strategy: the Trainer's.

    Raises:
        ValueError: under FSDP, a momentum copy, whose shards do not match the source's; LARS, which needs the
            norm of a whole layer; or parameters that lose their names.
    """
    record_matrices(module)
    if not isinstance(strategy, FSDPStrategy):
        return
    if any(isinstance(part, MomentumCopy) for part in module.modules()):
        raise ConfigError(
            f"{type(module).__name__} has a momentum copy, which cannot follow weights that FSDP shards: "
            "give --trainer.strategy ddp"
        )
    if isinstance(module.optimizer([nn.Parameter(torch.zeros(1))]), LARS):
        raise ConfigError(
            "LARS needs whole layers, which FSDP shards: give --trainer.strategy ddp, or another optimizer"
        )
    if not strategy.kwargs.get("use_orig_params"):
        raise ConfigError("FSDP needs use_orig_params: true, to exclude biases and norms from weight decay")
