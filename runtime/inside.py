"""Keeps the output of loggers, callbacks and profilers inside the run folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from datamodules.errors import ConfigError
from runtime.checkpoints import BEST, LAST, PREVIOUS
from runtime.loggers import CSVLogger
from runtime.saving import BestCheckpoint, LastCheckpoint

#: Options that name a folder, and options that become part of a path below it.
FOLDERS = (
    "save_dir",
    "dirpath",
    "dir",
    "offline_directory",
    "root_dir",
    "nvme_path",
    "exclude_batches_path",  # a file
)
PARTS = ("name", "version", "filename", "sub_dir", "checkpoint_path_prefix")
#: Options that name a server or a folder.
ADDRESSES = ("tracking_uri", "artifact_location")


def keep_inside(trainer: Namespace, folder: Path) -> None:
    """Make folders named in a parsed configuration relative to the run folder.

    Args:
        trainer: the Trainer's options; loggers, callbacks and profiler are changed.
        folder: the run folder.

    Raises:
        ConfigError: a folder elsewhere.
    """
    if trainer.default_root_dir is not None:
        raise ConfigError(
            f"trainer.default_root_dir {trainer.default_root_dir}: a run writes to its run folder only; give "
            "--run_dir"
        )
    for key in ("logger", "callbacks", "profiler", "strategy", "plugins"):
        _walk(trainer[key], f"trainer.{key}", folder)


def _walk(node: Any, where: str, folder: Path) -> None:
    if isinstance(node, list):
        for item in node:
            _walk(item, where, folder)
    elif isinstance(node, (Namespace, dict)):
        items = vars(node) if isinstance(node, Namespace) else node
        for key, value in items.items():
            if isinstance(value, (str, os.PathLike)) and str(value):
                items[key] = _inside(key, value, where, folder)
            else:
                _walk(value, where, folder)


def _inside(key: str, value: Any, where: str, folder: Path) -> Any:
    """The value of an option, as a path below ``folder`` if it names a folder."""
    text = str(value)
    address = key in ADDRESSES
    if address:
        if "://" in text and not text.startswith("file:"):
            return value
        text = text.removeprefix("file:")
    if key in FOLDERS or address:
        path = folder / text
        if not path.resolve().is_relative_to(folder.resolve()) or "://" in text:
            raise _outside(key, value, where, folder)
        return f"file:{path.resolve()}" if address else str(path)
    if key in PARTS and (PurePath(text).is_absolute() or ".." in PurePath(text).parts):
        raise _outside(key, value, where, folder)
    return value


def _outside(key: str, value: Any, where: str, folder: Path) -> ConfigError:
    return ConfigError(
        f"{where}: {key} {str(value)!r} is outside of the run folder {folder}, which keeps all files of a "
        "run: leave it out, or give a folder below it"
    )


def check_checkpoints(callbacks: list[Callback], folder: Path) -> None:
    """Put the checkpoints of a user's callbacks in the run folder.

    Raises:
        ConfigError: one would replace ``last.ckpt``, ``best.ckpt`` or another file of the run.
    """
    own = os.path.realpath(folder / "checkpoints")
    for callback in callbacks:
        own_class = isinstance(callback, (BestCheckpoint, LastCheckpoint))
        if own_class or not isinstance(callback, (ModelCheckpoint, OnExceptionCheckpoint)):
            continue
        callback.dirpath = callback.dirpath or own  # instead of the logger's folder
        names = [f"{callback.filename}.ckpt"]
        if isinstance(callback, ModelCheckpoint) and callback.save_last:
            names.append(f"{callback.CHECKPOINT_NAME_LAST}.ckpt")
        taken = [name for name in names if name in (LAST, PREVIOUS, BEST, "damaged.ckpt")]
        if taken and os.path.realpath(callback.dirpath) == own:
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} would replace the run's own "
                f"checkpoints/{taken[0]}: give another filename or dirpath, and no save_last"
            )


def check_loggers(given: list[loggers.Logger]) -> None:
    """Raise ConfigError for a logger that would delete the metrics of an earlier start."""
    for logger in given:
        if isinstance(logger, loggers.CSVLogger) and not isinstance(logger, CSVLogger):
            file = Path(logger.log_dir) / "metrics.csv"
            if file.is_file():
                raise ConfigError(
                    f"trainer.logger: {type(logger).__module__}.{type(logger).__name__} would delete {file}: "
                    "give no version, or use the project's CSVLogger, which continues its file"
                )
