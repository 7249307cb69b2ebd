"""Which classes a configuration or a checkpoint may name: building a class runs its code, and so does
importing its module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jsonargparse import set_parsing_settings

from datamodules.checks import check

#: The project's own packages, and the parts of the frameworks that hold networks, optimizers, callbacks and
#: strategies.
TRUSTED = (
    "sslmodules",
    "datamodules",
    "evaluation",
    "runtime",
    "torch.nn",
    "torch.optim",
    "torch.distributed.fsdp",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm",
    "lightning",
)
_more: list[str] = []


def trust(packages: Iterable[str]) -> None:
    """Also trust these packages for the rest of the process: their classes and functions may be named from
    now on.

    Args:
        packages: dotted names such as ``mypackage`` or ``mypackage.networks``.

    Raises:
        ValueError: a name that is no dotted name.
    """
    for package in packages:
        named = all(part.isidentifier() for part in package.split("."))
        check(named, "--trust_config_classes", "the name of a package such as mypackage", package)
        if package not in _more:
            _more.append(package)


def is_trusted(name: str, among: Iterable[str] | None = None) -> bool:
    """Does the dotted ``name`` lie in a trusted package (or in one of ``among``)?"""
    packages = (*TRUSTED, *_more) if among is None else among
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def may_be_called(name: str) -> bool:
    """No configuration names a function of the frameworks: only those of packages that the user added are
    called.
    """
    return is_trusted(name, _more)


def enforce() -> None:
    """Let the parser import what is trusted and nothing else, wherever in a value the name of a class stands.

    Called before every parse. The setting is jsonargparse's and holds for the whole process. It looks at
    where an object is defined, so that ``timm.models.os.system`` does not pass for timm's.
    """
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *_more],
        instantiate_subclass_spec_in_any=False,
    )


def denied_name(error: BaseException) -> str | None:
    """The name that ``enforce`` kept the parser from importing, if that is what went wrong."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
    return found[1] if found else None
