"""Heads between an encoder and a loss."""

from __future__ import annotations

from torch import nn


def projection_mlp(in_features: int, hidden: int, out_features: int, layers: int = 2) -> nn.Sequential:
    """SimCLR's projector: ``layers`` linear layers, each with batch norm, ReLU between them.

    As in the official code, the layers before a batch norm have no bias and the last batch norm has no shift.

    Args:
        in_features: width D of the features h.
        hidden: width of the hidden layers.
        out_features: width of z.
        layers: 2 in SimCLR v1, 3 in v2.
    """
    modules: list[nn.Module] = []
    for i in range(layers):
        last = i == layers - 1
        width = out_features if last else hidden
        modules += [nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width)]
        if last:
            modules[-1].register_parameter("bias", None)
        else:
            modules.append(nn.ReLU(inplace=True))
        in_features = width
    return nn.Sequential(*modules)
