"""Heads between an encoder and a loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from datamodules.checks import check


def mlp(
    widths: Sequence[int],
    last_norm: bool = False,
    last_affine: bool = True,
    last_bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with batch norm and an activation in between, as in most projectors and predictors.

    A layer followed by batch norm has no bias.

    Args:
        widths: input, hidden ..., output.
        last_norm: batch norm also after the last layer (SimCLR, SimSiam's projector).
        last_affine: scale and shift for that last norm (off in SimSiam and MoCo v3).
        last_bias: bias of the last layer if no norm follows.
        activation: between layers.

    Raises:
        ValueError: fewer than two widths, or one below 1.
    """
    check(len(widths) >= 2 and min(widths) >= 1, "widths", "at least two numbers of 1 or more", list(widths))
    layers: list[nn.Module] = []
    for i in range(1, len(widths)):
        last = i == len(widths) - 1
        norm = not last or last_norm
        layers.append(nn.Linear(widths[i - 1], widths[i], bias=not norm and last_bias))
        if norm:
            layers.append(nn.BatchNorm1d(widths[i], affine=last_affine if last else True))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def projection_mlp(in_features: int, hidden: int, out_features: int, layers: int = 2) -> nn.Sequential:
    """SimCLR's projector: ``layers`` linear layers, each with batch norm, ReLU between them.

    As in the official code, layers followed by batch norm have no bias, and the last batch norm has no shift.

    Args:
        in_features: width D of the features h.
        hidden: width of the hidden layers.
        out_features: width of z.
        layers: 2 in SimCLR v1, 3 in v2.
    """
    head = mlp([in_features, *[hidden] * (layers - 1), out_features], last_norm=True)
    head[-1].register_parameter("bias", None)
    return head
