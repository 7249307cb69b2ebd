"""Buffers that are equal on all processes, so that DDP need not broadcast them before each step."""

from __future__ import annotations

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def names_of_equal_buffers(network: nn.Module) -> list[str]:
    """Full names of the buffers that parts of ``network`` declare in their attribute ``equal_buffers``."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in network.named_modules()
        for name in getattr(part, "equal_buffers", ())
        if getattr(part, name) is not None
    ]


def keep_from_broadcast(network: nn.Module) -> None:
    """Call before DDP wraps ``network``: it then broadcasts only buffers that are not declared."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        network, names_of_equal_buffers(network)
    )


def broadcast_once(network: nn.Module) -> None:
    """Give all ranks the values of rank 0: initial values are random, and seeds may differ between ranks."""
    for name in names_of_equal_buffers(network):
        distributed.broadcast(network.get_buffer(name), 0)
