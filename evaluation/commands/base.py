"""The base of ``eval.py`` commands, and the run they work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from datamodules.base import SSLDataModule
from sslmodules import SSLModule


@dataclass(frozen=True)
class TrainedRun:
    """A trained method with its data, read from a checkpoint.

    Attributes:
        module: with trained weights, in eval mode, on ``device``.
        data: the run's data set, or another one that the command line names.
        random_init: builds the same method with random weights, of the run's seed or of one that is given.
        pretraining_data: builds the data set that the run was trained on.
        checkpoint: where the weights come from.
        folder: of the run, where results go unless another place is given.
        suffix: of the names of results: marks another checkpoint than ``last.ckpt`` and another data set.
        seed: the run's.
        device: where to compute.
        precision: in which the run was trained, as the Trainer takes it.
        origin: what the run's environment.json records about the weights it began from, if any.
    """

    module: SSLModule
    data: SSLDataModule
    random_init: Callable[..., SSLModule]
    pretraining_data: Callable[[], SSLDataModule]
    checkpoint: Path
    folder: Path
    suffix: str
    seed: int
    device: torch.device
    precision: str
    origin: dict[str, Any]


class Command(ABC):
    """A file in ``evaluation/commands`` with a subclass is a command, called as the file is.

    Its docstring begins with how it is called, ``command RUN MORE: what it does.``: ``eval.py --help`` shows
    that line.

    The attributes are read from the file, without importing it: they must be plain values.

    Attributes:
        reads_data: the samples of the data set go through the encoder, so that it has to take them.
        options: arguments and options after ``RUN``, by name, each with what ``argparse``'s ``add_argument``
            takes; ``type`` is "int", "float" or "path". In ``help``, ``{probes}``, ``{more_probes}`` and
            ``{measures}`` are lists of their names.
        output: where results go without ``--output``. None: there is no such option.
        overwrite: is there an option ``--overwrite``?
        takes_several: ``--data`` may be given several times; there is a ``run_several``.
    """

    reads_data: ClassVar[bool] = False
    options: ClassVar[dict[str, dict[str, Any]]] = {}
    output: ClassVar[str | None] = None
    overwrite: ClassVar[bool] = False
    takes_several: ClassVar[bool] = False

    @abstractmethod
    def run(self, run: TrainedRun, given: Namespace) -> int:
        """Do it, with lines on the terminal; returns the exit status."""

    def run_several(self, runs: list[TrainedRun], given: Namespace) -> int:
        """As ``run``, of one method on several data sets, whose results have suffixes that differ."""
        raise NotImplementedError


class FolderCommand(Command, ABC):
    """A command on folders, for which no network and no data set is built. Its positional argument is its
    own.
    """

    def run(self, run: TrainedRun, given: Namespace) -> int:
        return self.run_on(given)

    @abstractmethod
    def run_on(self, given: Namespace) -> int:
        """Do it, with lines on the terminal; returns the exit status."""


def say(line: str) -> None:
    """Print a line; names of files may hold bytes that no terminal can show."""
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
