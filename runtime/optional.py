"""Optional methods: declared in a base class, provided by overriding them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from datamodules.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__declared_optional__"


def optional(method: F) -> F:
    """Declare a method that subclasses may define; the declaring class does not provide it."""
    setattr(method, _MARK, True)
    return method


def offers(thing: object, name: str) -> bool:
    """Whether an object, or a class, defines the optional method ``name`` that its base class declares."""
    cls = thing if isinstance(thing, type) else type(thing)
    return not hasattr(getattr(cls, name), _MARK)


def declared(cls: type) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """The base class, name and declaration of every optional method of a class."""
    for base in cls.__mro__:
        for name, method in vars(base).items():
            if hasattr(method, _MARK):
                yield base, name, method


def check_optional(thing: object) -> None:
    """Compare an object's definitions with the optional methods that its base classes declare.

    A definition must take the declared arguments, with their names and in their order; others need defaults.

    Raises:
        ConfigError: a definition takes other arguments, or an attribute hides the name of an optional method.
    """
    cls = type(thing)
    held = set(vars(thing)).union(*(vars(thing).get(k, ()) for k in ("_modules", "_parameters", "_buffers")))
    for base, name, declaration in declared(cls):
        expected = _shown(base, name, declaration)
        if name in held:
            raise ConfigError(
                f"{cls.__name__}.{name} is an attribute with the name of the optional method {expected}: "
                f"rename it, for example _{name}"
            )
        if offers(cls, name) and not _fits(getattr(cls, name), declaration):
            raise ConfigError(
                f"{_shown(cls, name, getattr(cls, name))} does not match the optional method {expected}: "
                f"take the same arguments, or rename it, for example _{name}"
            )


def _shown(cls: type, name: str, method: Any) -> str:
    """``SSLModule.sample(n: int) -> Tensor``."""
    if not callable(method):
        return f"{cls.__name__}.{name} (not a method)"
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.name != "self"]
    return f"{cls.__name__}.{name}{signature.replace(parameters=own)}".replace("'", "")


def _fits(definition: Any, declaration: Callable[..., Any]) -> bool:
    if not callable(definition):
        return False
    given = list(inspect.signature(definition).parameters.values())
    asked = list(inspect.signature(declaration).parameters.values())
    same = [p.name for p in given[: len(asked)]] == [p.name for p in asked]
    optional_too = all(
        g.default is not g.empty for g, a in zip(given, asked, strict=False) if a.default is not a.empty
    )
    rest = given[len(asked) :]
    return (
        same
        and optional_too
        and all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in rest)
    )
