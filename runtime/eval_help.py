"""The part of the ``eval.py`` command line that needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from datamodules.errors import ConfigError
from runtime.discovery import below, classes, literals
from runtime.messages import data_sets, did_you_mean

DEFAULT = "probe"
HELP = ("--help", "-h")
DEVICES = ("auto", "cpu", "cuda")
TYPES = {"int": int, "float": float, "path": Path}


def commands() -> dict[str, str]:
    """The class of each command by the command's name (the file's); the default comes first."""
    found = {classes()[name].module.rpartition(".")[2]: name for name in below(["Command"])}
    return {DEFAULT: found[DEFAULT], **found}


def choose(argv: list[str]) -> tuple[str, list[str]]:
    """The command and its arguments: the first word names it, or it is the default.

    Raises:
        ConfigError: a former option that is now a command, or a word that is neither a command nor a file.
    """
    known = commands()
    if argv[0] in known:
        return argv[0], argv[1:]
    for word in argv:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in known:
            raise ConfigError(f"{word} is now a command: {usages()[name]}")
    if not argv[0].startswith("-") and not Path(argv[0]).exists():
        near = did_you_mean(argv[0], known, cutoff=0.75)
        raise ConfigError(
            f"{argv[0]} does not exist{near}: expected a run folder, a checkpoint, or one of the commands "
            f"{', '.join(known)}"
        )
    return DEFAULT, argv


def usages() -> dict[str, str]:
    """The usage of each command."""
    return {
        name: f"python eval.py {classes()[cls].summary.partition(':')[0]}" for name, cls in commands().items()
    }


def help_text() -> str:
    """The output of ``python eval.py --help``."""
    summaries = [classes()[cls].summary.partition(": ") for cls in commands().values()]
    width = max(len(call) for call, _, _ in summaries)
    rows = "\n".join(f"  {call:<{width}}  {text.rstrip('.')}" for call, _, text in summaries)
    return f"""usage: python eval.py COMMAND RUN [options]
       python eval.py RUN [options]             the same as: probe RUN

Measures or uses a trained method. RUN is a run folder (its last.ckpt) or a checkpoint.

commands (python eval.py COMMAND --help shows the options of one):
{rows}

options of every command but compare:
  --device NAME             auto (a GPU if there is one), cpu or cuda (default: auto)
  --data NAME               another data set than the run's, and any of its options: --data.root DIR,
                            --data.batch_size N. All other options are the run's. probe accepts
                            several: --data A --data.root X --data B gives one table
  --trust_config_classes P  also build classes of your package P that a checkpoint names

data sets: {", ".join(data_sets())}

Results go to the run folder unless another place is given. Existing files are replaced only with --overwrite,
except an earlier results.json. Examples: docs/using_what_was_trained.md
"""


def interrupted(name: str | None) -> str:
    """What to tell after Ctrl-C; None: no command was running."""
    kept = name is not None and literals(commands()[name])["continues"]
    return "interrupted; the same command continues" if kept else "interrupted"


def parse(name: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of the command ``name``, and the unparsed options of the data.

    Raises:
        ConfigError: wrong arguments.
        SystemExit: help was requested and printed.
    """
    own, overrides = _split(argv)
    return _parser(name).parse_args(own), overrides


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(name: str) -> argparse.ArgumentParser:
    on_run = commands()[name] not in below(["FolderCommand"])
    parser = _Parser(
        prog=f"python eval.py {name}",
        usage=f"{usages()[name]} [options]",
        epilog="also any option of the data: see python eval.py --help" if on_run else None,
        allow_abbrev=False,
    )
    if on_run:
        parser.add_argument("run", metavar="RUN", help="a run folder (its last.ckpt) or a checkpoint")
    command = literals(commands()[name])
    names = _names()
    for option, words in command["options"].items():
        kind = {"type": TYPES[words["type"]]} if "type" in words else {}
        parser.add_argument(option, **{**words, **kind, "help": words["help"].format(**names)})
    if command["output"] is not None:
        text = f"where to write (default: {command['output']})"
        parser.add_argument("--output", metavar="PATH", type=Path, help=text)
    if command["overwrite"]:
        parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    if on_run:
        _add_options_of_runs(parser)
    return parser


def _add_options_of_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="auto (a GPU if there is one), cpu or cuda (default: auto)",
    )
    parser.add_argument(
        "--trust_config_classes",
        metavar="PACKAGE",
        default="",
        help="also build classes of this package that a checkpoint names",
    )


def _names() -> dict[str, str]:
    """The values for ``{probes}``, ``{more_probes}`` and ``{measures}`` in the help of an option."""
    probes = sorted(map(literals, below(["FeatureScore"])), key=lambda probe: probe["order"])
    named = [measure for measure in map(literals, below(["Measure"])) if measure["by_name"]]
    lists: dict[str, list[dict[str, Any]]] = {
        "probes": [probe for probe in probes if not probe["by_name"]],
        "more_probes": [probe for probe in probes if probe["by_name"]],
        "measures": named,
    }
    return {key: ", ".join(found["name"] for found in values) for key, values in lists.items()}


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command's arguments, and those that begin with ``--data``.

    Raises:
        ConfigError: one of the latter has no value.
    """
    own, rest, words = [], [], iter(argv)
    for word in words:
        if word != "--data" and not word.startswith(("--data.", "--data=")):
            own.append(word)
        elif "=" in word:
            rest.append(word)
        else:
            value = next(words, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{word} needs a value: give {word} VALUE")
            rest += [word, value]
    return own, rest
