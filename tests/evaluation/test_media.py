"""Images, texts and audio reach every logger that accepts them, and do not disturb the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation.media import log_image, log_sound, log_texts
from tests.conftest import trainer_for
from tests.loggers import WandbLike


class ScalarsOnly(Logger):
    """The least that Lightning asks of a logger."""

    name, version = "scalars", 0  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any) -> None:
        pass


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """With four loggers; as after seven steps."""
    loggers = [
        WandbLike(),
        TensorBoardLogger(str(tmp_path), name="", version=""),
        CSVLogger(str(tmp_path)),
        ScalarsOnly(),
    ]
    trainer = trainer_for(tmp_path, logger=loggers)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 7
    assert trainer.global_step == 7
    return trainer


def events(trainer: Trainer) -> EventAccumulator:
    trainer.loggers[1].finalize("success")
    found = EventAccumulator(str(trainer.loggers[1].save_dir))
    found.Reload()
    return found


def test_an_image(trainer: Trainer) -> None:
    image = torch.tensor([[0.0, 1.0], [0.5, 0.25]])[None]  # (1, 2, 2)
    log_image(trainer, "grid", image)
    [(kind, key, step, [shown], options)] = trainer.loggers[0].media
    assert (kind, key, step, options) == ("image", "grid", 6, {})
    assert isinstance(shown, Image.Image) and np.asarray(shown).tolist() == [[0, 255], [127, 63]]
    [event] = events(trainer).Images("grid")
    assert (event.step, event.width, event.height) == (6, 2, 2)


def test_a_table_of_texts(trainer: Trainer) -> None:
    log_texts(trainer, "poems", ["beginning", "continuation"], [["Once", " more_"], ["Again", "?"]])
    assert trainer.loggers[0].media == [
        ("text", "poems", 6, ["beginning", "continuation"], [["Once", " more_"], ["Again", "?"]])
    ]
    [event] = events(trainer).Tensors("poems/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text == "<strong>Once</strong> more\\_\n\n---\n\n<strong>Again</strong>?" and event.step == 6


def test_a_sound(trainer: Trainer) -> None:
    wave = torch.tensor([0.0, 0.5, -0.5])
    log_sound(trainer, "clip", wave, 8000)
    [(kind, key, step, [sound], options)] = trainer.loggers[0].media
    assert (kind, key, step, options) == ("audio", "clip", 6, {"sample_rate": [8000]})
    assert sound.tolist() == [0.0, 0.5, -0.5]
    [event] = events(trainer).Audio("clip")
    assert (event.step, event.sample_rate, event.length_frames) == (6, 8000, 3)
