"""Metrics of training steps: gradient norm and GPU memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from runtime.callbacks import FiniteLoss, Throughput
from tests.conftest import build, trainer_for
from tests.loggers import WandbLike


class Norms(Callback):
    """The norm of the gradient of every step, worked out anew."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        squares = sum(p.grad.square().sum() for p in pl_module.parameters() if p.grad is not None)
        self.found.append(float(squares**0.5))


def test_the_norm_of_the_gradient_before_it_is_clipped(tmp_path: Path) -> None:
    module, data = build("configs/digits/simclr.yaml")
    logger, norms = WandbLike(), Norms()
    options: dict[str, Any] = {"max_steps": 6, "limit_val_batches": 0, "log_every_n_steps": 2}
    callbacks = [FiniteLoss(), norms]
    trainer_for(tmp_path, logger=logger, callbacks=callbacks, gradient_clip_val=1e-3, **options).fit(
        module, data
    )
    expected = [(step, pytest.approx(norms.found[step])) for step in (1, 3, 5)]
    assert logger.scalars["train/grad_norm"] == expected
    assert len(norms.found) == 6 and min(norms.found) > 1e-3


def test_each_player_of_a_gan_has_its_norm(tmp_path: Path) -> None:
    """At the step of the batch, although Lightning has counted the discriminator's step when the generator's
    comes: a run that is resumed would otherwise lose the last value before it.
    """
    module, data = build("configs/digits/gan.yaml")
    logger = WandbLike()
    options: dict[str, Any] = {"max_steps": 3, "limit_val_batches": 0, "log_every_n_steps": 1}
    trainer_for(tmp_path, logger=logger, callbacks=[FiniteLoss()], **options).fit(module, data)
    steps = {tag: [step for step, _ in curve] for tag, curve in logger.scalars.items() if "grad" in tag}
    assert steps == {"train/grad_norm/0": [0, 1, 2], "train/grad_norm/1": [0, 1, 2]}


@pytest.mark.parametrize(("device", "shown"), [("cuda", {"time/gpu_memory_gib": 3.0}), ("cpu", {})])
def test_memory_is_logged_of_a_gpu(device: str, shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    logger = WandbLike()
    trainer: Any = SimpleNamespace(
        world_size=1,
        global_step=10,
        log_every_n_steps=5,
        loggers=[logger],
        datamodule=None,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )
    module: Any = SimpleNamespace(device=torch.device(device))
    Throughput().on_train_batch_end(trainer, module, None, {"input": torch.zeros(4, 1)}, 0)
    found = {name: curve[-1][1] for name, curve in logger.scalars.items() if "memory" in name}
    assert found == shown
