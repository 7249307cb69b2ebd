"""Are the names of a configuration right? Asked before the parser, whose own words for a typo run over seven
lines.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from abc import ABC
from collections.abc import Iterator
from typing import Any

import timm
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer

from datamodules.base import SSLDataModule
from runtime.discovery import PACKAGES, below, classes, find_class
from runtime.messages import UserError, did_you_mean
from runtime.options import class_in, options_of
from runtime.trust import find
from sslmodules.base import SSLModule
from sslmodules.networks import Encoder, TimmEncoder, WrappedEncoder

SAVING = ("save_every_n_steps", "save_every_minutes", "save_in_background")
#: Where classes of these kinds lie that are meant to be used beside the project's.
FRAMEWORKS = {
    Optimizer: "torch.optim",
    Callback: "lightning.pytorch.callbacks",
    Logger: "lightning.pytorch.loggers",
}
WRAPPED = "{{class_path: WrappedEncoder, init_args: {{net: {}, num_features: D}}}}"
TOP_LEVEL = (
    "seed_everything",
    "trainer",
    "model",
    "data",
    "run_dir",
    "evaluate",
    "disable_callbacks",
    *SAVING,
)


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """``base`` and every imported class below it."""
    yield base
    for child in type.__subclasses__(base):
        yield from subclasses(child)


def known_names(base: type) -> list[str]:
    """Names to suggest for ``base``: the project's own classes that are meant to be built, or everybody's if
    it has none.
    """
    own = below([base.__name__])
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


def may_be_built(cls: type, base: type) -> bool:
    """Is it below ``base``, and not marked as a base class itself?"""
    return issubclass(cls, base) and ABC not in cls.__bases__


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def resolve(name: str, base: type, where: str) -> type:
    """The class called ``name``, short or with its module; a ``UserError`` with the known ones otherwise."""
    kind = {SSLModule: "method", SSLDataModule: "data set", Encoder: "encoder", nn.Module: "network"}.get(
        base, f"{base.__name__} class"
    )
    known = known_names(base)
    if (cls := find_class(name)) is not None and may_be_built(cls, base):
        return cls
    if "." in name:
        cls = find(name, where)
        if not (isinstance(cls, type) and may_be_built(cls, base)):
            wrap = isinstance(cls, type) and issubclass(cls, nn.Module) and issubclass(WrappedEncoder, base)
            raise UserError(
                f"{where}: {name!r} is not {article(kind)}; known: {', '.join(known)}"
                + (f"; or wrap it: {WRAPPED.format(name)}" if wrap else "")
            )
        return cls
    matches = [c for c in subclasses(base) if c.__name__ == name and may_be_built(c, base)]
    if not matches:
        listed = ", ".join(known) if len(known) <= 40 else f"{len(known)} classes"
        timms = issubclass(TimmEncoder, base)
        extra = ", or the name of a timm model" if timms else ""
        near = did_you_mean(name, [*known, *timm.list_models()] if timms else known)
        raise UserError(f"{where}: unknown {kind} {name!r}{near}; known: {listed}{extra}")
    return next((c for c in matches if c.__module__.startswith(PACKAGES)), matches[0])


def spec_of(value: Any, base: type) -> Any:
    """A class given by its bare name as the mapping that the parser takes; a timm model's name becomes a
    ``TimmEncoder``.
    """
    if (
        isinstance(value, str)
        and issubclass(TimmEncoder, base)
        and "." not in value.split("/")[0][:1]
        and is_timm_name(value)
    ):
        return {"class_path": "sslmodules.networks.TimmEncoder", "init_args": {"name": value}}
    return {"class_path": value} if isinstance(value, str) else value


def is_timm_name(value: str) -> bool:
    return not any(c.__name__ == value for c in subclasses(nn.Module)) and timm.is_model(value)


def check_spec(value: Any, base: type, where: str, current: type | None) -> tuple[Any, type | None]:
    """Check one class and its options, nested ones too.

    Args:
        value: from YAML: a name, or a mapping with ``class_path`` and ``init_args`` (either may be left to an
            earlier file).
        base: what the class must derive from.
        where: key path for messages.
        current: the class that earlier files chose.

    Returns:
        The value with full class paths and bare names expanded, and its class.
    """
    value = spec_of(value, base)
    if isinstance(value, list):
        return [check_spec(v, base, f"{where}[{i}]", None)[0] for i, v in enumerate(value)], None
    if not isinstance(value, dict):
        return value, current
    unknown = set(value) - {"class_path", "init_args"}
    cls = current
    if "class_path" in value:
        cls = resolve(str(value["class_path"]), base, where)
        value = {**value, "class_path": f"{cls.__module__}.{cls.__qualname__}"}
    elif cls is None:
        raise UserError(f"{where}: expected class_path, got {', '.join(map(str, value)) or 'nothing'}")
    if unknown:
        hint = (
            f": options of {cls.__name__} go under init_args"
            if cls and unknown & set(options_of(cls))
            else ""
        )
        raise UserError(
            f"{where}: unknown key {sorted(unknown)[0]!r}; expected class_path and init_args{hint}"
        )
    assert cls is not None
    init_args = value.get("init_args")
    if isinstance(init_args, dict):
        value = {**value, "init_args": check_options(init_args, cls, where)}
    return value, cls


def check_options(given: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """Every key of ``given`` must be an option of ``cls``; classes among the values are checked in their
    turn.
    """
    options, checked = options_of(cls), dict(given)
    for key, value in given.items():
        name = str(key).removesuffix("+")
        if name not in options:
            raise UserError(
                f"{where}.{key}: {cls.__name__} has no option {name!r}{did_you_mean(name, options)}"
            )
        hint = options[name].annotation
        inner = class_in(hint)
        if inner is not None and holds_class(value, hint):
            checked[key] = check_spec(value, inner, f"{where}.{name}", None)[0]
    return checked


def takes_text(hint: Any) -> bool:
    """May a value of this type be a plain word or number, as in ``Union[str, Strategy]``?"""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(takes_text(h) for h in typing.get_args(hint))
    return hint in (str, int, float, Any) or typing.get_origin(hint) is typing.Literal


def holds_class(value: Any, hint: Any) -> bool:
    """Does a value stand for an object to build, and not for plain data of a type that also takes data?"""
    if isinstance(value, list):
        return bool(value) and all(holds_class(v, hint) for v in value)
    if isinstance(value, dict):
        return "class_path" in value
    return isinstance(value, str) and not takes_text(hint) and value not in ("null", "true", "false")


def check_layer(layer: dict[str, Any], chosen: dict[str, type | None], source: str) -> dict[str, Any]:
    """Check one configuration file; ``chosen`` holds the classes of model and data and is brought up to
    date.
    """
    checked = dict(layer)
    for key, value in layer.items():
        name = str(key).removesuffix("+")
        if name not in TOP_LEVEL:
            raise UserError(
                f"{source}: unknown key {name!r}{did_you_mean(name, TOP_LEVEL)}; known: "
                f"{', '.join(TOP_LEVEL)}"
            )
        where = f"{source}: {name}"
        if name == "trainer":
            if not isinstance(value, dict):
                raise UserError(f"{where}: expected options of Lightning's Trainer, got {value!r}")
            checked[key] = check_options(value, Trainer, where)
        elif name in ("model", "data"):
            base = SSLModule if name == "model" else SSLDataModule
            checked[key], chosen[name] = check_spec(value, base, where, chosen[name])
    return checked


def check_command_line(
    args: list[str], chosen: dict[str, type | None], layers: list[dict[str, Any]], known: list[str]
) -> list[str]:
    """Check the options of the command line (without ``--config``) and expand bare names of timm models.

    Args:
        args: such as ``["--model.temperature", "0.2", "--trainer.max_epochs=3"]``.
        chosen: classes of model and data from the files; ``--model NAME`` on the line changes them.
        layers: the checked files, which tell the classes of nested options.
        known: options outside the three groups.
    """
    nested: dict[tuple[str, ...], type] = {}
    out: list[str] = []
    i = 0
    while i < len(args):
        arg = args[i]
        if not arg.startswith("--"):
            raise UserError(
                f"unexpected {arg!r}: expected options such as --model.temperature 0.2 (two dashes, name, "
                "value)"
            )
        option, equals, value = arg.partition("=")
        takes = not equals and i + 1 < len(args) and not args[i + 1].startswith("--")
        if takes:
            value = args[i + 1]
        path = [
            part for part in option.removeprefix("--").removesuffix("+").split(".") if part != "init_args"
        ]
        if path[0] not in (*TOP_LEVEL, *known):
            near = did_you_mean(path[0], [*TOP_LEVEL, *known]).replace("'", "'--", 1)
            raise UserError(f"unknown option {option}{near}; see --help")
        value = _check_option(option, path, value, chosen, layers, nested)
        out += [f"{option}={value}"] if equals else [option, value] if takes else [option]
        i += 2 if takes else 1
    return out


def from_text(value: str, option: str) -> Any:
    """A list or mapping given on the command line, as YAML or JSON."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{option}: {value!r} is neither YAML nor JSON") from None


