"""Converting batch norm for several GPUs changes no network's function, on the way there and back."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from datamodules.errors import ConfigError
from sslmodules import SimCLR
from sslmodules.networks import ConvEncoder, ResNetEncoder, TimmEncoder

#: timm's families with an activation inside of their batch norm, and encoders with plain batch norm.
ENCODERS = {
    **{
        name: partial(TimmEncoder, name)
        for name in ("regnetx_002", "efficientnet_b0", "mobilenetv3_small_100", "densenet121", "resnet10t")
    },
    "ResNetEncoder": ResNetEncoder,
    "ConvEncoder": ConvEncoder,
}


def method(encoder: nn.Module) -> SimCLR:
    return SimCLR(encoder, optimizer=partial(torch.optim.SGD, lr=0.1)).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_conversion_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    module = method(ENCODERS[name]())
    x = torch.randn(4, 3, 64, 64)
    there = TorchSyncBatchNorm().apply(copy.deepcopy(module))
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in there.modules())
    back = TorchSyncBatchNorm().revert(copy.deepcopy(there)).eval()
    with torch.no_grad():
        before = module.embed(x)
        torch.testing.assert_close(there.eval().embed(x), before)
        torch.testing.assert_close(back.embed(x), before)
        torch.testing.assert_close(there.train().embed(x), module.train().embed(x))
    assert module.state_dict().keys() == there.state_dict().keys() == back.state_dict().keys()


class Doubled(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_layer_whose_function_would_be_lost_is_refused() -> None:
    encoder = ConvEncoder(channels=(4, 8))
    encoder.layers[1] = Doubled(4)
    module = method(encoder)
    plain = SimpleNamespace(strategy=SimpleNamespace(), datamodule=None, accumulate_grad_batches=1)
    synchronized = SimpleNamespace(
        **vars(plain) | {"strategy": SimpleNamespace(_layer_sync=TorchSyncBatchNorm())}
    )
    module._trainer = plain
    module.setup("fit")
    module._trainer = synchronized
    with pytest.raises(ConfigError) as refused:
        module.setup("fit")
    assert str(refused.value) == (
        "sync_batchnorm would replace encoder.layers.1 (tests.sslmodules.test_sync_batchnorm.Doubled) by a "
        "plain batch norm, which computes something else: set trainer.sync_batchnorm to false"
    )
