"""Curves of a run's metrics, and a picture of them without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont


class Point(NamedTuple):
    """A logged value."""

    step: int
    seconds: float
    value: float


Curves = dict[str, list[Point]]
"""Points in the order of their steps, by the name of the metric."""


def read_curves(run: Path) -> Curves:
    """Every scalar of a run's TensorBoard events, over all its restarts; ``seconds`` since the first."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    start = min((event.wall_time for all_of in found.values() for event in all_of), default=0.0)
    return {
        tag: sorted(Point(event.step, event.wall_time - start, event.value) for event in all_of)
        for tag, all_of in found.items()
    }


# ---- a picture ---------------------------------------------------------------------------------------------

COLORS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"),
    *("#8c564b", "#17becf", "#7f7f7f", "#e377c2", "#bcbd22"),
)
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 380, 70, 30, 40

Lines = dict[str, list[tuple[float, float]]]


def draw_lines(panels: Sequence[tuple[str, Lines]]) -> Image.Image:
    """Draw panels side by side: one line per name, axes with their smallest and largest values, and a legend.

    Args:
        panels: title of the horizontal axis, and (x, y) points by name.
    """
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (WIDTH * len(panels), HEIGHT + 18 * len(names) + 10), "white")
    draw = ImageDraw.Draw(image)
    for number, (title, lines) in enumerate(panels):
        _panel(draw, font, WIDTH * number, title, lines, names)
    for number, name in enumerate(names):
        y = HEIGHT + 18 * number
        color = COLORS[number % len(COLORS)]
        draw.line([(LEFT, y + 8), (LEFT + 25, y + 8)], fill=color, width=3)
        draw.text((LEFT + 32, y), name, fill="black", font=font)
    return image


def _panel(
    draw: ImageDraw.ImageDraw, font: object, left: int, title: str, lines: Lines, names: list[str]
) -> None:
    points = [point for line in lines.values() for point in line]
    x0, y0, x1, y1 = left + LEFT, HEIGHT - BOTTOM, left + WIDTH - 20, TOP
    (low_x, high_x), (low_y, high_y) = (_range([p[i] for p in points]) for i in (0, 1))
    draw.rectangle((x0, y1, x1, y0), outline="#bbbbbb")

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - low_x) / (high_x - low_x), (point[1] - low_y) / (high_y - low_y)
        return x0 + across * (x1 - x0), y0 - up * (y0 - y1)

    for name, line in lines.items():
        color = COLORS[names.index(name) % len(COLORS)]
        places = [place(point) for point in line]
        draw.line(places, fill=color, width=2)
        for x, y in places:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
    write: dict[str, Any] = {"fill": "black", "font": font}
    draw.text((x0, y0 + 6), _number(low_x, high_x - low_x), **write)
    draw.text((x1, y0 + 6), _number(high_x, high_x - low_x), anchor="ra", **write)
    draw.text(((x0 + x1) / 2, y0 + 20), title, anchor="ma", **write)
    draw.text((x0 - 6, y1), _number(high_y, high_y - low_y), anchor="ra", **write)
    draw.text((x0 - 6, y0 - 14), _number(low_y, high_y - low_y), anchor="ra", **write)


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low, low + 1)


def _number(value: float, span: float) -> str:
    """A number on an axis of this length, to four digits of it: what is tiny beside it is 0."""
    if not math.isfinite(span):  # a diverged run's curve
        return f"{value:.4g}"
    return f"{round(value, 3 - math.floor(math.log10(span))):g}"
