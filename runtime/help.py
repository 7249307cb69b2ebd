"""``--model.help NAME``: the options of a class, read without importing it."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import ConfigError
from runtime.discovery import ROOT, below, classes, current_path, first_paragraph
from runtime.messages import data_sets, did_you_mean, methods, pairs

WIDTH = 108


class Option(NamedTuple):
    """An argument of a constructor: its type, default and description in the source."""

    name: str
    hint: str
    default: str | None
    text: str


def class_help(argv: list[str]) -> str | None:
    """The answer to the first ``--X.help [NAME]`` on a command line.

    None if there is no such option, or if the class cannot be found without importing it; the parser then
    answers.

    Raises:
        ConfigError: there is no such method or data set.
    """
    option, name = next(((o, v or "") for o, v in pairs(argv) if o.endswith(".help")), ("", ""))
    prefix = option.removesuffix(".help")
    known = {"--model": methods, "--data": data_sets}.get(prefix, dict)()
    if is_trainer := prefix == "--trainer":
        name = "lightning.pytorch.trainer.trainer.Trainer"
    elif known and not name:
        return "\n".join(f"{option} {name}  {text}" for name, text in known.items())
    elif known and name not in known and "." not in name:
        kind = {"--model": "method", "--data": "data set"}[prefix]
        raise ConfigError(
            f"{option}: unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    source = _class(name)
    if source is None:
        return None
    node = source.node
    summary = first_paragraph(ast.get_docstring(node)) or "of Lightning, in which training runs"
    summary = summary if summary.startswith(node.name) else f"{node.name}: {summary}"
    lines = textwrap.wrap(f"{prefix} {summary}", WIDTH)
    if prefix == "--data" and (found := layouts(name)):
        lines += ["", "files, by --data.root DIR (splits: docs/data/splits.md):", *(f"  {x}" for x in found)]
    for title, options in _by_class(source):
        lines += ["", title, *(line for o in options for line in _lines(o, prefix, 1 if is_trainer else 5))]
    return "\n".join(lines)


class Source(NamedTuple):
    """The source of a class, and its module."""

    node: ast.ClassDef
    module: str


def _class(name: str, module: str = "") -> Source | None:
    """The source of a class by its public or dotted name, or its name in ``module``."""
    places = [(current_path(name) or name).rpartition(".")[::2], (module, name)]
    if name in classes():
        places.append((classes()[name].module, name))  # also one that begins with _
    for place, short in places:
        path = _file(place)
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path is not None else []:
            if isinstance(node, ast.ClassDef) and node.name == short:
                return Source(node, place)
    return None


def _file(module: str) -> Path | None:
    """The file of a module of the project or of an installed package, found without importing anything."""
    package, *rest = module.split(".")
    if not package:
        return None
    spec = importlib.util.find_spec(package)
    installed = (spec.submodule_search_locations if spec else None) or []
    folders = [ROOT / package, Path(package), *map(Path, installed)]  # Path(package): in the current folder
    files = [folder.joinpath(*rest) for folder in folders]
    candidates = [p for file in files for p in (file.with_suffix(".py"), file / "__init__.py")]
    if spec is not None and not rest and spec.origin:
        candidates.append(Path(spec.origin))
    return next((path for path in candidates if path.is_file() and path.suffix == ".py"), None)


def _by_class(source: Source | None) -> Iterator[tuple[str, list[Option]]]:
    """The options of a class, then those it passes on to its base class, and so on."""
    seen: set[str] = set()
    title = "its own options:"
    while source is not None:
        node = source.node
        arguments = _arguments(node)
        options = [o for o in _options(node, arguments) if o.name not in seen] if arguments else []
        if options:
            yield title, options
        seen |= {option.name for option in options}
        if arguments is not None and arguments.kwarg is None:
            return
        source = _base(source)
        if source is not None:
            title = f"options of every {source.node.name.lstrip('_')}:"


def _base(source: Source) -> Source | None:
    """The first base class whose source is found."""
    names = [ast.unparse(base).partition("[")[0] for base in source.node.bases]
    found = (_class(name, source.module) for name in names)
    return next((base for base in found if base is not None), None)


def layouts(name: str) -> list[str]:
    """The lines below ``Layouts::`` in the docstring of a data set, or else of its nearest base class.

    For each layout of files that it reads: its name, with the options that it needs, and below it an example.
    """
    source = _class(name)
    while source is not None:
        docstring = ast.get_docstring(source.node) or ""
        if found := re.search(r"^Layouts::\n\n((?: {4}.*(?:\n|\Z))+)", docstring, flags=re.MULTILINE):
            return textwrap.dedent(found[1]).splitlines()
        source = _base(source)
    return []


def _arguments(node: ast.ClassDef) -> ast.arguments | None:
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    return functions[0].args if functions else None


def _options(node: ast.ClassDef, arguments: ast.arguments) -> Iterator[Option]:
    init = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    texts = {**_texts(ast.get_docstring(node)), **_texts(ast.get_docstring(init))}
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [None] * (len(positional) - len(arguments.defaults))
    names = [*positional, *arguments.kwonlyargs][1:]  # without self
    defaults = [*required, *arguments.defaults, *arguments.kw_defaults][1:]
    for argument, default in zip(names, defaults, strict=True):
        hint = _type(argument.annotation) if argument.annotation else "any value"
        shown = ast.unparse(default) if default is not None else None
        yield Option(argument.arg, hint, shown, texts.get(argument.arg, ""))


def _type(node: ast.expr) -> str:
    """An annotation in modern notation: without modules, unions with ``|``."""
    if isinstance(node, ast.Subscript) and (kind := _type(node.value)) in ("Union", "Optional"):
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return " | ".join([*map(_type, members), *(["None"] if kind == "Optional" else [])])
    if isinstance(node, ast.BinOp):
        return f"{_type(node.left)} | {_type(node.right)}"
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def _texts(docstring: str | None) -> dict[str, str]:
    """The entries of a docstring's ``Args`` section, each on one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring or "", flags=re.DOTALL | re.MULTILINE)
    entries = re.split(
        r"^ {4}(?=[\w`*]+(?:, [\w`*]+)*(?: \(.*\))?:)", section[1] if section else "", flags=re.MULTILINE
    )
    found = {}
    for entry in entries:
        names, _, text = entry.partition(":")
        for name in re.findall(r"\w+", names):
            plain = re.sub(r":\w+:`~?(?:\w+\.)*([^`]+)`", r"\1", first_paragraph(textwrap.dedent(text)))
            found[name] = plain.replace("``", "")
    return found


def _lines(option: Option, prefix: str, longest: int) -> Iterator[str]:
    """Name, type and default; then the description, and the classes to choose from."""
    default = "required" if option.default is None else f"default {option.default}"
    yield f"  {prefix}.{option.name}  {option.hint}, {default}"
    names = below(re.findall(r"\b[A-Z]\w+", option.hint))
    text = option.text
    if names:
        text = f"{text.rstrip('.')}; one of {', '.join(names)}; options: {prefix}.{option.name}.help NAME"
    indent = " " * 6
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=longest)
