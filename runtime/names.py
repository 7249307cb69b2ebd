"""Finds classes by name, and explains what the parser rejected."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

import timm
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from runtime.discovery import PACKAGES, below, classes, find_class
from runtime.messages import did_you_mean, read_config
from runtime.options import classes_in, members, options_of, takes_function
from runtime.strict_yaml import read_yaml, reason
from runtime.trust import admit, find
from sslmodules.base import SSLModule
from sslmodules.networks import Encoder, TimmEncoder, WrappedEncoder

SAVING = ("save_every_n_steps", "save_every_minutes", "save_in_background")
#: Modules with classes of these kinds that can be used besides the project's.
FRAMEWORKS = {
    Optimizer: "torch.optim",
    Callback: "lightning.pytorch.callbacks",
    Logger: "lightning.pytorch.loggers",
}
TOP_LEVEL = (
    "seed_everything",
    "trainer",
    "model",
    "data",
    "run_dir",
    "init_from",
    "compile",
    "evaluate",
    "disable_callbacks",
    *SAVING,
)
#: Options that are not part of a configuration.
OTHERS = ("config", "print_config", "trust_config_classes", "help")
WRAPPED = "{{class_path: WrappedEncoder, init_args: {{net: {}, num_features: D}}}}"
#: Names of options in other projects, and their names here.
USUAL_NAMES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "epochs": "max_epochs",
    "steps": "max_steps",
    "bs": "batch_size",
    "gpus": "devices",
    "workers": "num_workers",
    "img_size": "image_size",
    "seed": "seed_everything",
    "output_dir": "run_dir",
    "tau": "temperature",
    "backbone": "encoder",
}


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """``base`` and every imported class below it."""
    yield base
    for child in type.__subclasses__(base):
        yield from subclasses(child)


def known_names(base: type) -> list[str]:
    """Names to suggest for ``base``: the project's classes that can be built, or all if it has none."""
    own = [base.__name__] if may_be_built(base, base) and base.__name__ in classes() else []
    own += below([base.__name__])
    if base is nn.Module:
        own = [name for name in own if classes()[name].module.startswith("sslmodules.networks")]
    every = [
        c
        for c in subclasses(base)
        if not inspect.isabstract(c) and not c.__name__.startswith("_") and c is not base
    ]
    if package := FRAMEWORKS.get(base):
        own += [c.__name__ for c in every if c.__module__.startswith(package)]
    return sorted(set(own) or {c.__name__ for c in every})


def may_be_built(cls: Any, base: type) -> bool:
    """Whether it is a subclass of ``base`` that is not marked as a base class itself."""
    return isinstance(cls, type) and issubclass(cls, base) and ABC not in cls.__bases__


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def kind_of(base: type) -> str:
    """The noun for a subclass of ``base``."""
    kinds = {SSLModule: "method", SSLDataModule: "data set", Encoder: "encoder", nn.Module: "network"}
    return kinds.get(base, f"{base.__name__} class")


def resolve(name: str, bases: type | tuple[type, ...], where: str) -> type:
    """The subclass ``name`` of one of ``bases``, given with or without its module.

    Raises:
        ConfigError: unknown; the message lists the known ones.
    """
    bases = bases if isinstance(bases, tuple) else (bases,)
    dotted = "." in name and all(part.isidentifier() for part in name.split("."))
    named: list[Any] = [find_class(name) or (find(name, where) if dotted else None)]
    if not dotted:
        named += [cls for base in bases for cls in subclasses(base) if cls.__name__ == name]
    found = [cls for cls in named if any(may_be_built(cls, base) for base in bases)]
    if found:
        return min(found, key=lambda cls: not cls.__module__.startswith(PACKAGES))
    kind = " or ".join(map(kind_of, bases))
    known = sorted({known for base in bases for known in known_names(base)})
    listed = ", ".join(known) if len(known) <= 40 else f"{len(known)} classes"
    encoder = any(issubclass(TimmEncoder, base) and base is not nn.Module for base in bases)
    if dotted:
        wrap = any(issubclass(WrappedEncoder, base) for base in bases) and may_be_built(named[0], nn.Module)
        hint = f"; or wrap it: {WRAPPED.format(name)}" if wrap else ""
        raise ConfigError(f"{where}: {name!r} is not {article(kind)}; known: {listed}{hint}")
    near = did_you_mean(name, [*known, *timm.list_models()] if encoder else known)
    extra = ", or the name of a timm model" if encoder else ""
    raise ConfigError(f"{where}: unknown {kind} {name!r}{near}; known: {listed}{extra}")


