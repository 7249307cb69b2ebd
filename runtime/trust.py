"""Which classes a configuration or checkpoint may build.

Importing a module runs its code, and so does building an object, so both are restricted: ``enforce`` sets
what the parser may import, ``admit`` checks what may be built."""

from __future__ import annotations

import datetime
import enum
import importlib
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CometLogger, Logger
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision
from lightning.pytorch.profilers import Profiler, XLAProfiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datamodules.checks import check
from datamodules.errors import ConfigError
from runtime.constructors import own_words
from runtime.discovery import PACKAGES, current_path
from runtime.options import options_of, takes_function
from runtime.strict_yaml import read_yaml

#: The project's own packages, and the parts of the frameworks that hold networks, optimizers, callbacks and
#: strategies.
TRUSTED = (
    *PACKAGES,
    "torch.nn",
    "torch.optim",
    "torch.distributed.fsdp",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm",
    "lightning",
)
#: Modules in these packages that run a program when they are imported.
NEVER_IMPORTED = ("lightning.__setup__", "lightning.__main__")
#: Required base classes. Nothing else is built: no data set, no Trainer, no command line.
KINDS = (
    nn.Module,
    Optimizer,
    LRScheduler,
    LightningDataModule,
    Callback,
    Logger,
    Profiler,
    Strategy,
    Accelerator,
    Precision,
    CheckpointIO,
    ClusterEnvironment,
    LayerSync,
)
#: Classes of these kinds that have side effects, and what they do.
DENIED: dict[type, str] = {
    LambdaCallback: "calls functions passed to it",
    CometLogger: "connects to a server when it is built",
    XLAProfiler: "opens a port",
    torch.jit.ScriptModule: "runs compiled code",
    torch.fx.GraphModule: "runs generated code",
}
#: The same for packages.
DENIED_PACKAGES = {"timm.task": "loads the weights of its teacher from any file or address"}
#: Plain values, which are never called.
PLAIN = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    os.PathLike,
    enum.Enum,
    datetime.timedelta,
    torch.device,
    torch.dtype,
)

_more: list[str] = []


def trust(packages: Iterable[str]) -> None:
    """Trust these packages, too, for the rest of the process: their classes and functions may be named.
    Args:
        packages: dotted names such as ``mypackage``, ``mypackage.networks`` or
            ``lightning.pytorch.callbacks.LambdaCallback``.

    Raises:
        ConfigError: not a dotted name.
    """
    for package in packages:
        named = all(part.isidentifier() for part in package.split("."))
        check(named, "--trust_config_classes", "the name of a package such as mypackage", package)
        if package not in _more:
            _more.append(package)


def is_trusted(name: str, among: Iterable[str] | None = None) -> bool:
    """Whether the dotted ``name`` is in a trusted package (or in one of ``among``)."""
    packages = (*TRUSTED, *_more) if among is None else among
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def enforce() -> None:
    """Let the parser import only trusted classes, anywhere in a value, and read YAML as strictly as files.

    Called before every parse. It is a setting of jsonargparse for the whole process, and checks where an
    object is defined, so that ``timm.models.os.system`` does not pass as timm's.
    """
    set_loader("yaml", read_yaml, exceptions=(yaml.YAMLError,))
    set_parsing_settings(
        import_path_denylist=["*", *NEVER_IMPORTED],
        import_path_allowlist=[*TRUSTED, *_more],
        instantiate_subclass_spec_in_any=False,
    )


