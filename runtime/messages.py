"""Help texts and lists of methods, data sets and configs, made without importing torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import ConfigError
from runtime.discovery import ROOT, below, classes
from runtime.strict_yaml import read_yaml, reason

DEFAULTS = ROOT / "configs" / "default.yaml"

USAGE = "python train.py --config FILE [--config FILE2] [--run_dir DIR] [--model.X v] [--data.X v]"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`` (did you mean 'x'?)`` with the nearest of ``known``, or nothing if none is near (1 = the same)."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean '{near[0]}'?)" if near else ""


def methods() -> dict[str, str]:
    """Method name -> one line."""
    return {name: classes()[name].summary for name in below(["SSLModule"])}


def data_sets() -> dict[str, str]:
    """DataModule name -> one line."""
    return {name: classes()[name].summary for name in below(["SSLDataModule"])}


def config_files() -> list[Path]:
    """Every experiment: configs/<data set>/<method>.yaml."""
    return sorted((ROOT / "configs").glob("*/*.yaml"))


def help_text() -> str:
    """The output of ``python train.py --help``."""

    def rows(entries: dict[str, str]) -> str:
        width = max(map(len, entries), default=0)
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in entries.items())

    experiments: dict[str, list[str]] = {}
    for path in config_files():
        experiments.setdefault(path.parent.name, []).append(path.stem)
    configs = "\n".join(
        f"  configs/{folder}/{{{','.join(names)}}}.yaml" for folder, names in experiments.items()
    )
    return f"""usage: {USAGE}

Pre-trains a method on a data set, then evaluates its frozen features. A run writes to its run folder only.

methods (--model NAME; options: --model.help NAME):
{rows(methods())}

data sets (--data NAME; files and options: --data.help NAME; all take --data.root DIR, --data.batch_size N):
{rows(data_sets())}

configs (--config FILE; a later file or option overrides an earlier one):
{configs}

options:
  --run_dir DIR             the run folder (default runs/<data set>-<method>/<date-time>); one that holds
                            checkpoints/last.ckpt is resumed
  --init_from RUN_OR_FILE   start from the weights of a run or checkpoint, or of a torchvision or timm file
  --compile true            train with torch.compile of the encoder: each shape is compiled at its first batch
  --evaluate true|false     after training, probe the features on the test split (default true)
  --save_every_minutes M    save the run's state this often, and at the end of each epoch (default 15); also
                            --save_every_n_steps N; with --save_in_background true, training continues
  --seed_everything N       seed of weights, order, views and noise (default 0)
  --trainer.X v             any option of Lightning's Trainer (--trainer.help lists them). Callbacks add:
                            --trainer.callbacks+=NAME --trainer.callbacks.OPTION=VALUE
  --disable_callbacks A,B   turn off some of the project's callbacks
  --trust_config_classes P  let the configuration build classes of your package P, which runs their code
  --print_config            show the whole configuration with all defaults, and stop
  --help                    this text
"""


def find_config(path: str) -> Path:
    """The file that ``--config`` names, in the current folder or among the project's configs.

    Raises:
        ConfigError: it is in neither place.
    """
    file = Path(path)
    places = [file] if file.is_absolute() else [file, ROOT / file]
    for place in places:
        if place.is_file():
            return place
    if file.is_dir():
        raise ConfigError(f"--config {path} is a folder: expected a YAML file")
    known = [str(p.relative_to(ROOT)) for p in config_files()]
    looked = " and ".join(dict.fromkeys(str(place.parent.resolve()) for place in places))
    raise ConfigError(
        f"--config {path} does not exist: expected a YAML file{did_you_mean(path, known)}. Looked in {looked}"
    )


def read_config(path: str) -> dict[str, Any]:
    """A YAML file as a dict; ``ConfigError`` with the nearest file or the line if it is not one."""
    try:
        content = read_yaml(find_config(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        place, problem = reason(error)
        raise ConfigError(f"--config {path}{place}: broken YAML ({problem}): correct that line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--config {path} cannot be read ({error}): expected a YAML file in UTF-8"
        ) from None
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"contains {describe(content)}"
        raise ConfigError(f"--config {path} {kind}: expected keys such as model, data and trainer")
    return content


def describe(value: Any) -> str:
    """A value of the wrong type, in words."""
    return "a list" if isinstance(value, list) else f"only {value!r}"


def config_arguments(argv: list[str]) -> list[str]:
    """The files given with ``--config FILE`` or ``--config=FILE`` (also ``-c``), in order."""
    files = []
    for i, arg in enumerate(argv):
        if arg in ("--config", "-c"):
            if i + 1 == len(argv):
                raise ConfigError(f"{arg} needs a file: {USAGE}")
            files.append(argv[i + 1])
        elif arg.startswith("--config="):
            files.append(arg.partition("=")[2])
    return files


def pairs(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """(option, value) of ``--option value`` and ``--option=value``; None if there is no value."""
    rest = list(reversed(words))
    while rest:
        option, equals, value = rest.pop().partition("=")
        follows = option.startswith("--") and bool(rest) and not rest[-1].startswith("--")
        yield option, value if equals else rest.pop() if follows else None


def flush() -> None:
    """Flush stdout, whose reader may be gone, as in ``train.py --help | head``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