def _check_option(
    option: str,
    path: list[str],
    value: str,
    chosen: dict[str, type | None],
    layers: list[dict[str, Any]],
    nested: dict[tuple[str, ...], type],
) -> str:
    """One dotted option: every part a name that exists. Returns the value, a timm name expanded."""
    group = path[0]
    if path[-1] == "help" or group not in ("trainer", "model", "data"):
        return value
    base = {"trainer": Trainer, "model": SSLModule, "data": SSLDataModule}[group]
    if path == ["trainer"]:  # the parser would take the name of a file that nobody has checked
        raise UserError(f"{option}: give options such as --trainer.max_epochs 10, or --config FILE")
    if group != "trainer" and path[1:] in ([], ["class_path"]):
        if value.startswith("{"):
            spec, chosen[group] = check_spec(from_text(value, option), base, option, chosen[group])
            return json.dumps(spec)
        chosen[group] = resolve(value, base, option)
        return value
    cls = Trainer if group == "trainer" else chosen[group]
    if cls is None:
        raise UserError(f"{option}: no {group} is chosen yet: give --config FILE or --{group} NAME first")
    for depth, part in enumerate(path[1:], start=1):
        options = options_of(cls)
        if part == "class_path":
            return value
        if part not in options:
            raise UserError(f"{option}: {cls.__name__} has no option {part!r}{did_you_mean(part, options)}")
        hint, here = options[part].annotation, tuple(path[: depth + 1])
        inner = class_in(hint)
        if inner is None:
            return value
        if depth + 1 == len(path) or path[depth + 1 :] == ["class_path"]:
            if value.startswith(("{", "[")) and holds_class(given := from_text(value, option), hint):
                return json.dumps(check_spec(given, inner, option, nested.get(here))[0])
            if value.startswith(("{", "[")) or not holds_class(value, hint):
                return value
            if issubclass(TimmEncoder, inner) and is_timm_name(value):
                nested[here] = TimmEncoder
                return json.dumps(
                    {"class_path": "sslmodules.networks.TimmEncoder", "init_args": {"name": value}}
                )
            nested[here] = cls = resolve(value, inner, option)
            return f"{cls.__module__}.{cls.__qualname__}"  # timm has a ConvEncoder too
        found = nested.get(here) or _class_in_files(here, layers, inner)
        if found is None:  # a list, such as callbacks: the parser looks at its members
            return value
        cls = found
    return value


def _class_in_files(path: tuple[str, ...], layers: list[dict[str, Any]], base: type) -> type | None:
    """The class that the last file to name one gives for a nested option."""
    for layer in reversed(layers):
        node: Any = layer
        for part in path:
            node = node.get("init_args", node).get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and "class_path" in node:
            return resolve(node["class_path"], base, ".".join(path))
    return None
