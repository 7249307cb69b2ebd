"""Training with FSDP, where each process has a part of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from datamodules.errors import ConfigError
from runtime.lightning_internals import saves_one_file
from sslmodules.networks.momentum import MomentumCopy
from sslmodules.optim import LARS, record_matrices

T = TypeVar("T")


def is_sharded(trainer: Trainer) -> bool:
    """Whether FSDP has split the weights, so that this process has a part of them."""
    return isinstance(trainer.strategy, FSDPStrategy) and trainer.model is not trainer.lightning_module


def with_whole_weights(trainer: Trainer, call: Callable[..., T], *inputs: Any) -> T:
    """The result of ``call(*inputs)``, which uses the networks of the method outside of its training step.

    Under FSDP the weights are whole only in the forward pass of the wrapped method, so ``call`` takes its
    place, and ``inputs`` get the precision that weights have there. All processes must make the same calls.
    """
    if not is_sharded(trainer):
        return call(*inputs)
    module, wrapped = trainer.lightning_module, trainer.model
    assert isinstance(wrapped, nn.Module)

    def forward(*given: Any) -> T:
        del module.forward  # while `call` runs, it is the method's again
        return call(*given)

    module.forward = forward  # type: ignore[method-assign]
    try:
        return wrapped(*inputs)
    finally:
        module.__dict__.pop("forward", None)


def share_buffers(trainer: Trainer) -> None:
    """Under FSDP, give all processes the buffers of the first, such as batch statistics; DDP does it too."""
    if is_sharded(trainer):
        for buffer in trainer.lightning_module.buffers():
            distributed.broadcast(buffer, 0)


def gradient_norm(trainer: Trainer, optimizer: Optimizer, device: torch.device) -> Tensor:
    """The norm of all gradients, also of those that other processes have under FSDP; () on ``device``."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients).to(device, torch.float32)
    return sum_of_shards(trainer, norm.double().square()).sqrt().float() if is_sharded(trainer) else norm


def clip_norm(trainer: Trainer, optimizer: Optimizer, max_norm: float) -> None:
    """Scale all gradients so that their norm is at most ``max_norm``; Lightning does not under FSDP."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = gradient_norm(trainer, optimizer, trainer.strategy.root_device)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def sum_of_shards(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum over the processes that share a copy of the weights; without FSDP, ``values`` themselves."""
    if not is_sharded(trainer):
        return values
    group = trainer.model.process_group  # type: ignore[union-attr]
    return trainer.strategy.reduce(values, group, "sum")


def _shards_of_a_copy(strategy: FSDPStrategy) -> int:
    """Number of devices that share a copy of the weights under HYBRID_SHARD."""
    mesh = strategy.kwargs.get("device_mesh")  # a DeviceMesh once the processes are set up
    if mesh is None:
        return strategy.num_processes  # of this node
    return mesh[-1] if isinstance(mesh, tuple) else mesh.shape[-1]


def prepare_sharding(module: Any, strategy: Strategy) -> None:
    """Record the shapes that decide on weight decay, and reject what does not work with FSDP.

    Args:
        module: an ``SSLModule``, before the strategy wraps it.
        strategy: the Trainer's.

    Raises:
        ValueError: under FSDP, a momentum copy, whose shards do not match the source's; a method that writes
            to its weights, or has several optimizers; LARS, which needs the norm of a whole layer; options of
            FSDP with which weights lose their names, are not split, or are saved in several files, or
            gradients are not averaged.
    """
    record_matrices(module)
    if not isinstance(strategy, FSDPStrategy):
        return
    name, instead = type(module).__name__, "give --trainer.strategy ddp"
    if any(isinstance(part, MomentumCopy) for part in module.modules()):
        raise ConfigError(
            f"{name} has a momentum copy, which cannot follow weights that FSDP shards: {instead}"
        )
    if module.writes_weights:
        raise ConfigError(f"{name} writes to its weights, which FSDP shards: {instead}")
    if not module.automatic_optimization:
        raise ConfigError(f"{name} has several optimizers, which FSDP does not support: {instead}")
    if isinstance(module.optimizer([nn.Parameter(torch.zeros(1))]), LARS):
        raise ConfigError(
            "LARS needs whole layers, which FSDP shards: give --trainer.strategy ddp, or another optimizer"
        )
    if not strategy.kwargs.get("use_orig_params"):
        raise ConfigError("FSDP needs use_orig_params: true, to exclude biases and norms from weight decay")
    if strategy.sharding_strategy.name == "NO_SHARD":
        raise ConfigError(f"FSDP with sharding_strategy NO_SHARD splits nothing: {instead}")
    if "HYBRID" in strategy.sharding_strategy.name and _shards_of_a_copy(strategy) == 1:
        raise ConfigError(
            "FSDP with sharding_strategy HYBRID_SHARD and one device for each copy of the weights averages "
            f"no gradients: {instead}"
        )
    if not saves_one_file(strategy):
        raise ConfigError("FSDP needs state_dict_type: full, because resuming and evaluation read one file")
