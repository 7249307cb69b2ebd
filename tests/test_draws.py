"""Random numbers of a run: each batch has its own, and a resumed run draws the same ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.base import SSLDataModule
from tests.conftest import build, trainer_for

EPOCHS, STEPS, VAL = 3, 4, 2
CONFIGS = ("configs/digits/simclr.yaml", "configs/digits/mae.yaml", "configs/text/bert.yaml")


class Draws(Callback):
    """Seeds of the views (of training batches and of validation batches) and of the noise, batch by batch."""

    def __init__(self, data: SSLDataModule, stop_at: int | None = None) -> None:
        self.stop_at, self.labels = stop_at, []
        self.views: list[int] = []
        self.validation: list[int] = []
        self.noise: list[int] = []
        transform = data.transform

        def watched(batch: dict[str, Any], generator: torch.Generator | None) -> Any:
            if generator is not None:
                seeds = self.views if data.trainer.training else self.validation
                seeds.append(generator.initial_seed())
            return transform(batch, generator)

        data.transform = watched

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.noise.append(torch.default_generator.initial_seed())
        if len(self.noise) == self.stop_at:
            raise KeyboardInterrupt

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.labels.append(batch["input"].sum().item())  # which samples


def drawn(config: str, folder: Path, resume: Any = None, **options: Any) -> Draws:
    stop_at, saving = options.pop("stop_at", None), options.pop("saving", [])
    module, data = build(config, *options.pop("words", ()))
    draws = Draws(data, stop_at)
    limits = {"max_epochs": EPOCHS, "limit_train_batches": STEPS, "limit_val_batches": VAL}
    trainer = trainer_for(
        folder, **{**limits, **options}, callbacks=[draws, *saving], enable_checkpointing=True
    )
    try:
        trainer.fit(module, data, ckpt_path=resume)
    except SystemExit:
        assert stop_at is not None
    return draws


@pytest.mark.parametrize("config", CONFIGS)
def test_every_batch_draws_numbers_of_its_own(config: str, tmp_path: Path) -> None:
    """Including the last batch of each epoch. Every validation draws the same: its curve shows the model."""
    draws = drawn(config, tmp_path)
    assert len(draws.views) == len(draws.noise) == EPOCHS * STEPS
    assert len(set(draws.views)) == len(set(draws.noise)) == EPOCHS * STEPS
    once = draws.validation[:VAL]
    assert draws.validation == EPOCHS * once and len(set(once)) == VAL and not set(once) & set(draws.views)


#: How a script may save, the step of its checkpoint, and the step in which an exception ends the run.
SAVED = {
    "inside an epoch": (ModelCheckpoint(every_n_train_steps=3), 3, None),
    "at the last batch of an epoch": (ModelCheckpoint(every_n_train_steps=4), 4, None),
    "at the end of an epoch": (ModelCheckpoint(save_on_train_epoch_end=True), 4, None),
    "after a validation": (ModelCheckpoint(save_on_train_epoch_end=False), 4, None),
    "at an exception": (ModelCheckpoint(save_on_exception=True, every_n_epochs=9), 5, 6),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Draws:
    return drawn(CONFIGS[0], tmp_path_factory.mktemp("whole"), limit_val_batches=VAL)


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "2"])
@pytest.mark.parametrize(
    "saved",
    [
        "inside an epoch",
        "at the end of an epoch",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("at the last batch of an epoch", "after a validation", "at an exception")
        ),
    ],
)
def test_a_resumed_run_sees_what_it_would_have_seen(
    saved: str, workers: str, whole: Draws, tmp_path: Path
) -> None:
    """With a Trainer that knows nothing of this project, wherever it saves: samples, views and noise."""
    callback, step, stop_at = SAVED[saved]
    callback = copy.deepcopy(callback)
    callback.dirpath, callback.save_top_k = str(tmp_path), -1
    words = ("--data.num_workers", workers)
    drawn(CONFIGS[0], tmp_path, saving=[callback], max_steps=6, stop_at=stop_at, words=words)
    [path] = [p for p in tmp_path.glob("*.ckpt") if torch.load(p, weights_only=True)["global_step"] == step]
    rest = drawn(CONFIGS[0], tmp_path, resume=str(path), words=words)
    for name in ("labels", "views", "noise"):
        assert getattr(rest, name) == getattr(whole, name)[step:], name