def denied_name(error: BaseException) -> str | None:
    """The name that ``enforce`` kept the parser from importing, if that was the error."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
    return found[1] if found else None


def build(parser: ArgumentParser, given: dict[str, Any] | list[str]) -> Namespace:
    """Build the objects that a configuration describes, if all of it is allowed.

    Args:
        parser: defines the possible options.
        given: the configuration, or the words of a command line.

    Raises:
        ConfigError: it names something that must not be built, or a constructor rejects its options.
        ArgumentError: it does not match the parser.
    """
    enforce()
    config = parser.parse_args(given) if isinstance(given, list) else parser.parse_object(given)
    admit(config)
    with own_words(config.as_dict()):
        return parser.instantiate(config)


def admit(node: Any, where: str = "") -> None:
    """Reject a parsed configuration that names anything but classes of the trusted kinds.

    Parsing imports and builds only what is trusted; afterwards every file has been read, every short name is
    a full one, and every function is an object, so nothing can be hidden in a string.

    Args:
        node: the configuration.
        where: its dotted position, for the message.

    Raises:
        ConfigError: one line with the position, the name and what to do.
    """
    if isinstance(node, (dict, Namespace)):
        items = vars(node) if isinstance(node, Namespace) else node
        if "class_path" in items:
            _admit_class(items, where)
        else:
            for key, value in items.items():
                admit(value, _at(where, key))
    elif isinstance(node, (list, tuple, set, frozenset)):
        for i, item in enumerate(node):
            admit(item, f"{where}[{i}]")
    elif not isinstance(node, PLAIN):
        _admit_object(node, where)


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _admit_class(spec: dict[str, Any], where: str) -> None:
    """Check a mapping with ``class_path``: the class and all its arguments."""
    cls = find(str(spec["class_path"]), where)
    _admit_object(cls, where)
    options = options_of(cls) if isinstance(cls, type) else {}
    given = {k: v for k, v in spec.items() if k != "class_path"}
    for group in ("init_args", "dict_kwargs"):
        inner = given.pop(group, None)
        if isinstance(inner, Namespace):
            inner = vars(inner)
        given |= inner if isinstance(inner, dict) else {group: inner}
    for key, value in given.items():
        option = options.get(str(key))
        if option is not None and (value is option.default or _path_of(value) == _path_of(option.default)):
            continue  # the class's default: not named by a file
        if option is not None and takes_function(option.annotation):
            _admit_function(value, _at(where, key))
        else:
            admit(value, _at(where, key))


def find(name: str, where: str) -> Any:
    """The object with a public name of the project or a dotted name of a trusted package.

    Raises:
        ConfigError: no such class. Names outside of the trusted packages are not looked up.
    """
    path = current_path(name) or name
    module, _, attribute = path.rpartition(".")
    if not is_trusted(path) or is_trusted(path, NEVER_IMPORTED):
        raise ConfigError(outside(name, where))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise ConfigError(f"{where}: there is no class {name!r}") from None


def _path_of(value: Any) -> str | None:
    """The dotted path of a class or function; None for anything else."""
    if not callable(value) or not hasattr(value, "__qualname__"):
        return None
    return f"{value.__module__}.{value.__qualname__}"


def _user_trusts(value: Any) -> bool:
    """Whether it is in a package that the user trusts, or was named by the user itself."""
    return is_trusted(_path_of(value) or "", _more) or any(
        is_trusted(name, TRUSTED) and find(name, "--trust_config_classes") is value for name in _more
    )


def _admit_function(value: Any, where: str) -> None:
    """Check an argument that the framework would call: only plain values, or what the user trusts."""
    if isinstance(value, (dict, Namespace)) and "class_path" in value:
        _admit_class(vars(value) if isinstance(value, Namespace) else value, where)
        value = find(str(value["class_path"]), where)
    if callable(value) and not _user_trusts(value):
        raise ConfigError(_no_function(value, where))


def _admit_object(value: Any, where: str) -> None:
    """Check that a name refers to a class of the trusted kinds, whatever the name."""
    if _user_trusts(value):
        return
    path = _path_of(value) or f"an object of {type(value).__name__}"
    if callable(value) and not is_trusted(path):
        raise ConfigError(outside(path, where))
    if not isinstance(value, type):
        raise ConfigError(_no_function(value, where))
    reason = next((text for cls, text in DENIED.items() if issubclass(value, cls)), None)
    reason = reason or next((text for p, text in DENIED_PACKAGES.items() if is_trusted(path, [p])), None)
    if reason is None and not issubclass(value, KINDS):
        reason = f"is not one of {', '.join(kind.__name__ for kind in KINDS)}"
    if reason is not None:
        raise ConfigError(f"{where}: {path!r} {reason}{_way_out(path)}")


def _way_out(name: str) -> str:
    return f". If you trust what it runs: --trust_config_classes {name}"


def _no_function(value: Any, where: str) -> str:
    path = _path_of(value) or type(value).__name__
    return (
        f"{where}: expected a plain value or a class, got {path!r}: a configuration names no functions. "
        f"Write a class in a file of evaluation/{_way_out(path).replace('. If', ', or, if')}"
    )


def outside(name: str, where: str) -> str:
    """The error message for a name outside of the trusted packages."""
    return (
        f"{where}: {name!r} is outside of the project, torch.nn, torch.optim, torchvision, timm and "
        f"lightning, and a configuration may build only their classes{_way_out(name.split('.')[0])}"
    )
