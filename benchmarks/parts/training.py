"""Short runs as ``python train.py`` makes them, for benchmarks of a training step."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from datamodules.base import SSLDataModule
from runtime.command_line import SSLCommandLine
from runtime.framework_messages import silence_framework


def silence() -> None:
    """No framework messages, nor the two lines about devices that every Trainer prints."""
    silence_framework()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def fit(
    options: list[str],
    callback: Callback,
    make_data: Callable[[SSLCommandLine], SSLDataModule] | None = None,
    compiled: bool = False,
) -> Trainer:
    """Train with the default callbacks and the TensorBoard log, without checkpoints, in a temporary folder.

    Args:
        options: of ``train.py``, without ``--run_dir``.
        callback: is added.
        make_data: the data to train on, instead of the configuration's.
        compiled: with ``--compile true``.
    """
    os.environ.pop("SSL_RUN_DIR", None)  # set by each run for its own processes
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--run_dir", str(Path(folder) / "run"), "--compile", str(compiled).lower()]
        cli = SSLCommandLine([*options, *fixed])
        trainer = cli.trainer
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Checkpoint)] + [callback]
        trainer.fit(cli.model, make_data(cli) if make_data else cli.datamodule)
    return trainer
