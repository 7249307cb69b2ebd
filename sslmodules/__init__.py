"""Self-supervised methods, one per file. A new file is discovered automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.discovery import below, exported, exports, find_class

if TYPE_CHECKING:
    from sslmodules.base import SSLModule


def methods() -> dict[str, type[SSLModule]]:
    """Every method of the project, by class name."""
    return {name: find_class(name) for name in below(["SSLModule"])}  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``from sslmodules import SimCLR, load_module``."""
    if name == "load_module":
        from runtime.checkpoints import load_module

        return load_module
    return exported(__name__, name)


def __dir__() -> list[str]:
    return [*exports(__name__), "load_module"]
