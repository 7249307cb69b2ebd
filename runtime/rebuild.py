"""From a run folder back to what made it: the checkpoint, and the data set with its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from runtime.arguments import import_named
from runtime.command_line import explain
from runtime.construction import gaps
from runtime.discovery import with_current_paths
from runtime.messages import pairs
from runtime.names import look_for_mistakes, resolve
from runtime.options import options_of
from runtime.trust import build


def checkpoint_of(run: str) -> tuple[Path, Path]:
    """(checkpoint, run folder) of what the user named."""
    path = Path(run)
    if path.is_dir():
        checkpoint = path / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise ConfigError(
                f"{path} holds no checkpoints/last.ckpt: expected the folder of a run that train.py made"
            )
        return checkpoint, path
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: expected a run folder or a checkpoint (RUN/checkpoints/last.ckpt)"
        )
    return path, path.parent.parent if path.parent.name == "checkpoints" else path.parent


def build_data(stored: dict[str, Any], overrides: list[str]) -> SSLDataModule:
    """The run's DataModule, or another one, from the checkpoint's options and the command line.

    Raises:
        ConfigError: there is no such data set, or it does not take these options.
    """
    where, name, words = "the checkpoint", stored.get("_class_path"), []
    for option, value in pairs(overrides):
        if option == "--data":
            where, name = option, value
        else:
            words.append(f"{option}={value}")
    if name is None:
        raise ConfigError("the checkpoint names no data set: give --data NAME")
    cls = resolve(name, SSLDataModule, where)
    unknown = {place.partition(".")[0] for place, _ in gaps(stored)}  # such as views of a user's
    shared = {k: v for k, v in stored.items() if k in options_of(cls) and k not in unknown}
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
