"""Records how objects were built, so that a checkpoint can rebuild them."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

from runtime.discovery import public_name, with_public_names

UNRECORDED = "unrecorded"
"""Key in a record for an object whose construction is unknown; the value is its class."""


class Recorded:
    """Records its constructor's arguments. Networks and transforms inherit from it, before ``nn.Module``.

    Example::

        >>> class Blur(Recorded):
        ...     def __init__(self, sigma, steps=1): ...
        >>> Blur(0.5).__dict__["_arguments"]
        {'sigma': 0.5, 'steps': 1}
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.__dict__["_arguments"] = _bound(cls, args, kwargs)
        return self


def _bound(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name, including defaults, as plain values; None if they cannot be determined."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # the constructor will raise its own error; a copy gets its state afterwards
        return None
    bound.apply_defaults()
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    values: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL and value:
            return None
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            values |= value
        elif kinds[name] is not inspect.Parameter.VAR_POSITIONAL:
            values[name] = value
    return {name: plain(value) for name, value in values.items()}


def plain(value: Any) -> Any:
    """Convert a value to a form that a checkpoint can store.

    Numbers, strings, None, and lists and dicts of those are unchanged; a tuple becomes a list, a path a
    string. An object that records how it was built (``Recorded``, or a ``functools.partial`` of a class)
    becomes ``{"class_path": ..., "init_args": ...}``.

    Everything else becomes ``{"unrecorded": CLASS}``: the object itself would make a checkpoint unreadable
    for ``torch.load(weights_only=True)``.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):  # also NumPy's
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (str, os.PathLike)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
        return _spec(value.func, plain(value.keywords))
    if isinstance(value, Recorded):
        return _spec(type(value), value.__dict__["_arguments"])
    return {UNRECORDED: _name(type(value))}


def _name(cls: type) -> str:
    return public_name(f"{cls.__module__}.{cls.__qualname__}")


def _spec(cls: type, arguments: dict[str, Any] | None) -> dict[str, Any]:
    name = _name(cls)
    if arguments is None or name.startswith("__main__.") or "<locals>" in name:
        return {UNRECORDED: name}
    return {"class_path": name, "init_args": arguments}


def record(module: Any, arguments: Any) -> dict[str, Any]:
    """The hyper-parameters of a LightningModule or DataModule: its arguments as plain values, and its
    class.
    """
    kept = with_public_names({key: plain(value) for key, value in dict(arguments).items()})
    return {"_class_path": _name(type(module)), **kept}


def gaps(recorded: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Each place in a record that cannot be rebuilt, such as ``encoder.net``, and the class of its object."""
    if isinstance(recorded, dict):
        if recorded.keys() == {UNRECORDED}:
            yield place, recorded[UNRECORDED]
            return
        inside = recorded["init_args"] if recorded.keys() == {"class_path", "init_args"} else recorded
        for key, value in inside.items():
            yield from gaps(value, f"{place}.{key}" if place else key)
    elif isinstance(recorded, (list, tuple)):
        for number, value in enumerate(recorded):
            yield from gaps(value, f"{place}.{number}")
