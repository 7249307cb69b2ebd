"""Loggers that record what they receive, and what TensorBoard is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2


class WandbLike(Logger):
    """Has the methods of ``WandbLogger``, with their signatures."""

    made: ClassVar[list[WandbLike]] = []

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self.folder = save_dir
        self.hyper_parameters: list[dict[str, Any]] = []
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.media: list[tuple[Any, ...]] = []
        self.made.append(self)

    @property
    def name(self) -> str:
        return "fake"

    @property
    def version(self) -> str:
        return "0"

    @property
    def save_dir(self) -> str:
        return self.folder

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self.hyper_parameters.append(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.scalars.setdefault(name, []).append((int(step or 0), float(value)))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.media.append(("image", key, step, images, kwargs))

    @rank_zero_only
    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        self.media.append(("text", key, step, columns, data))

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.media.append(("audio", key, step, audios, kwargs))


def charts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The layout of the Custom Scalars tab of a run: for each category the tags of each chart, by title."""
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    categories = layout_pb2.Layout.FromString(content).category
    return {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in categories}
