"""The part of the ``eval.py`` command line that needs no torch."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import ConfigError
from runtime.discovery import below, classes
from runtime.messages import data_sets, did_you_mean

DEFAULT = "probe"
HELP = ("--help", "-h")


def commands() -> dict[str, str]:
    """The class of each command by the command's name, the file's; the default comes first."""
    found = {classes()[name].module.rpartition(".")[2]: name for name in below(["Command"])}
    return {DEFAULT: found[DEFAULT], **found}


def choose(argv: list[str]) -> tuple[str, list[str]]:
    """The command and its arguments: the first word names it, or it is the default.

    Raises:
        ConfigError: an option of earlier versions that is a command now, or a word that is neither a command
            nor a file.
    """
    known = commands()
    if argv[0] in known:
        return argv[0], argv[1:]
    for word in argv:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in known:
            raise ConfigError(f"{word} is a command now: {usages()[name]}")
    if not argv[0].startswith("-") and not Path(argv[0]).exists():
        near = did_you_mean(argv[0], known, cutoff=0.75)
        raise ConfigError(
            f"{argv[0]} does not exist{near}: expected a run folder, a checkpoint, or one of the commands "
            f"{', '.join(known)}"
        )
    return DEFAULT, argv


def usages() -> dict[str, str]:
    """How each command is called."""
    return {
        name: f"python eval.py {classes()[cls].summary.partition(':')[0]}" for name, cls in commands().items()
    }


def help_text() -> str:
    """What ``python eval.py --help`` prints."""
    told = [classes()[cls].summary.partition(": ") for cls in commands().values()]
    width = max(len(call) for call, _, _ in told)
    rows = "\n".join(f"  {call:<{width}}  {text.rstrip('.')}" for call, _, text in told)
    return f"""usage: python eval.py COMMAND RUN [options]
       python eval.py RUN [options]             the same as: probe RUN

Measures or uses a trained method. RUN is a run folder (its last.ckpt) or a checkpoint.

commands (python eval.py COMMAND --help shows the options of one):
{rows}

options of every command:
  --device NAME             auto, cpu or cuda (default: auto)
  --data NAME               another data set than the run's, and any option of it: --data.root DIR,
                            --data.batch_size N. What is not given is as in the run
  --trust_config_classes P  also build classes of your package P that a checkpoint names
  --help                    this text

data sets: {", ".join(data_sets())}

Results go to the run folder unless another place is given. Files that exist are replaced only with
--overwrite, an earlier results.json always. Examples: docs/using_what_was_trained.md
"""
