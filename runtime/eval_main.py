"""Runs a command of ``eval.py``."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.checks import check_one_of
from datamodules.errors import ConfigError
from evaluation.commands.base import Command, FolderCommand, TrainedRun, say
from runtime.arguments import trusted_packages
from runtime.checkpoints import evaluated_checkpoint, initial_module, load_module, read_checkpoint
from runtime.discovery import find_class
from runtime.eval_help import DEVICES, commands
from runtime.fit import check_samples
from runtime.framework_messages import silence_framework
from runtime.initial_weights import starting_point
from runtime.saved_run import build_data, checkpoint_of, notes


def run(name: str, given: Namespace, overrides: list[str]) -> int:
    """Run the command ``name``; returns the exit status.

    Args:
        name: name of the command.
        given: its arguments.
        overrides: options of the data, as words of the command line.
    """
    cls: Any = find_class(commands()[name])
    command: Command = cls()
    silence_framework()
    if isinstance(command, FolderCommand):
        if overrides:
            raise ConfigError(f"{name} reads no data and has no option {overrides[0].partition('=')[0]}")
        return command.run_on(given)
    if given.trust_config_classes:
        trusted_packages(["--trust_config_classes", given.trust_config_classes])
    groups = data_sets(overrides)
    if len(groups) > 1 and not command.takes_several:
        raise ConfigError(f"{name} reads one data set, but --data is given {len(groups)} times")
    runs = [_prepared(command, given, group) for group in groups]
    return command.run(runs[0], given) if len(runs) == 1 else command.run_several(_numbered(runs), given)


def data_sets(overrides: list[str]) -> list[list[str]]:
    """The options of each data set: those from ``--data NAME`` on, and those before the first one."""
    common: list[str] = []
    groups: list[list[str]] = []
    for word in overrides:
        if word == "--data" or word.startswith("--data="):
            groups.append([*common])
        (groups[-1] if groups else common).append(word)
    return groups or [common]


def _prepared(command: Command, given: Namespace, overrides: list[str]) -> TrainedRun:
    """The run with a data set that its network accepts."""
    opened, content = _open(given, overrides)
    if command.reads_data:
        opened.data.prepare_data()
        check_samples(opened.module, opened.data)
        for line in notes(content, opened.data):
            say(line)
    return opened


def _numbered(runs: list[TrainedRun]) -> list[TrainedRun]:
    """Give the runs different suffixes: the second of two data sets of the same class gets ``-2``."""
    found: list[TrainedRun] = []
    for opened in runs:
        before = sum(other.suffix == opened.suffix for other in runs[: len(found)])
        suffix = f"{opened.suffix}-{before + 1}" if before else opened.suffix
        found.append(replace(opened, suffix=suffix))
    return found


def _open(given: Namespace, overrides: list[str]) -> tuple[TrainedRun, dict[str, Any]]:
    """The run, and the content of its checkpoint."""
    checkpoint, folder = checkpoint_of(given.run)
    device = _device(given.device)
    module = load_module(checkpoint)
    if Path(given.run).is_dir() and (best := evaluated_checkpoint(module, checkpoint)) != checkpoint:
        checkpoint, module = best, load_module(best)
    content = read_checkpoint(checkpoint)
    stored = dict(content.get("datamodule_hyper_parameters", {}))
    data = build_data(stored, overrides)
    suffix = "" if Path(given.run).is_dir() or checkpoint.stem == "last" else f"-{checkpoint.stem}"
    if overrides:
        suffix += f"-{type(data).__name__.lower()}"
    opened = TrainedRun(
        module=module.to(device),
        data=data,
        random_init=partial(initial_module, content),
        pretraining_data=partial(build_data, stored, []),
        checkpoint=checkpoint,
        folder=folder,
        suffix=suffix,
        seed=content.get("seed", 0),
        device=device,
        precision=str(content.get("config", {}).get("trainer", {}).get("precision")),
        origin=starting_point(folder),
    )
    return opened, content


def _device(name: str) -> torch.device:
    check_one_of(DEVICES, **{"--device": name})
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ConfigError("--device cuda: there is no GPU here, or torch cannot use it: give --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and cuda) else "cpu")