def timm_by_name(encoder: Any) -> Any:
    """The encoder itself, or a ``TimmEncoder`` if it is the name of a timm model."""
    if isinstance(encoder, str) and find_class(encoder) is None and timm.is_model(encoder):
        return {"class_path": f"{TimmEncoder.__module__}.TimmEncoder", "init_args": {"name": encoder}}
    return encoder


class Mistakes:
    """Searches files and options, in their order, for a name that does not exist.

    Each method raises ``ConfigError`` for the first one.
    """

    def __init__(self) -> None:
        self.classes: dict[tuple[str, ...], type] = {("trainer",): Trainer}  # chosen so far, by position

    def in_file(self, content: dict[str, Any], source: str) -> None:
        for key, value in content.items():
            name = str(key).removesuffix("+")
            if name not in TOP_LEVEL:
                near = did_you_mean(name, TOP_LEVEL)
                raise ConfigError(f"{source}: unknown key {name!r}{near}; known: {', '.join(TOP_LEVEL)}")
            self._top(name, value, f"{source}: {name}")

    def in_words(self, words: list[str]) -> None:
        """``--option value`` or ``--option=value``; values that are lists or mappings are searched too."""
        rest = iter(words)
        for word in rest:
            option, equals, value = word.partition("=")
            if not word.startswith("--"):
                raise ConfigError(
                    f"unexpected {word!r}: expected options such as --model.temperature 0.2 (two dashes, "
                    "name, value)"
                )
            path = option.removeprefix("--").removesuffix("+").split(".")
            if path[0] not in (*TOP_LEVEL, *OTHERS):
                near = did_you_mean(option, [f"--{name}" for name in (*TOP_LEVEL, *OTHERS)])
                raise ConfigError(f"unknown option {option}{self._meant(path[-1]) or near}; see --help")
            given = _value(value if equals else next(rest, ""), option)
            for part in reversed([part for part in path[1:] if part != "init_args"]):
                given = {part: given}
            if path[-1] != "help":
                self._top(path[0], given, f"--{path[0]}")

    def _top(self, name: str, value: Any, where: str) -> None:
        bases = {"model": SSLModule, "data": SSLDataModule}
        if name in bases:
            self._spec(value, (bases[name],), (name,), where)
        elif name == "trainer" and isinstance(value, dict):
            self._options(value, (name,), where)
        elif name == "trainer":
            raise ConfigError(f"{where}: expected options such as max_epochs, got {value!r}")

    def _spec(self, value: Any, bases: tuple[type, ...], path: tuple[str, ...], where: str) -> None:
        """A class by name, or a mapping with the name, options, or both."""
        if isinstance(value, list):
            for i, item in enumerate(value):
                self._spec(item, bases, (*path, str(i)), f"{where}[{i}]")
            return
        if isinstance(timm_by_name(value), dict) and any(issubclass(TimmEncoder, base) for base in bases):
            value = timm_by_name(value)
        if isinstance(value, str) and Path(value).is_file():  # the parser also reads a class from a file
            where, value = value, read_config(value)
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, dict):
            kind = article(kind_of(bases[0]))
            raise ConfigError(
                f"{where}: expected the name of {kind}, or a mapping with class_path, got {value!r}"
            )
        if "class_path" in value:
            self.classes[path] = resolve(str(value["class_path"]), bases, where)
        elif path not in self.classes:
            raise ConfigError(self._no_class(path, value, where))
        inner = value.get("init_args", {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{where}.init_args: expected options and their values, got {inner!r}")
        direct = {k: v for k, v in value.items() if k not in ("class_path", "init_args", "dict_kwargs")}
        if direct and "class_path" in value:
            name = self.classes[path].__name__
            raise ConfigError(
                f"{where}: unknown key {next(iter(direct))!r}; expected class_path and init_args: options of "
                f"{name} go under init_args"
            )
        self._anything(value.get("dict_kwargs"), f"{where}.dict_kwargs")
        self._options({**direct, **inner}, path, where)

    def _no_class(self, path: tuple[str, ...], value: dict[str, Any], where: str) -> str:
        if where.startswith("--") and len(path) == 1:
            return f"{where}: no {path[0]} is chosen yet: give --config FILE or --{path[0]} NAME first"
        return f"{where}: expected class_path, got {', '.join(map(str, value)) or 'nothing'}"

    def _options(self, given: dict[Any, Any], path: tuple[str, ...], where: str) -> None:
        cls = self.classes[path]
        options = options_of(cls)
        if issubclass(cls, Optimizer):
            options.pop("params", None)  # are the method's
        for key, value in given.items():
            name = str(key).removesuffix("+")
            place = f"{where}.{name}"
            if name not in options:
                usual = USUAL_NAMES.get(name)
                near = f" (did you mean {usual!r}?)" if usual in options else did_you_mean(name, options)
                near = self._meant(name, cls) or near
                raise ConfigError(f"{place}: {cls.__name__} has no option {name!r}{near}")
            hint = options[name].annotation
            bases = classes_in(hint)
            if bases and self._stands_for_a_class(value, hint, (*path, name)):
                self._spec(value, bases, (*path, name), place)
            elif isinstance(value, str) and "." in value and takes_function(hint):
                admit(find(value, place), place)
            else:
                self._anything(value, place)

    def _anything(self, value: Any, where: str) -> None:
        """A value of any type: classes in it must exist and be allowed."""
        if isinstance(value, list):
            for i, item in enumerate(value):
                self._anything(item, f"{where}[{i}]")
        elif isinstance(value, dict) and isinstance(name := value.get("class_path"), str):
            admit(find(name, where), where)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._anything(item, f"{where}.{key}")

    def _stands_for_a_class(self, value: Any, hint: Any, path: tuple[str, ...]) -> bool:
        """Whether it is an object to build, not plain data for a type that also accepts data."""
        if value is None or value is True:  # the default, or a switch such as the logger's
            return False
        if isinstance(value, list):
            return bool(value) and all(self._stands_for_a_class(v, hint, path) for v in value)
        if isinstance(value, dict):
            return bool({"class_path", "init_args"} & set(value)) or path in self.classes
        return not takes_text(hint) and (isinstance(value, str) or bool not in members(hint))

    def _meant(self, name: str, cls: type | None = None) -> str:
        """`` (did you mean '--X'?)`` with an option of this or an equivalent name in a chosen class."""
        usual = USUAL_NAMES.get(name.replace("-", "_"), name.replace("-", "_"))
        options = {
            f"--{'.'.join(path)}.{'init_args.' if len(path) > 1 else ''}{option}": option
            for path, chosen in self.classes.items()
            if chosen is not cls
            for option in options_of(chosen)
        }
        options |= {f"--{option}": option for option in TOP_LEVEL}
        same = [place for place, option in options.items() if option == usual]
        return f" (did you mean '{min(same, key=len)}'?)" if same else ""


def takes_text(hint: Any) -> bool:
    """Whether a value of this type may be a plain word or number, as in ``Union[str, Strategy]``."""
    if inner := members(hint):
        return any(takes_text(h) for h in inner)
    return hint in (str, int, float, Any) or get_origin(hint) is Literal


def _value(text: str, option: str) -> Any:
    """The value of an option: a list or a mapping if it is one, otherwise the word."""
    if not text.startswith(("{", "[")):
        return {"null": None, "true": True, "false": False, "": None}.get(text, text)
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option}: {text!r} is neither YAML nor JSON ({reason(error)[1]})") from None


def look_for_mistakes(
    files: list[tuple[str, dict[str, Any]]], words: list[str], groups: Iterable[str] = ("model", "data")
) -> None:
    """Called after the parser has rejected the input: find and explain the first mistake.

    Args:
        files: name and content, in their order.
        words: the command line without files.
        groups: what has to be chosen.

    Raises:
        ConfigError: the first mistake, if one is found.
    """
    mistakes = Mistakes()
    for source, content in files:
        mistakes.in_file(content, source)
    mistakes.in_words(words)
    for group in groups:
        if (group,) not in mistakes.classes:
            raise ConfigError(
                f"no {group} is chosen: give --config FILE (see --help for the list) or --{group} NAME"
            )
