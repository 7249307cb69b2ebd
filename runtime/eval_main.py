"""Runs a command of ``eval.py``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from datamodules.errors import ConfigError
from evaluation.commands.base import Command, FolderCommand, TrainedRun, say
from runtime.arguments import trusted_packages
from runtime.checkpoints import evaluated_checkpoint, initial_module, load_module, read_checkpoint
from runtime.discovery import find_class
from runtime.eval_help import commands, usages
from runtime.fit import check_samples
from runtime.framework_messages import silence_framework
from runtime.initial_weights import starting_point
from runtime.saved_run import build_data, checkpoint_of, notes


def run(name: str, argv: list[str]) -> int:
    """Do what the command called ``name`` does with these arguments; returns the exit status."""
    command, given, overrides = parse(name, argv)
    silence_framework()
    if given.trust_config_classes:
        trusted_packages(["--trust_config_classes", given.trust_config_classes])
    if isinstance(command, FolderCommand):
        if overrides:
            raise ConfigError(f"{name} reads no data: {overrides[0].partition('=')[0]} is no option of it")
        return command.run_on(given)
    opened, content = _open(given, overrides)
    if command.reads_data:
        opened.data.prepare_data()
        check_samples(opened.module, opened.data)
        for line in notes(content, opened.data):
            say(line)
    return command.run(opened, given)


def parse(name: str, argv: list[str]) -> tuple[Command, argparse.Namespace, list[str]]:
    """The command called ``name``, its arguments, and the options of the data."""
    cls: Any = find_class(commands()[name])
    command: Command = cls()
    own, overrides = _split(argv)
    return command, _parser(name, command).parse_args(own), overrides


class _Parser(argparse.ArgumentParser):
    """A wrong option is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"python eval.py {name}",
        usage=f"{usages()[name]} [options]",
        epilog="also any option of the data: see python eval.py --help",
        allow_abbrev=False,
    )
    if not isinstance(command, FolderCommand):
        parser.add_argument("run", metavar="RUN", help="a run folder (its last.ckpt) or a checkpoint")
    command.add_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--trust_config_classes",
        metavar="PACKAGE",
        default="",
        help="also build classes of this package that a checkpoint names",
    )
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Own arguments, and those that begin with ``--data``."""
    own, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--data" or word.startswith(("--data.", "--data=")):
            rest += [word] if "=" in word else [word, next(words, "")]
        else:
            own.append(word)
    return own, rest


def _open(given: argparse.Namespace, overrides: list[str]) -> tuple[TrainedRun, dict[str, Any]]:
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
    cuda = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not cuda):
        raise ConfigError(f"--device {name}: expected auto, cpu or cuda, and cuda only where there is a GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and cuda) else "cpu")
