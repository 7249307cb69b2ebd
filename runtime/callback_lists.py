"""Combines the project's callbacks with the user's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml
from lightning import Callback

from datamodules.errors import ConfigError
from runtime.discovery import public_name
from runtime.messages import DEFAULTS, did_you_mean, read_config
from runtime.names import resolve
from runtime.strict_yaml import read_yaml

OPTION = "--trainer.callbacks"
#: Every run has these in addition to the ones in configs/default.yaml.
EVERY_RUN = (
    "Throughput",
    "FiniteLoss",
    "ProgressBar",
    "BestCheckpoint",
    "LastCheckpoint",
    "Preemption",
)

Spec = dict[str, Any]


def merge(layers: Iterable[dict[str, Any]]) -> list[Spec]:
    """The callbacks of all layers: a later layer adds callbacks, and replaces those of the same class.

    Args:
        layers: configurations of the project, of each file and of the command line.
    """
    callbacks: list[Spec] = []
    for layer in layers:
        added = _listed(layer)
        replaced = {spec["class_path"] for spec in added}
        callbacks = [spec for spec in callbacks if spec["class_path"] not in replaced] + added
    return callbacks


def _listed(layer: dict[str, Any]) -> list[Spec]:
    trainer = layer.get("trainer") or {}
    lists = [trainer.get(key) or [] for key in ("callbacks", "callbacks+")]
    specs = [spec for given in lists for spec in (given if isinstance(given, list) else [given])]
    return [_full(spec) for spec in specs]


def _full(given: Any) -> Spec:
    """A callback with the full name of its class; unknown names are left for the parser to reject.

    Raises:
        ConfigError: neither a name nor a mapping with one.
    """
    spec = {"class_path": given} if isinstance(given, str) else given
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise ConfigError(
            f"trainer.callbacks: expected a list of names or of mappings with class_path, got {given!r}"
        )
    try:
        cls = resolve(spec["class_path"], Callback, "trainer.callbacks")
    except ConfigError:
        return spec
    return {**spec, "class_path": f"{cls.__module__}.{cls.__qualname__}"}


def without_callbacks(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer without its list, since the parser would replace all others by the last one."""
    if not isinstance(layer.get("trainer"), dict):
        return layer
    rest = {k: v for k, v in layer["trainer"].items() if k not in ("callbacks", "callbacks+")}
    return {**layer, "trainer": rest}


def from_command_line(args: list[str]) -> tuple[list[Spec], list[str]]:
    """The callbacks listed on the command line, and the rest of the command line.

    ``--trainer.callbacks NAME`` (also with ``+=``) adds one, ``--trainer.callbacks.OPTION VALUE`` sets an
    option of the previous one. A list or mapping in YAML adds all its entries; ``null`` adds none.

    Raises:
        ConfigError: an option before any callback, or a value that is not YAML.
    """
    specs: list[Spec] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        path = option.removesuffix("+").removeprefix(OPTION).strip(".").split(".")
        if not f"{option.removesuffix('+')}.".startswith(f"{OPTION}.") or path == ["help"]:
            rest.append(word)
            continue
        value = value if equals else next(words, "null")
        if path in ([""], ["class_path"]):
            specs += _named(value, option)
        elif not specs:
            raise ConfigError(f"{option}: give the callback first: {OPTION}+=NAME {option}={value}")
        else:
            node = specs[-1].setdefault("init_args", {})
            *parents, last = [part for part in path if part != "init_args"]
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
    return specs, rest


def _named(value: str, option: str) -> list[Spec]:
    try:
        given = read_yaml(value)
    except yaml.YAMLError:
        raise ConfigError(f"{option}: {value!r} is neither the name of a class nor YAML") from None
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return [spec if isinstance(spec, dict) else {"class_path": str(spec)} for spec in listed]


def turned_off(given: str | list[str] | None) -> set[str]:
    """Names of the callbacks that ``--disable_callbacks`` turns off.

    Args:
        given: a name, comma-separated names, or a list.

    Raises:
        ConfigError: a callback that is not the project's; the message suggests the nearest.
    """
    known = [*(public_name(spec["class_path"]) for spec in _listed(read_config(str(DEFAULTS)))), *EVERY_RUN]
    names = given.split(",") if isinstance(given, str) else given or []
    names = [public_name(name.strip()) for name in names]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--disable_callbacks {name}{did_you_mean(name, known)}: expected one of {', '.join(known)}"
            )
    return set(names)


def check_state_keys(callbacks: list[Callback]) -> None:
    """Raise ConfigError for two callbacks whose states a checkpoint cannot distinguish."""
    seen: set[str] = set()
    for callback in callbacks:
        if type(callback).state_dict is Callback.state_dict:
            continue
        if callback.state_key in seen:
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} is listed twice with the same settings "
                f"({callback.state_key}): expected one, or several that differ in what they monitor"
            )
        seen.add(callback.state_key)
