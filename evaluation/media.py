"""Sends images, texts and audio to every logger that accepts them.

Lightning sends scalars to all loggers; for everything else, each has its own methods. A logger gets

- images, if it has ``log_image(key, images, step)``, as ``WandbLogger`` does: a list of one PIL image;
- texts, if it has ``log_text(key, columns, data, step)``: a table, one row per text;
- audio, if it has ``log_audio(key, audios, step, sample_rate)``: a list of one array (T,) in [-1, 1];

or else if its ``experiment`` has ``add_image(tag, image, step)``, ``add_text(tag, markdown, step)`` and
``add_audio(tag, wave, step, sample_rate)``, as TensorBoard's ``SummaryWriter`` does. Other loggers, and media
that a logger has no method for, are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning import Trainer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


def last_step(trainer: Trainer) -> int:
    """The last completed step, counted from 0 as Lightning logs it.

    A resumed run hides and repeats what was logged at later steps, and nothing else.
    """
    return max(0, trainer.global_step - 1)


def log_image(trainer: Trainer, tag: str, image: Tensor) -> None:
    """Log an image (C, H, W) in [0, 1], with one, three or four channels."""
    for is_tensorboard, log in _methods(trainer, "image"):
        if is_tensorboard:
            log(tag, image, last_step(trainer))
        else:
            log(tag, [to_pil_image(image.float())], step=last_step(trainer))


def log_texts(trainer: Trainer, tag: str, columns: list[str], texts: list[list[str]]) -> None:
    """Log a table of texts.

    Args:
        trainer: its loggers get the table.
        tag: name of the table.
        columns: names of the columns. TensorBoard has none: it shows the parts of a row one after the
            other, the first of several in bold.
        texts: rows, each with one plain text per column.
    """
    for is_tensorboard, log in _methods(trainer, "text"):
        if is_tensorboard:
            log(tag, "\n\n---\n\n".join(map(as_markdown, texts)), last_step(trainer))
        else:
            log(tag, columns=columns, data=texts, step=last_step(trainer))


def log_sound(trainer: Trainer, tag: str, wave: Tensor, sample_rate: int) -> None:
    """Log an audio clip: (T,) samples in [-1, 1], ``sample_rate`` of them per second."""
    for is_tensorboard, log in _methods(trainer, "audio"):
        if is_tensorboard:
            log(tag, wave[None], last_step(trainer), sample_rate=sample_rate)
        else:
            log(tag, [wave.numpy()], step=last_step(trainer), sample_rate=[sample_rate])


def _methods(trainer: Trainer, kind: str) -> Iterator[tuple[bool, Callable[..., Any]]]:
    """For each logger that accepts this kind: whether to call it as TensorBoard, and its method."""
    for logger in trainer.loggers:
        if (method := getattr(logger, f"log_{kind}", None)) is not None:
            yield False, method
        elif (method := getattr(getattr(logger, "experiment", None), f"add_{kind}", None)) is not None:
            yield True, method


def as_markdown(parts: list[str]) -> str:
    """The parts of a text for display as Markdown: its markup is escaped, line breaks are kept."""
    *bold, rest = map(_quoted, parts)
    # HTML, because bold in Markdown cannot begin or end with a space
    return "".join(f"<strong>{part}</strong>" for part in bold) + rest


def _quoted(text: str) -> str:
    for mark in "\\`*_{}[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", "<br>")
