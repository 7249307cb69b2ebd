"""The project's documents, the files and commands that they show, and its Python files."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from runtime.command_line import CheckedCommandLine
from runtime.help import class_help
from runtime.messages import ROOT

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md")
DOCUMENTS = [
    p for p in (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()
]
PACKAGES = ("sslmodules", "datamodules", "evaluation", "runtime")
PROJECT = [p for folder in PACKAGES for p in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """(what stands after the opening fence, content) of every fenced block."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```([^\n]*)\n(.*?)^```[ ]*$", text, flags=re.MULTILINE | re.DOTALL)


def shown_files(document: Path) -> dict[str, str]:
    """Files that a document gives in full: a block whose fence says ``title="path"``."""
    return {m[1]: code for info, code in code_blocks(document) if (m := re.search(r'title="([^"]+)"', info))}


#: The files that CONTRIBUTING.md shows in full, by path.
SHOWN = shown_files(ROOT / "CONTRIBUTING.md")


def commands(document: Path) -> list[str]:
    """What follows ``python train.py`` in a document's blocks and between backticks, without comments and
    pipes.
    """
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = r"^```[^\n]*\n(.*?)^```"
    lines = [
        line
        for block in re.findall(fenced, text, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`([^`\n]+)`", re.sub(fenced, "", text, flags=re.MULTILINE | re.DOTALL))
    return [command for line in lines if (command := train_arguments(line))]


def train_arguments(line: str) -> str:
    """The arguments of the line's ``python train.py``; brackets around what is optional are taken off."""
    _, _, rest = line.partition("python train.py ")
    rest = re.split(r"&&|\||;|\s#\s|\s{2,}\(|>", rest)[0]
    return re.sub(r"\[(--[^\]]*)\]", r"\1", rest).strip()


def is_placeholder(argument: str) -> bool:
    """``FILE``, ``SEED``, ``--model.X``, ``<name>``, ``{a,b}``, ``...``: to be filled in by the reader."""
    return bool(re.search(r"[<>{}*]|\.\.\.|^FILE|^SEED$|\.X$", argument))


def check_command(command: str, known: Iterable[str] = ()) -> None:
    """Every name in the command exists. Left out: a command with a placeholder, or of a file that is only
    shown.
    """
    arguments = shlex.split(command)
    if "--help" not in arguments and not any(is_placeholder(a) or a in known for a in arguments):
        assert parses(*arguments), command


@functools.cache
def parses(*arguments: str) -> bool:
    """Is this a command line of train.py, in the project's folder? Many pages show the same ones."""
    return bool(class_help([*arguments]) or CheckedCommandLine([*arguments]))
