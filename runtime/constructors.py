"""Shows errors that constructors raise during parsing without the parser's wrapping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules.errors import ConfigError


@contextmanager
def own_words(config: dict[str, Any]) -> Iterator[None]:
    """Remove what the parser wraps around a constructor's exception.

    Args:
        config: the classes to build and their options: ``{"model": {"class_path": ...}, ...}``.

    Raises:
        ConfigError: a constructor rejected an argument; the message begins with the option.
        Exception: any other exception of a constructor, with its own traceback.
    """
    try:
        yield
    except Exception as error:
        reason = _of_the_constructor(error)
        missing = isinstance(reason, ModuleNotFoundError) and reason.name is None  # "Requirement 'wandb' ..."
        if missing or isinstance(reason, (ConfigError, MisconfigurationException)):
            raise ConfigError(with_option(reason, config)) from reason
        if reason is error:
            raise
        raise reason from None


def _of_the_constructor(error: BaseException) -> BaseException:
    """The first exception in the chain that the parser did not raise itself; ``error`` if there is none."""
    link: BaseException | None = error
    while link is not None:
        if not str(_frames(link)[-1].f_globals["__name__"]).startswith("jsonargparse"):
            return link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return error


def with_option(error: BaseException, config: dict[str, Any]) -> str:
    """The message, beginning with its option: ``model.temperature must be positive, got -1``.

    The class is the innermost one under construction that ``config`` names; the option is the first word of
    the message, if the class has an option of that name.
    """
    text = str(error)
    word = text.partition(" ")[0].partition(".")[0].rstrip(":")
    nodes = list(_nodes(config))
    for frame in reversed(_frames(error)):
        built = frame.f_locals.get("self")
        same = [(path, node) for path, node in nodes if _name(node) == type(built).__name__]
        if frame.f_code.co_name != "__init__" or not same:
            continue
        given = frame.f_locals.get(word)
        path, node = next((s for s in same if s[1].get("init_args", {}).get(word) == given), same[0])
        return f"{path}.{text}" if word in node.get("init_args", {}) else f"{path}: {text}"
    return text


def _frames(error: BaseException) -> list[FrameType]:
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _nodes(config: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(option, dict with a class_path) for every class in a configuration."""
    if isinstance(config, list):
        for item in config:
            yield from _nodes(item, path)
    elif isinstance(config, dict):
        if "class_path" in config:
            yield path, config
        for key, value in config.items():
            inner = path if key == "init_args" else f"{path}.{key}".lstrip(".")
            yield from _nodes(value, inner)


def _name(node: dict[str, Any]) -> str:
    return str(node["class_path"]).rpartition(".")[2]
