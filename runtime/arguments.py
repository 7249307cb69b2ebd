"""The command line as given: files, and options that override them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import yaml

from datamodules.errors import ConfigError
from runtime import callback_lists
from runtime.discovery import classes, current_path, find_class, public_name, with_current_paths
from runtime.messages import DEFAULTS, config_arguments, pairs, read_config
from runtime.names import timm_by_name
from runtime.strict_yaml import read_yaml
from runtime.trust import enforce, trust


class Given(NamedTuple):
    """A command line, with its files read.

    Attributes:
        files: name and content of each file, the project's defaults first.
        words: the other options.
    """

    files: list[tuple[str, dict[str, Any]]]
    words: list[str]

    def replaced(self) -> Iterator[str]:
        """A line for each class in the files that ``--model NAME`` or ``--data NAME`` replaces."""
        for group in ("model", "data"):
            specs = [content.get(group) for _, content in self.files]
            olds = [spec.get("class_path") if isinstance(spec, dict) else spec for spec in specs]
            old = next((public_name(str(name)) for name in reversed(olds) if name), None)
            new = next((value for option, value in pairs(self.words) if option == f"--{group}"), None)
            if old and new and (find_class(new) or "." in new) and public_name(new) != old:
                yield f"--{group} {new} replaces {old}: options in the file that both have are kept"

    def for_parser(self) -> list[str]:
        """The arguments in the parser's form: each file as JSON, every class known."""
        for source, content in self.files:
            if not isinstance(content.get("trainer", {}), (dict, type(None))):
                raise ConfigError(
                    f"{source}: trainer: expected options such as max_epochs, got {content['trainer']!r}"
                )
        added, words = callback_lists.from_command_line(words_with_full_names(self.words))
        layers = [with_full_names(content) for _, content in self.files]
        callbacks = callback_lists.merge([*layers, {"trainer": {"callbacks": added}}])
        layers = [*map(callback_lists.without_callbacks, layers), {"trainer": {"callbacks": callbacks}}]
        files = [json.dumps(layer) for layer in layers]
        import_named([*files, *words])
        return [*(f"--config={file}" for file in files), *words]


def read_arguments(args: list[str]) -> Given:
    """Read the files of a command line, and register its trusted packages.

    Raises:
        ConfigError: a file is missing or broken, or a name is not a package.
    """
    args = trusted_packages(args)
    names = [str(DEFAULTS), *config_arguments(args)]
    words, rest = [], iter(args)
    for word in rest:
        if word in ("--config", "-c"):
            next(rest)
        elif not word.startswith("--config="):
            words.append(word)
    return Given([(name, read_config(name)) for name in names], words)


def trusted_packages(args: list[str]) -> list[str]:
    """Apply ``--trust_config_classes PACKAGE[,PACKAGE]`` and remove it; it is never accepted from a file."""
    rest, words = [], iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--trust_config_classes":
            rest.append(word)
            continue
        trust((value if equals else next(words, "")).split(","))
        if os.getcwd() not in sys.path:  # for the user's packages; installed ones come first
            sys.path.append(os.getcwd())
    enforce()
    return rest


def import_named(texts: list[str]) -> None:
    """Import every class of the project that a text names, so that the parser knows it."""
    for name in set(re.findall(r"\w+", " ".join(texts))) & classes().keys():
        find_class(name)


def full_name(value: Any) -> Any:
    """The full name for a short one of the project, since others may share it, such as ``CSVLogger``."""
    if isinstance(value, list):
        return [full_name(item) for item in value]
    return current_path(value) or value if isinstance(value, str) else value


def with_full_names(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration with full names of the project's classes, and timm models' names as encoders."""
    content = with_current_paths({key: value for key, value in content.items() if value is not None})
    if isinstance(trainer := content.get("trainer"), dict):
        content = {**content, "trainer": {key: full_name(value) for key, value in trainer.items()}}
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(options := model.get("init_args"), dict):
        return content
    encoder = {"encoder": timm_by_name(options["encoder"])} if "encoder" in options else {}
    return {**content, "model": {**model, "init_args": {**options, **encoder}}}


def words_with_full_names(words: list[str]) -> list[str]:
    """The same for the command line, with each option and its value in one word."""
    out = []
    for option, value in pairs(words):
        if option == "--trainer":  # the parser would accept the name of a file
            raise ConfigError(f"--trainer: expected options such as --trainer.max_epochs 10, got {value!r}")
        if value is None:
            out.append(option)
            continue
        if option in ("--model.encoder", "--model.init_args.encoder"):
            encoder = timm_by_name(value)
            value = encoder if isinstance(encoder, str) else json.dumps(encoder)
        elif value.startswith(("{", "[")):
            with suppress(yaml.YAMLError):  # the parser reports what is wrong
                given = read_yaml(value)
                full = with_current_paths(given)
                full = full_name(full) if option.startswith("--trainer.") else full
                value = value if full == given else json.dumps(full)
        elif option.startswith("--trainer."):
            value = full_name(value)
        out.append(f"{option}={value}")
    return out
