"""The contract finds what is broken: each method here is SimCLR or another one with a single fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmodules import DINO, MAE, SimCLR
from sslmodules.base import SSLModule
from sslmodules.networks import ConvEncoder, MomentumCopy, ViTEncoder
from tests.conftest import TORCH_2_6, batch_of, build
from tests.contract import faults_of_learning, interaction, resting, without_gradient


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return batch_of(build("configs/digits/simclr.yaml")[1], 8)


def made(cls: type[SSLModule]) -> Any:
    torch.manual_seed(0)
    return cls(ConvEncoder(1), temperature=0.2, optimizer=torch.optim.Adam)  # type: ignore[call-arg]


class Detached(SimCLR):
    """No gradient reaches the encoder."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        views = [self.encoder(view).detach() for view in batch["views"]]
        z1, z2 = (self.projector(h) for h in views)
        return {"loss": (self.projector(views[0]) - z2).square().mean() - 0.1 * z1.std(0).mean()}


class Frozen(SimCLR):
    """The encoder stays as it was."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoder.requires_grad_(False)


class Shuffled(SimCLR):
    """Each view's partner is a view of any sample."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        one, two = batch["views"][:2]
        return super().losses({**batch, "views": [one, two[torch.randperm(len(two))]]})


class Neighbors(SimCLR):
    """Each view's partner is a view of the next sample."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        one, two = batch["views"][:2]
        return super().losses({**batch, "views": [one, two.roll(1, 0)]})


class NoLoss(SimCLR):
    """The gradient of everything is exactly zero, and no parameter is without one."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": 1 + 0 * super().losses(batch)["loss"]}


class Idle(SimCLR):
    """A layer takes part with a weight of zero."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = nn.Linear(128, 1)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        terms = super().losses(batch)
        return {"loss": terms["loss"] + 0 * self.extra(self.encoder(batch["input"])).mean()}


class Forgotten(SimCLR):
    """A momentum copy that nobody calls teacher, and that nobody updates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.target = MomentumCopy(self.encoder)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        distance = (self.encoder(batch["input"]) - self.target(batch["input"])).square().mean()
        return {"loss": super().losses(batch)["loss"] + distance}


class Blind(MAE):
    """Patches are predicted from the encoder's tokens of other samples."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        order = torch.randperm(len(batch["input"]))
        broken = {"input": batch["input"], "mask": batch["mask"]}
        self.encoder.norm.register_forward_hook(lambda module, args, out: out[order].detach())
        return super().losses(broken)  # type: ignore[arg-type]


def test_the_healthy_method_has_no_fault(batch: dict[str, Any]) -> None:
    assert faults_of_learning(made(SimCLR), batch) == []
    assert without_gradient(made(SimCLR), [batch]) == [] and resting(made(SimCLR), batch) == []
    assert interaction(made(SimCLR), batch) > 1e-3


@pytest.mark.parametrize(
    ("cls", "faults"),
    [
        (Detached, ["nothing of the encoder can be trained"]),
        (Frozen, ["nothing of the encoder can be trained"]),
        (Shuffled, ["two samples are as good a pair as two views of one"]),
        (Neighbors, ["two samples are as good a pair as two views of one"]),
        (NoLoss, ["the encoder alone does not", "the loss does not fall", "two samples are as good a pair"]),
    ],
)
def test_what_does_not_learn_is_found(cls: type[SSLModule], faults: list[str], batch: dict[str, Any]) -> None:
    found = faults_of_learning(made(cls), batch)
    assert all(any(f.startswith(fault) for f in found) for fault in faults), found


class OthersTargets(DINO):
    """The teacher sees the second view of the next sample."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        one, two, *local = batch["views"]
        return super().losses({**batch, "views": [one, two.roll(1, 0), *local]})


@pytest.mark.parametrize(
    ("cls", "options", "faults"),
    [
        (DINO, {"warmup_teacher_temperature": 1.0}, ["two samples are as good a pair"]),  # not sharpened
        (OthersTargets, {}, ["the encoder alone does not lower the loss"]),
    ],
)
def test_a_broken_dino_is_found(cls: type[DINO], options: dict[str, float], faults: list[str]) -> None:
    module, data = build("configs/digits/dino.yaml")
    assert isinstance(module, DINO)
    module.__class__ = cls
    for name, value in options.items():
        setattr(module, name, value)
    found = faults_of_learning(module, batch_of(data, 8))
    assert all(any(one.startswith(fault) for one in found) for fault in faults), found
    assert len(found) == len(faults) or TORCH_2_6, found  # whose numbers show a second fault


def test_an_encoder_without_gradient_is_found_where_there_are_no_pairs() -> None:
    batch = batch_of(build("configs/digits/mae.yaml")[1], 8)
    encoder = ViTEncoder(image_size=8, patch_size=2, in_channels=1, width=16, depth=1, heads=2)
    small = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    module = Blind(encoder, optimizer=torch.optim.Adam, **small)  # type: ignore[arg-type]
    assert faults_of_learning(module, batch)
    assert any(name.startswith("encoder.blocks") for name in without_gradient(module, [batch]))


@pytest.mark.parametrize(
    ("cls", "idle"),
    [
        (Detached, "encoder.layers.0.weight"),
        (Idle, "extra.weight"),
        (NoLoss, "projector.0.weight"),
    ],
)
def test_a_gradient_of_zero_is_found(cls: type[SSLModule], idle: str, batch: dict[str, Any]) -> None:
    assert idle in without_gradient(made(cls), [batch] * 3)


def test_a_copy_that_rests_is_found_whatever_its_name(batch: dict[str, Any]) -> None:
    assert resting(made(Forgotten), batch) == ["target"]


class Alone(SimCLR):
    """Declares that it compares samples, and does not."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        one, two = (self.encoder(view) for view in batch["views"][:2])
        return {"loss": (one - two).square().mean()}


def test_neighbors_that_do_not_matter_are_found(batch: dict[str, Any]) -> None:
    assert Alone.couples_batch and interaction(made(Alone), batch) < 1e-12
