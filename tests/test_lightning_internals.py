"""Private attributes of Lightning's objects are touched in one file only."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.images.arrays import Digits
from runtime import lightning_internals
from runtime.discovery import PACKAGES, ROOT, below, find_class

HOME = ROOT / "runtime" / "lightning_internals.py"
FILES = [ROOT / "train.py", ROOT / "eval.py", *(p for x in PACKAGES for p in (ROOT / x).rglob("*.py"))]
KINDS = (
    "SSLModule",
    "SSLDataModule",
    "Callback",
    "CSVLogger",
    "LightningCLI",
    "TorchCheckpointIO",
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST, of_self: bool) -> set[str]:
    """Private attributes that are read or set: of ``self`` and ``cls``, or of anything else."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
        if of_self == (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def defined(tree: ast.AST) -> set[str]:
    """Functions and methods, class attributes, and what is set on ``self``."""
    names = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) in ("self", "cls"):
                    names.add(part.attr)
                elif isinstance(part, ast.Name):
                    names.add(part.id)
    return {name for name in names if is_private(name)}


@cache
def of_lightning() -> frozenset[str]:
    """Private attributes that Lightning's own source defines on its objects."""
    folder = Path(inspect.getfile(lightning)).parent
    return frozenset(
        name
        for part in ("pytorch", "fabric")
        for path in (folder / part).rglob("*.py")
        for name in defined(ast.parse(path.read_text(encoding="utf-8")))
    ) - set(vars(torch.nn.Module()))


def touched(source: str, of_project: set[str]) -> set[str]:
    """Private names of Lightning that a file of the project touches."""
    tree = ast.parse(source)
    others = private_names(tree, of_self=False) - of_project
    own = private_names(tree, of_self=True) - defined(tree) - of_project
    return (others | own) & of_lightning()


@pytest.fixture(scope="module")
def of_project() -> set[str]:
    return {name for path in FILES for name in defined(ast.parse(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_one_file_touches_private_attributes(path: Path, of_project: set[str]) -> None:
    if path != HOME:
        assert touched(path.read_text(encoding="utf-8"), of_project) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_no_class_overrides_a_private_attribute(kind: str) -> None:
    """A class of the project that sets or defines what a class of Lightning above it keeps for itself."""
    for name in [kind, *below([kind])]:
        cls = find_class(name)
        if cls is None or cls.__module__ == lightning_internals.__name__:
            continue
        above = [c for c in cls.__mro__ if c.__module__.startswith("lightning.")]
        theirs = {n for c in above for n in (*vars(c), *defined(ast.parse(inspect.getsource(c).strip())))}
        own = {n for n in (*vars(cls), *defined(ast.parse(inspect.getsource(cls)))) if is_private(n)}
        assert own & theirs <= {"_abc_impl"}, name


def test_the_test_sees_what_it_should(of_project: set[str]) -> None:
    source = "def f(self, trainer): trainer.fit_loop._should_accumulate(); self._kwargs['a'] = self._trainer"
    assert touched(source, of_project) == {"_should_accumulate", "_kwargs", "_trainer"}
    assert touched("class A:\n def f(self): self._mine = self._mine + own._files", of_project) == set()


def test_the_names_exist_in_this_version() -> None:
    """Lightning would not complain of an attribute that it no longer reads."""
    source = HOME.read_text(encoding="utf-8")
    names = private_names(ast.parse(source), of_self=False)
    assert len(names) >= 7 and names <= of_lightning()
    assert {"_set_hparams"} <= set(vars(lightning.pytorch.core.mixins.HyperparametersMixin))
    assert TensorBoardLogger("x", purge_step=3)._kwargs == {"purge_step": 3}


def test_a_module_without_a_trainer() -> None:
    assert lightning_internals.trainer_of(Digits()) is None
    assert lightning_internals.trainer_of(lightning.LightningModule()) is None
