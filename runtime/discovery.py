"""Finds the project's classes by their public names.

The files are read, not imported: this module needs neither torch nor the rest of the project, so help is
immediate and every package may import it. A new file in one of the packages is discovered automatically.

Configurations, checkpoints and run folders contain public names (``SimCLR``, ``Digits``), never module paths,
so files can move without breaking old runs. Classes from elsewhere keep their dotted path.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datamodules", "sslmodules", "evaluation", "runtime")

#: A function at the top level of a file, or a class with its bases and docstring. Searching for them is
#: faster than parsing all files, which every run would wait for.
DEFINITION = re.compile(
    r'^def (\w+)|^class (\w+)(?:\(([^)]*)\))?:.*(?:\n    r?"""((?s:.*?))""")?', re.MULTILINE
)

#: Classes and options in runs of earlier versions, and their current names.
RENAMED = {"CentreHole": "CenterHole", "RepresentationHealth": "CollapseMetrics"}
RENAMED_OPTIONS = {
    "centre_momentum": "center_momentum",
    "labelled": "labeled",
    "normalise_patches": "normalize_patches",
    "normalise_target": "normalize_target",
}
#: The same for entries of a state dict.
RENAMED_STATE = {"centre": "center"}


class Found(NamedTuple):
    """A class of the project: its module, its bases, and the first paragraph of its docstring."""

    module: str
    bases: tuple[str, ...]
    summary: str

    @property
    def is_abstract(self) -> bool:
        """Whether it is marked as a base class: ``ABC`` is among its bases."""
        return "ABC" in self.bases


def first_paragraph(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


class Defined(NamedTuple):
    """A class or function of a file; ``bases`` is None for a function."""

    name: str
    bases: tuple[str, ...] | None
    summary: str


@cache
def _definitions(path: Path) -> list[Defined]:
    """The classes and functions at the top level of a file. It is read once, whoever asks."""
    found = []
    for function, name, bases, docstring in DEFINITION.findall(path.read_text(encoding="utf-8")):
        if function:
            found.append(Defined(function, None, ""))
            continue
        named = re.sub(r"\[[^]]*\]", "", bases).split(",")
        names = tuple(base.strip().rsplit(".", 1)[-1] for base in named if base.strip() and "=" not in base)
        found.append(Defined(name, names, first_paragraph(cleandoc(docstring))))
    return found


def _defined(*packages: str) -> Iterator[tuple[str, Defined]]:
    """Every class and function of these packages, with the name of its module."""
    for path in sorted(p for name in packages for p in (ROOT / name.replace(".", "/")).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for definition in _definitions(path):
            yield module, definition


@cache
def classes() -> dict[str, Found]:
    """All classes of the project by name, in alphabetical order, including private base classes.
    Raises:
        ValueError: two files define a class of the same name.
    """
    found: dict[str, Found] = {}
    for module, (name, bases, summary) in _defined(*PACKAGES):
        if bases is None:
            continue
        if name in found and not name.startswith("_"):
            raise ValueError(
                f"two classes are named {name}, in {found[name].module} and {module}: rename one"
            )
        found[name] = Found(module, bases, summary)
    return dict(sorted(found.items()))


def below(roots: Iterable[str]) -> list[str]:
    """Names of the public classes derived from one of ``roots``, directly or not, that are not abstract."""
    known = set(roots)
    while grown := {name for name, cls in classes().items() if name not in known and known & set(cls.bases)}:
        known |= grown
    return [
        name
        for name, cls in classes().items()
        if name in known - set(roots) and not name.startswith("_") and not cls.is_abstract
    ]


def literals(name: str) -> dict[str, Any]:
    """The plain-value attributes in the source of a class of the project and of its bases."""
    found: dict[str, Any] = {}
    if name not in classes():
        return found
    for base in reversed(classes()[name].bases):
        found |= literals(base)
    path = ROOT / f"{classes()[name].module.replace('.', '/')}.py"
    [node] = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    for line in node.body:
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or line.value is None:
            continue
        target = line.targets[0] if isinstance(line, ast.Assign) else line.target
        with suppress(ValueError):  # not a plain value
            found[ast.unparse(target)] = ast.literal_eval(line.value)
    return found


def current_path(name: str) -> str | None:
    """The dotted path of the project's class ``name``, or None.

    Args:
        name: a public name, or a dotted path of this or an earlier version of the project.
    """
    package, short = name.partition(".")[0], name.rsplit(".", 1)[-1]
    if "." in name and package not in (*PACKAGES, "experiment"):  # the former name of runtime
        return None
    short = RENAMED.get(short, short)
    found = None if short.startswith("_") else classes().get(short)
    return f"{found.module}.{short}" if found else None


def public_name(path: str) -> str:
    """The name to store for a class: the public name for the project's, the unchanged path for any other."""
    current = current_path(path)
    return current.rsplit(".", 1)[-1] if current else path


@cache
def exports(package: str) -> dict[str, str]:
    """Public classes and functions of a package by name, with their modules.

    Names used in several files, or that are also a file of the package, are left out.
    """
    found: dict[str, list[str]] = {}
    files = {path.stem for path in (ROOT / package.replace(".", "/")).iterdir()}
    for module, definition in _defined(package):
        if not definition.name.startswith("_"):
            found.setdefault(definition.name, []).append(module)
    return {n: modules[0] for n, modules in sorted(found.items()) if len(modules) == 1 and n not in files}


def exported(package: str, name: str) -> Any:
    """Import the public class or function ``name`` of a package, for its ``__getattr__``.

    Raises:
        AttributeError: the package has no such name.
    """
    if name == "__all__":  # of ``from package import *``
        return list(exports(package))
    if name not in exports(package):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(exports(package)[name]), name)


def with_public_names(node: Any) -> Any:
    """A copy of a configuration with every class under the name to store."""
    return _with_names(node, public_name)


def with_current_paths(node: Any) -> Any:
    """A copy of a configuration with every class of the project under its current dotted path."""
    return _with_names(node, lambda name: current_path(name) or name)


def _with_names(node: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        keys = ("class_path", "_class_path")
        renamed = {RENAMED_OPTIONS.get(k, k): v for k, v in node.items()}
        return {
            k: rename(v) if k in keys and isinstance(v, str) else _with_names(v, rename)
            for k, v in renamed.items()
        }
    return type(node)(_with_names(item, rename) for item in node) if isinstance(node, (list, tuple)) else node


def find_class(name: str) -> type | None:
    """Import the project's class ``name`` (see ``current_path``); None if there is none."""
    path = current_path(name)
    if path is None:
        return None
    module, _, short = path.rpartition(".")
    return getattr(importlib.import_module(module), short)


def implementations(root: str) -> list[Any]:
    """Import the project's public classes derived from the class ``root``; sorted by name."""
    return [find_class(name) for name in below([root])]
