"""Prepares a method for FSDP."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn

from datamodules.errors import ConfigError
from sslmodules.networks.momentum import MomentumCopy
from sslmodules.optim import LARS, record_matrices


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
