"""Strict YAML: plain values, unique keys, no self-references."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

DEEPEST = 50
LARGEST = 100_000
_TAG = "tag:yaml.org,2002:"
#: The types that JSON also has, and ``<<``, which merges mappings.
PLAIN = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
#: As in YAML 1.2: also without a decimal point (1e-3) or a sign.
FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """Rejects what does not belong in a configuration, with its line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.begun: set[str] = set()  # anchors of the enclosing values
        self.sizes: dict[int, int] = {}  # number of values in a node, including those of its aliases

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.refuse(event.anchor in self.begun, f"*{event.anchor} contains itself", event)
            return super().compose_node(parent, index)
        self.depth += 1
        self.refuse(self.depth > DEEPEST, f"nested more than {DEEPEST} deep", event)
        if event.anchor is not None:
            self.begun.add(event.anchor)
        node: Any = super().compose_node(parent, index)
        self.begun.discard(event.anchor)
        self.depth -= 1
        self.refuse(node.tag not in PLAIN, f"{node.tag.replace(_TAG, '!!')} is not a plain value", event)
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [child for item in inner for child in (item if isinstance(item, tuple) else (item,))]
        self.sizes[id(node)] = 1 + sum(self.sizes[id(child)] for child in children)
        self.refuse(self.sizes[id(node)] > LARGEST, f"more than {LARGEST} values", event)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            self.refuse(not isinstance(key, yaml.ScalarNode), "expected a word as a key", key)
            if key.tag != f"{_TAG}merge":
                first = lines.get(key.value)
                self.refuse(first is not None, f"duplicate key {key.value}, first in line {first}", key)
                lines[key.value] = key.start_mark.line + 1
        return node

    def refuse(self, wrong: bool, problem: str, place: Any) -> None:
        if wrong:
            raise ComposerError(None, None, problem, place.start_mark)


def _resolvers() -> None:
    """Read dates as text, and 1e-3 as a number."""
    table = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}float")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _Loader.yaml_implicit_resolvers = table
    _Loader.add_implicit_resolver(f"{_TAG}float", FLOAT, list("-+0123456789."))


_resolvers()


def read_yaml(text: str) -> Any:
    """The value of a YAML or JSON text.

    Raises:
        yaml.YAMLError: not YAML, values that are not plain, duplicate keys, aliases that contain themselves,
            or far too large for a configuration.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def reason(error: yaml.YAMLError) -> tuple[str, str]:
    """(position such as ``, line 3, column 5``, or empty; problem) for a message."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return place, getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
