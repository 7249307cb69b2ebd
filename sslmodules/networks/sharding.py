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
    """Note the shapes that weight decay goes by, and refuse what needs weights that a rank will not have.

    Args:
        module: an ``SSLModule``, before the strategy wraps it.
        strategy: the Trainer's.

    Raises:
        ValueError: under FSDP, a momentum copy, whose shards begin elsewhere than the source's; LARS, which
            needs the norm of a whole layer; or parameters that lose their names.
    """
    record_matrices(module)
    if not isinstance(strategy, FSDPStrategy):
        return
    if any(isinstance(part, MomentumCopy) for part in module.modules()):
        raise ConfigError(
            f"{type(module).__name__} has a momentum copy, which cannot follow weights that FSDP divides: "
            "--trainer.strategy ddp"
        )
    if isinstance(module.optimizer([nn.Parameter(torch.zeros(1))]), LARS):
        raise ConfigError(
            "LARS needs whole layers, which FSDP divides: --trainer.strategy ddp, or another optimizer"
        )
    if not strategy.kwargs.get("use_orig_params"):
        raise ConfigError(
            "FSDP needs use_orig_params: true, or biases and norms could not be kept from weight decay"
        )
