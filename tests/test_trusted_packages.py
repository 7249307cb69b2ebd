"""Every public class and function of the trusted packages: which a configuration may build, and why building
one of them runs, fetches and unpickles nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from datamodules.errors import ConfigError
from runtime import inside
from runtime.options import options_of
from runtime.trust import DENIED, KINDS, NEVER_IMPORTED, TRUSTED, _admit_object, is_trusted
from sslmodules.networks import TimmEncoder

#: Calls that run, fetch, unpickle or write, by the last part of their name.
DANGEROUS = {
    *("eval", "exec", "compile", "system", "popen", "Popen", "import_module", "__import__", "import_object"),
    *(
        "load",
        "loads",
        "load_checkpoint",
        "load_state_dict_from_url",
        "load_state_dict_from_hf",
        "create_model",
    ),
    *("load_pretrained", "hf_hub_download", "snapshot_download", "urlopen", "urlretrieve", "connect"),
    *("open", "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rmtree", "rename"),
    *("start_server", "start"),
}
#: Calls of such a name that a constructor makes, and why they are harmless.
HARMLESS = {
    "re.compile": "a pattern",
    "eval": "Module.eval: no dropout",
    "torch.compile": "its own function",
    "json.load": "DeepSpeed's options, a file of plain values",
    "importlib.import_module": "torch.nn.functional, named in torch",
}


@functools.cache
def modules() -> tuple[Any, ...]:
    """Every module of the trusted frameworks that can be imported here."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in TRUSTED:
            root = importlib.import_module(package)
            found.append(root)
            for info in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda name: None):
                if is_trusted(info.name, NEVER_IMPORTED):
                    continue
                try:
                    found.append(importlib.import_module(info.name))
                except ImportError:  # of a package that is not installed
                    continue
    return tuple(found)


@functools.cache
def members() -> tuple[Any, ...]:
    """Every class and function that one of these modules shows, wherever it comes from."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and (isinstance(value, type) or inspect.isroutine(value)):
                found[id(value)] = value
    return tuple(found.values())


def passes(value: Any) -> bool:
    try:
        _admit_object(value, "x")
    except ConfigError:
        return False
    return True


def test_only_classes_of_the_kinds_pass() -> None:
    assert len(members()) > 4000  # with torch 2.14, timm 1.0.31, lightning 2.6
    admitted = [value for value in members() if passes(value)]
    assert not [value for value in admitted if not isinstance(value, type)]
    kinds = Counter(next(kind.__name__ for kind in KINDS if issubclass(cls, kind)) for cls in admitted)
    assert set(kinds) == {kind.__name__ for kind in KINDS}
    assert kinds["Module"] > 1000 and kinds["Callback"] > 20 and kinds["Optimizer"] > 40
    foreign = [cls for cls in admitted if not is_trusted(f"{cls.__module__}.")]
    assert foreign == []
    assert not [cls for cls in admitted if issubclass(cls, tuple(DENIED))]


def calls(function: Any) -> Iterator[str]:
    """The names that a function calls, as they are written."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


calls = functools.cache(lambda function, calls=calls: tuple(calls(function)))  # type: ignore[assignment]


def called(name: str, function: Any, cls: type) -> Any:
    """What the name of a call stands for in a method of ``cls``; None if that is known at run time only."""
    first, *rest = name.split(".")
    if first == "self" and len(rest) == 1:
        return inspect.getattr_static(cls, rest[0], None)
    value = getattr(inspect.unwrap(function), "__globals__", {}).get(first)
    for part in rest:
        value = getattr(value, part, None)
    return value


def dangers(function: Any, cls: type, seen: set[Any]) -> Iterator[str]:
    """Dangerous calls of a function and of what it calls in the trusted packages."""
    function = inspect.unwrap(function)
    if not inspect.isfunction(function) or (function, cls) in seen:
        return
    seen.add((function, cls))
    for name in calls(function):
        harmless = name in HARMLESS or (name.endswith(".eval") and "eval" in HARMLESS)
        if name.rsplit(".", 1)[-1] in DANGEROUS and not harmless:
            yield f"{cls.__name__}: {function.__qualname__} calls {name}"
        value = called(name, function, cls) if all(p.isidentifier() for p in name.split(".")) else None
        if isinstance(value, type) and is_trusted(value.__module__):
            yield from constructor(value, seen)
        elif inspect.isfunction(value) and is_trusted(value.__module__):
            yield from dangers(value, cls, seen)


def constructor(cls: type, seen: set[Any]) -> Iterator[str]:
    for base in cls.__mro__:
        for name in ("__init__", "__new__", "__post_init__"):
            if name in vars(base):
                yield from dangers(vars(base)[name], cls, seen)


#: What is left, looked at one by one.
LOOKED_AT = {
    "DeepSpeedStrategy: DeepSpeedStrategy._load_config calls open": "reads JSON",
    "TimmEncoder: TimmEncoder.__init__ calls timm.create_model": "a name of timm's own list, see below",
}


def test_no_constructor_runs_fetches_or_unpickles() -> None:
    built = [cls for cls in members() if passes(cls) and cls is not TimmEncoder]
    found = {line for cls in [*built, TimmEncoder] for line in constructor(cls, set())}
    inside = {line for line in found if line.startswith("TimmEncoder: ") and line not in LOOKED_AT}
    assert found - inside == set(LOOKED_AT)


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:a/b",
        "hf_hub:a/b",
        "local-dir:/tmp",
        "timm:resnet18",
        "http://h/x",
        "a/b",
        "hf-hub:timm/resnet18",
    ],
)
def test_a_timm_encoder_takes_names_of_timms_list_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would be addresses of weights."""

    def built(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("timm was asked")

    monkeypatch.setattr(timm, "create_model", built)
    with pytest.raises(ValueError, match="name must be a timm model"):
        TimmEncoder(name)


def test_the_search_finds_what_is_denied() -> None:
    task = pytest.importorskip("timm.task.distillation", reason="timm is too old to have it")
    lines = set(constructor(task.DistillationTeacher, set()))
    assert any("calls torch.load" in line for line in lines), lines


@pytest.mark.parametrize("cls", [nn.Linear, torch.optim.AdamW])
def test_what_is_built_every_day_passes(cls: type) -> None:
    assert passes(cls)


#: Options of loggers, callbacks, profilers, strategies and plugins that only sound like a place to write.
NOT_WRITTEN = {"config_filename", "multifile", "save_to_log_dir", "add_file_policy"}


def test_every_option_that_names_a_place_to_write_is_known() -> None:
    """``runtime/inside.py`` keeps these in the run folder."""
    no_writers = (nn.Module, torch.optim.Optimizer, LRScheduler, LightningDataModule)
    writers = [cls for cls in members() if passes(cls) and not issubclass(cls, no_writers)]
    place = re.compile(r"dir|path|file|folder|root|uri|location")
    found = {name for cls in writers for name in options_of(cls) if place.search(name)}
    assert found - NOT_WRITTEN == {*inside.FOLDERS, *inside.ADDRESSES, *inside.PARTS} & found
