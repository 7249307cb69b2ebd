"""Finds the project's classes by their public names.

The files are parsed, not imported: neither torch nor anything else of the project is needed here, so help is
immediate and every package may import this module. A new file in one of the packages is known at once.

Configurations, checkpoints and run folders hold public names (``SimCLR``, ``Digits``), never the module a
class lives in, so files can move without breaking old runs. Classes from elsewhere keep their dotted path.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datamodules", "sslmodules", "evaluation", "runtime")

#: Classes and options of earlier versions that old runs may hold, and what they are called now.
RENAMED = {"CentreHole": "CenterHole", "RepresentationHealth": "CollapseMetrics"}
RENAMED_OPTIONS = {
    "centre_momentum": "center_momentum",
    "labelled": "labeled",
    "normalise_patches": "normalize_patches",
    "normalise_target": "normalize_target",
}
#: Likewise for entries of a state dict.
RENAMED_STATE = {"centre": "center"}


class Found(NamedTuple):
    """A public class of the project: where it is defined, what it is derived from, and what its docstring
    begins with.
    """

    module: str
    bases: tuple[str, ...]
    summary: str

    @property
    def is_abstract(self) -> bool:
        """Marked as a base class, not to be built itself: ``ABC`` is among its bases."""
        return "ABC" in self.bases


def first_paragraph(docstring: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


def _parsed(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Every file of these packages: the name of its module and its syntax tree."""
    for path in sorted(p for name in packages for p in (ROOT / name.replace(".", "/")).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield module, ast.parse(path.read_text(encoding="utf-8"))


@cache
def classes() -> dict[str, Found]:
    """Every class of the project by its name, in alphabetical order; one that begins with ``_`` only serves
    those below it.

    Raises:
        ValueError: two files define a class of the same name.
    """
    found: dict[str, Found] = {}
    for module, tree in _parsed(*PACKAGES):
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            if node.name in found and not node.name.startswith("_"):
                raise ValueError(
                    f"two classes are called {node.name}: in {found[node.name].module} and {module}; "
                    "rename one"
                )
            bases = tuple(ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in node.bases)
            found[node.name] = Found(module, bases, first_paragraph(ast.get_docstring(node)))
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
    """The attributes of a class of the project that are written as plain values, with those of its bases."""
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
    """Where the class of the project called ``name`` is defined, as a dotted path, or None.

    Args:
        name: a public name, or a dotted path of this or an earlier version of the project.
    """
    package, short = name.partition(".")[0], name.rsplit(".", 1)[-1]
    if "." in name and package not in (*PACKAGES, "experiment"):  # what runtime was called
        return None
    short = RENAMED.get(short, short)
    found = None if short.startswith("_") else classes().get(short)
    return f"{found.module}.{short}" if found else None


def public_name(path: str) -> str:
    """The name to store for a class: the public one for the project's, the dotted path as it is for any
    other.
    """
    current = current_path(path)
    return current.rsplit(".", 1)[-1] if current else path


@cache
def exports(package: str) -> dict[str, str]:
    """Public classes and functions of a package by name, each with its module. Left out: a name that several
    files use, or that is also a file of the package.
    """
    found: dict[str, list[str]] = {}
    files = {path.stem for path in (ROOT / package.replace(".", "/")).iterdir()}
    for module, tree in _parsed(package):
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return {n: modules[0] for n, modules in sorted(found.items()) if len(modules) == 1 and n not in files}


def exported(package: str, name: str) -> Any:
    """The public class or function ``name`` of a package, imported now: what its ``__getattr__`` returns.

    Raises:
        AttributeError: the package has none of this name.
    """
    if name == "__all__":  # of ``from package import *``
        return list(exports(package))
    if name not in exports(package):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(exports(package)[name]), name)


def with_public_names(node: Any) -> Any:
    """A copy of a configuration in which every class goes by the name to store."""
    return _with_names(node, public_name)


def with_current_paths(node: Any) -> Any:
    """A copy of a configuration in which every class of the project goes by the dotted path that can be
    imported now.
    """
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
    """The project's class called ``name`` (see ``current_path``), imported, or None."""
    path = current_path(name)
    if path is None:
        return None
    module, _, short = path.rpartition(".")
    return getattr(importlib.import_module(module), short)


def implementations(root: str) -> list[Any]:
    """The project's public classes derived from the one called ``root``, imported, by name."""
    return [find_class(name) for name in below([root])]
