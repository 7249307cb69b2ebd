"""Reads the options of a class from its signature."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def options_of(cls: type) -> dict[str, inspect.Parameter]:
    """Every option of a class by name, including those that ``**kwargs`` passes to its bases.

    The annotation is the type itself, or ``Any`` without one.
    """
    options: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        function = inspect.unwrap(base.__init__)  # type: ignore[misc]
        try:
            hints = typing.get_type_hints(function)
        except (NameError, TypeError):  # a type that exists only for type checkers: the name is enough
            hints = {}
        try:
            parameters = list(inspect.signature(function).parameters.values())[1:]
        except ValueError:  # written in C
            break
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                options.setdefault(p.name, p.replace(annotation=hints.get(p.name, Any)))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return options


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; nothing for any other type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def classes_in(hint: Any) -> tuple[type, ...]:
    """The classes that a value of this type is built from: X for X | None, list[X], Callable[..., X]."""
    origin = typing.get_origin(hint)
    if members(hint) or origin in (list, tuple, Iterable):
        return tuple(dict.fromkeys(cls for h in typing.get_args(hint) for cls in classes_in(h)))
    if origin is type:  # a class itself, such as the block of a torchvision ResNet
        return ()
    if origin is not None and isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        returned = typing.get_args(hint)[-1:]  # a bare `Callable` has no return type
        return classes_in(returned[0]) if returned else ()
    if (
        isinstance(hint, type)
        and hint.__module__ not in ("builtins", "typing", "collections.abc")
        and hint is not Tensor
    ):
        return (hint,)
    return ()


def takes_function(hint: Any) -> bool:
    """Whether a value of this type may be any function.

    True for ``Callable`` and ``Callable[..., float]``; ``Callable[..., Optimizer]`` takes the class of an
    optimizer.
    """
    if inner := members(hint):
        return any(takes_function(h) for h in inner)
    return (hint is Callable or typing.get_origin(hint) is Callable) and not classes_in(hint)
