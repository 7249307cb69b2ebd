"""Continuations in TensorBoard: the rest of texts, and the lower halves of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation.media import as_markdown
from evaluation.samples import Continuations
from tests.conftest import build, trainer_for


def shown(folder: Path, config: str, **options: Any) -> tuple[Any, Any, EventAccumulator]:
    """Method, data and the events of a run of one step with one validation batch."""
    module, data = build(config)
    logger = TensorBoardLogger(folder, name="", version="")
    limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer_for(folder, logger=logger, callbacks=[Continuations(**options)], **limits).fit(module, data)
    events = EventAccumulator(str(folder))
    events.Reload()
    return module, data, events


def text_of(events: EventAccumulator) -> str:
    (event,) = events.Tensors("continuations/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_texts_begin_as_the_validation_samples_in_bold(tmp_path: Path) -> None:
    module, data, events = shown(tmp_path, "configs/text/gpt.yaml", num_samples=3, length=20, temperature=0.0)
    parts = text_of(events).split("\n\n---\n\n")
    assert len(parts) == 3
    x = next(iter(data.val_dataloader()[0]))["input"][:3]
    module.eval()
    for part, row in zip(parts, x, strict=True):
        whole = module.extend(row[None, :32], 20, temperature=0)[0]
        assert part == as_markdown([data.to_text(row[:32]), data.to_text(whole[32:])])


def test_temperature_and_top_k_reach_the_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = build("configs/text/gpt.yaml")
    asked: list[tuple[int, float, int | None]] = []

    def extend(
        self: Any, tokens: Any, length: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Any:
        asked.append((length, temperature, top_k))
        return torch.cat([tokens, tokens[:, :1]], 1)

    monkeypatch.setattr(type(module), "extend", extend)
    callbacks: list[Any] = [Continuations(length=7, temperature=0.5, top_k=3)]
    trainer_for(tmp_path, callbacks=callbacks, max_epochs=1, limit_train_batches=1, limit_val_batches=2).fit(
        module, data
    )
    assert asked == [(7, 0.5, 3)]


def test_pictures_of_images_and_nothing_of_other_methods(tmp_path: Path) -> None:
    _, _, events = shown(tmp_path / "gpt", "configs/digits/gpt.yaml", num_samples=2)
    assert events.Tags()["images"] == ["completions"]
    _, _, events = shown(tmp_path / "bert", "configs/text/bert.yaml")
    assert not events.Tags()["images"] and not events.Tags()["tensors"]


def test_marks_of_markdown_are_letters() -> None:
    assert as_markdown(["*a*\n<b>_"]) == r"\*a\*<br>\<b\>\_"
    assert as_markdown(["a ", "_b"]) == r"<strong>a </strong>\_b"
    for bad, word in (
        ({"length": 0}, "length"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
    ):
        with pytest.raises(ValueError, match=word):
            Continuations(**bad)
