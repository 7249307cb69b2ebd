"""Synchronized batch norm that keeps the activations of timm's layers.

torch's conversion replaces every batch norm layer by a plain ``SyncBatchNorm``, and Lightning converts back
to a plain batch norm. timm's ``BatchNormAct2d`` also applies an activation, which both silently lose.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.errors import ConfigError


def keep_activations(network: nn.Module | None) -> None:
    """Restore the activation of timm's converted layers, which the conversion keeps as a child module.

    Args:
        network: changed in place.
    """
    for layer in network.modules() if network is not None else ():
        if isinstance(layer, _BatchNorm) and "act" in layer._modules:
            from timm.layers import BatchNormAct2d, SyncBatchNormAct

            if not isinstance(layer, (BatchNormAct2d, SyncBatchNormAct)):
                layer.__class__ = SyncBatchNormAct if isinstance(layer, nn.SyncBatchNorm) else BatchNormAct2d


def check_convertible(network: nn.Module) -> None:
    """Reject layers whose function the conversion would change.

    Raises:
        ConfigError: a batch norm layer of another class, which would become a plain one.
    """
    for name, layer in network.named_modules():
        kind = type(layer)
        known = kind.__module__.startswith(("torch.nn.", "timm.layers.norm_act", "lightning."))
        if isinstance(layer, _BatchNorm) and not known:
            raise ConfigError(
                f"sync_batchnorm would replace {name} ({kind.__module__}.{kind.__qualname__}) by a plain "
                "batch norm, which computes something else: set trainer.sync_batchnorm to false"
            )
