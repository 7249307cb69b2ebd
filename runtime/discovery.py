"""Which classes the project has, under their public names.

The files are parsed, not imported: neither torch nor anything else of the project is needed here, so help is
immediate and every package may import this module. A new file in one of the packages is known at once.

Configurations, checkpoints and run folders hold public names (``SimCLR``, ``Digits``), never the module a
class lives in, so files can move without breaking old runs. Classes from elsewhere keep their dotted path.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable
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
    """What a docstring says first, on one line."""
    return " ".join((docstring or "").split("\n\n")[0].split())


@cache
def classes() -> dict[str, Found]:
    """Every class of the project by its name, in alphabetical order; one that begins with ``_`` only serves
    those below it.

    Raises:
        ValueError: two files define a class of the same name.
    """
    found: dict[str, Found] = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
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


def current_path(name: str) -> str | None:
    """Where the class of the project called ``name`` is defined, as a dotted path; None if there is none.

    Args:
        name: a public name, or a dotted path of this or an earlier version of the project.
    """
    package, short = name.partition(".")[0], name.rsplit(".", 1)[-1]
    if "." in name and package not in (*PACKAGES, "experiment"):  # runtime in versions before 0.2
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


def exported(package: str, name: str) -> type:
    """The public class ``name`` of a package, imported now: what a package's ``__getattr__`` returns.

    Raises:
        AttributeError: the package has no such class.
    """
    found = None if name.startswith("_") else classes().get(name)
    if found is None or not found.module.startswith(f"{package}."):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(found.module), name)


def with_public_names(node: Any) -> Any:
    """A copy of a configuration in which every class goes by the name to store."""
    return _with_names(node, public_name)


def plain_values(hyperparameters: Any) -> dict[str, Any]:
    """The entries that are plain values (numbers, strings, None and lists and dicts of them), classes under
    public names.

    Only these go into a checkpoint: an object there would make it unreadable for
    ``torch.load(weights_only=True)``.
    """

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return all(is_plain(v) for v in value)
        return value is None or isinstance(value, (bool, int, float, str))

    return with_public_names({k: v for k, v in dict(hyperparameters).items() if is_plain(v)})


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
    """The project's class called ``name`` (see ``current_path``), imported; None if there is none."""
    path = current_path(name)
    if path is None:
        return None
    module, _, short = path.rpartition(".")
    return getattr(importlib.import_module(module), short)


def implementations(root: str) -> list[Any]:
    """The project's public classes derived from the one called ``root``, imported, by name."""
    return [find_class(name) for name in below([root])]
