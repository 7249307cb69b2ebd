"""The base class of ``eval.py`` commands, and the run they work on."""

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
        data: the run's data set, or another one named on the command line.
        random_init: builds the same method with random weights, from the run's seed or a given one.
        pretraining_data: builds the data set that the run was trained on.
        checkpoint: source of the weights.
        folder: the run's folder, the default place for results.
        suffix: suffix of the names of results, for another checkpoint than ``last.ckpt`` or other data.
        seed: the run's seed.
        device: where to compute.
        precision: precision of the training, as for the Trainer.
        origin: the initial weights recorded in the run's environment.json, if any.
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
    """A command: a file in ``evaluation/commands`` with a subclass, named after the file.

    The docstring of the subclass begins with its usage, ``command RUN MORE: what it does.``, which
    ``eval.py --help`` shows.

    The attributes are read from the file without importing it, so they must be plain values.

    Attributes:
        reads_data: samples go through the encoder, so it must accept them.
        options: arguments and options after ``RUN``, by name, each with the arguments of ``argparse``'s
            ``add_argument``; ``type`` is "int", "float" or "path". In ``help``, ``{probes}``,
            ``{more_probes}`` and ``{measures}`` are replaced by lists of their names.
        output: default place of the results; None: there is no option ``--output``.
        overwrite: whether there is an option ``--overwrite``.
        takes_several: ``--data`` may be given several times, for ``run_several``.
        continues: finished parts are kept, so that the same command continues after an interruption.
    """

    reads_data: ClassVar[bool] = False
    options: ClassVar[dict[str, dict[str, Any]]] = {}
    output: ClassVar[str | None] = None
    overwrite: ClassVar[bool] = False
    takes_several: ClassVar[bool] = False
    continues: ClassVar[bool] = False

    @abstractmethod
    def run(self, run: TrainedRun, given: Namespace) -> int:
        """Run the command, printing lines on the terminal; returns the exit status."""

    def run_several(self, runs: list[TrainedRun], given: Namespace) -> int:
        """As ``run``, for one method on several data sets, whose results have different suffixes."""
        raise NotImplementedError


class FolderCommand(Command, ABC):
    """A command on folders, without a network or a data set; it defines its own positional arguments."""

    def run(self, run: TrainedRun, given: Namespace) -> int:
        return self.run_on(given)

    @abstractmethod
    def run_on(self, given: Namespace) -> int:
        """Run the command, printing lines on the terminal; returns the exit status."""


def say(line: str) -> None:
    """Print a line; file names may contain bytes that a terminal cannot show."""
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
