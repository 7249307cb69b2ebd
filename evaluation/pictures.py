"""Draws rows of images with titles, confusion matrices and colored points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from evaluation.curves import COLORS

SIDE = 64
"""Smaller images are enlarged to about this many pixels."""

FONT = ImageFont.load_default(12)
LINE = 15
LARGE = ImageFont.load_default(22)
"""For a picture twice as wide as TensorBoard shows it."""


def rows_of_images(
    columns: Sequence[Tensor], titles: Sequence[str] = (), names: Sequence[str] = ()
) -> Tensor:
    """One image with a row for each sample.

    Args:
        columns: each (n, C, H, W) in [0, 1]; small images are enlarged by an integer factor.
        titles: above each column, broken at spaces to its width; empty = none.
        names: left of each row; empty = none.

    Returns:
        (3, H', W') in [0, 1].
    """
    side = max(column.shape[-1] for column in columns)
    size = side * max(1, SIDE // side)
    shown = [F.interpolate(c.float(), size=(size, size), mode="nearest") for c in columns]
    grid = make_grid(
        torch.stack(shown, dim=1).flatten(0, 1).cpu(), nrow=len(columns), padding=2, pad_value=0.5
    )
    return titled(grid, (size, size), 2, titles, names)


def titled(
    grid: Tensor, cell: tuple[int, int], gap: int, titles: Sequence[str], names: Sequence[str]
) -> Tensor:
    """A grid of pictures with titles above its columns and names left of its rows.

    Args:
        grid: (C, H, W) in [0, 1], with a gap before each row and column of pictures.
        cell: height and width of a picture in pixels.
        gap: pixels between two pictures.
        titles: above each column, broken at spaces to its width; empty = none.
        names: left of each row; empty = none.

    Returns:
        (3, H', W') in [0, 1]; ``grid`` itself without titles and names.
    """
    if not titles and not names:
        return grid
    height, width = cell
    lines = [_lines(title, width) for title in titles]
    top = LINE * max((len(each) for each in lines), default=0)
    left = max((int(FONT.getlength(name)) + 6 for name in names), default=0)
    image = Image.new("RGB", (grid.shape[2] + left, grid.shape[1] + top), "white")
    image.paste(_as_image(grid.expand(3, -1, -1)), (left, top))
    draw = ImageDraw.Draw(image)
    for i, each in enumerate(lines):
        middle = left + gap + i * (width + gap) + width / 2
        for j, text in enumerate(each):
            draw.text((middle, top - LINE * (len(each) - j)), text, "black", FONT, anchor="ma")
    for i, name in enumerate(names):
        draw.text((left - 4, top + gap + i * (height + gap) + height / 2), name, "black", FONT, anchor="rm")
    return _as_tensor(image)


def matrix_of_counts(counts: Tensor, names: Sequence[str]) -> Tensor:
    """A confusion matrix (K, K) as an image (3, H, W) in [0, 1], with counts where there is room.

    Rows are true classes, columns predicted ones; the darker a cell, the larger its share of the row.
    """
    k = len(counts)
    cell = max(4, min(34, 700 // k))
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    written = cell >= 24
    left = (max(int(FONT.getlength(name)) for name in names) if written else 0) + 26
    image = Image.new("RGB", (left + k * cell + 2, k * cell + 2 + 2 * LINE), "white")
    draw = ImageDraw.Draw(image)
    draw.text((left + k * cell / 2, 0), "predicted", "black", FONT, anchor="ma")
    draw.text((2, LINE), "true", "black", FONT)
    for i in range(k):
        y = 2 * LINE + i * cell
        if written:
            draw.text((left - 4, y + cell / 2), names[i], "black", FONT, anchor="rm")
            draw.text((left + i * cell + cell / 2, LINE), names[i][:4], "black", FONT, anchor="ma")
        for j in range(k):
            x = left + j * cell
            gray = 255 - round(220 * float(share[i, j]))
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(gray, gray, 255))
            if written and counts[i, j]:
                ink = "white" if share[i, j] > 0.6 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(int(counts[i, j])), ink, FONT, anchor="mm")
    return _as_tensor(image)


def scatter(features: Tensor, labels: Tensor, names: Sequence[str], side: int = 480) -> Tensor:
    """Features (N, D) along their two directions of largest variance, colored by label (N,); -1 is gray.

    Returns:
        An image (3, H, W) in [0, 1], with a legend, and the share of the variance that each axis has.
    """
    x = features.double() - features.double().mean(0)
    left, values, _ = torch.linalg.svd(x, full_matrices=False)
    places = left[:, :2] * values[:2]
    shares = (values.square() / values.square().sum().clamp(min=1e-300))[:2].tolist()
    low, high = places.amin(0), places.amax(0)
    points = ((places - low) / (high - low).clamp(min=1e-300) * (side - 20) + 10).tolist()
    image = Image.new("RGB", (side + 200, side + 2 * LINE), "white")
    draw = ImageDraw.Draw(image)
    for (across, up), label in zip(points, labels.tolist(), strict=True):
        _mark(draw, (across, side - up), label)
    room = side // 28
    shown = [*names] if len(names) <= room else [*names[: room - 1], "..."]
    for i, name in enumerate(shown):
        if name != "...":
            _mark(draw, (side + 20, 28 * i + 14), i)
        draw.text((side + 32, 28 * i + 14), name[:13], "black", LARGE, anchor="lm")
    told = " and ".join(f"{share:.0%}" for share in shares)
    draw.text((4, side), f"two principal components: {told} of the variance", "black", LARGE)
    return _as_tensor(image)


def _mark(draw: ImageDraw.ImageDraw, place: tuple[float, float], label: int) -> None:
    """A dot in the color of a class; in every second round of colors a ring, and gray for -1."""
    color = COLORS[label % len(COLORS)] if label >= 0 else "#bbbbbb"
    ring = label >= 0 and (label // len(COLORS)) % 2 == 1
    box = (place[0] - 4, place[1] - 4, place[0] + 4, place[1] + 4)
    draw.ellipse(box, fill=None if ring else color, outline=color, width=2)


def _lines(text: str, width: int) -> list[str]:
    """Break a text at spaces into lines of ``width`` pixels; longer words are not broken."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and FONT.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _as_image(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
