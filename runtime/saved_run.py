"""Rebuilds the checkpoint and data set of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from datamodules.audio.module import AudioDataModule
from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError, ImageFileError
from datamodules.images.decode import image_size
from datamodules.images.folder import ImageFolder
from datamodules.images.module import ImageDataModule
from datamodules.sequences.module import Fasta
from datamodules.text.module import TextDataModule
from runtime.arguments import import_named
from runtime.command_line import explain
from runtime.construction import gaps
from runtime.discovery import with_current_paths
from runtime.messages import pairs
from runtime.names import look_for_mistakes, resolve
from runtime.options import options_of
from runtime.trust import build

KINDS: dict[type, str] = {
    ImageDataModule: "images",
    AudioDataModule: "audio",
    TextDataModule: "text",
    Fasta: "sequences",
}
"""Kinds of samples, of which a network accepts one."""


def checkpoint_of(run: str) -> tuple[Path, Path]:
    """(checkpoint, run folder) for a run folder or a checkpoint."""
    path = Path(run)
    if path.is_dir():
        checkpoint = path / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise ConfigError(f"{path} contains no checkpoints/last.ckpt: expected a run folder of train.py")
        return checkpoint, path
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: expected a run folder or a checkpoint (RUN/checkpoints/last.ckpt)"
        )
    return path, path.parent.parent if path.parent.name == "checkpoints" else path.parent


def build_data(stored: dict[str, Any], overrides: list[str]) -> SSLDataModule:
    """Build the run's DataModule, or another one, from the checkpoint's options and the command line.

    Samples have the format of the run: another data set gets the options that both have, and the run's
    ``input_format``, unless the command line overrides them. ``synthetic`` is not carried over; give it again
    if needed.

    Args:
        stored: the options of the run's data, with ``_class_path``.
        overrides: options of the command line that begin with ``--data``.

    Raises:
        ConfigError: there is no such data set, or it does not accept these options.
    """
    unknown = {place.partition(".")[0] for place, _ in gaps(stored)}  # such as a user's views
    left_out = {"_class_path", "synthetic"} | unknown
    options = {name: value for name, value in stored.items() if name not in left_out}
    where, name, words = "the checkpoint", stored.get("_class_path"), []
    for option, value in pairs(overrides):
        if option == "--data":
            where, name = option, value or ""
        else:
            words.append(option if value is None else f"{option}={value}")
    if name is None:
        raise ConfigError("the checkpoint names no data set: give --data NAME")
    cls = resolve(name, SSLDataModule, where)
    of_run = (
        resolve(stored["_class_path"], SSLDataModule, "the checkpoint") if "_class_path" in stored else cls
    )
    if cls is of_run:
        return _build(cls, options, words, where)
    new, old = _kind(cls), _kind(of_run)
    if new is not old and {new, old} <= KINDS.keys():
        raise ConfigError(
            f"--data {cls.__name__} ({KINDS[new]}) does not fit a network that was trained on "
            f"{of_run.__name__} ({KINDS[old]}): choose data of the same kind"
        )
    format_of_run = _build(of_run, options, [], "the checkpoint").input_format()
    channels = getattr(cls, "image_shape", (None,))[0]  # for data sets whose images have a fixed shape
    if channels is not None and channels != format_of_run.get("channels"):
        return _build(cls, options, words, where)  # neither the run's statistics nor its network fit
    return _build(cls, options | format_of_run, words, where)


def _kind(data: type) -> type:
    """The class of images, audio, text or other samples: the one derived from SSLDataModule."""
    return next(cls for cls in data.__mro__ if SSLDataModule in cls.__bases__)


def notes(content: dict[str, Any], data: SSLDataModule) -> list[str]:
    """Lines on how the network's input from ``data`` differs from that in the run.

    Args:
        content: content of the checkpoint.
        data: the data to evaluate on, set up.
    """
    stored = content.get("datamodule_hyper_parameters", {})
    lines, name, now = [], type(data).__name__, data.input_format()
    if stored.get("synthetic") and not data.synthetic:
        lines.append(f"the run saw synthetic samples, now real ones of {name} (else --data.synthetic true)")
    if "_class_path" in stored:
        then = build_data(stored, []).input_format()
        others = [key for key in then if now.get(key, then[key]) != then[key]]
        lines += [f"{key} of {name} is {now[key]}, in the run {then[key]}" for key in others]
    same_files = (
        content.get(type(data).__qualname__) if data.hparams.get("root") == stored.get("root") else None
    )
    if same_files and (changed := data.changed_files(same_files)):
        lines.append(f"{changed}, so the splits may differ from the run's")
    if isinstance(data, ImageFolder) and data.root != stored.get("root") and not data.synthetic:
        lines += _resized(data)
    return [f"note: {line}" for line in lines]


def _resized(data: ImageFolder) -> list[str]:
    """A line if images do not have the network's input size; it names the first one."""
    if not data.samples_are_files:
        return []
    side, first = data.image_shape[2], data.files("test")[0]
    try:
        width, height = image_size(first)
    except ImageFileError:  # reported or skipped when it is read
        return []
    if (width, height) == (side, side):
        return []
    return [f"{first} is {width}x{height}; images are cropped and resized to {side}x{side} for the network"]


def _build(cls: type, options: dict[str, Any], words: list[str], where: str) -> SSLDataModule:
    """Build a data set from those of the options that it has, and from words of the command line."""
    shared = {name: value for name, value in options.items() if name in options_of(cls)}
    spec = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": with_current_paths(shared)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SSLDataModule, "data")
    words_for_parser = [f"--data={json.dumps(spec)}", *words]
    import_named(words_for_parser)
    try:
        return build(parser, words_for_parser).data
    except ArgumentError as error:
        look_for_mistakes([(where, {"data": spec})], words, ["data"])
        raise ConfigError(explain(error)) from None
