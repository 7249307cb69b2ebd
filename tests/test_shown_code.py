"""Code that documents show runs: CONTRIBUTING.md's files, and the examples in docstrings."""

from __future__ import annotations

import ast
import builtins
import doctest
import gc
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from runtime.messages import ROOT
from tests.documents import PROJECT, SHOWN, commands

# ---- CONTRIBUTING.md: its method and its data set ----------------------------------------------------------


@pytest.fixture
def shown() -> Iterator[dict[str, ModuleType]]:
    """CONTRIBUTING.md's Python files as modules of their own. Their classes are gone at the end: one that
    stays behind would be one method more for every later test.
    """
    modules = {
        file: ModuleType(f"{Path(file).parent}.{Path(file).stem}") for file in SHOWN if file.endswith(".py")
    }
    for file, module in modules.items():
        sys.modules[module.__name__] = module  # get_type_hints and Lightning look a class's module up there
        exec(compile(SHOWN[file], file, "exec"), vars(module))
    classes = [weakref.ref(c) for m in modules.values() for c in own_classes(m)]
    assert classes
    yield modules
    for module in modules.values():
        del sys.modules[module.__name__]
    modules.clear()
    del module
    gc.collect()
    assert [c() for c in classes if c() is not None] == []


def own_classes(module: ModuleType) -> list[type]:
    return [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python train.py ...`` in a copy of the project. In this process the parser would keep the class for
    ever.
    """
    unset = ("SSL_RUN_DIR", "PL_GLOBAL_SEED", "PYTHONPATH")
    environment = {**{k: v for k, v in os.environ.items() if k not in unset}, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_shown_method_trains_and_is_evaluated(tmp_path: Path) -> None:
    """The files are added to a copy of the project, nothing else is edited, and the command that is shown is
    run.
    """
    for path in [ROOT / "train.py", ROOT / "configs" / "default.yaml", *PROJECT]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for file, code in SHOWN.items():
        assert not (ROOT / file).exists(), f"CONTRIBUTING.md shows how to add {file}, which is there already"
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(code, encoding="utf-8")
    [config] = (tmp_path / "configs").glob("*/*.yaml")
    [command] = {c for c in commands(ROOT / "CONTRIBUTING.md") if config.name in c}
    method = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["class_path"]
    assert len(config.read_text(encoding="utf-8").splitlines()) <= 30

    listed = train(tmp_path, "--help")
    assert listed.returncode == 0 and method in listed.stdout and config.stem in listed.stdout
    quick = [
        "--run_dir=run",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    done = train(tmp_path, *shlex.split(command), *quick)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["method"] == method
    assert 0.5 < results["results"]["pretrained"]["linear_top1"] <= 1
    assert 0.5 < results["results"]["raw_input"]["mean_top1"] <= 1 and results["failed"] == {}
    assert "nearest mean" in done.stdout


@pytest.mark.parametrize("file", [f for f in SHOWN if f.endswith(".py")])
def test_a_shown_file_keeps_to_the_line_length(file: str) -> None:
    """The linter does not look into Markdown, and whoever copies the file should not have to mend it."""
    assert max(map(len, SHOWN[file].splitlines())) <= 120


def test_the_shown_method_rotates(shown: dict[str, ModuleType]) -> None:
    [module] = [m for file, m in shown.items() if file.startswith("sslmodules/")]
    x = torch.arange(2 * 9.0).view(2, 1, 3, 3)
    rotated, label = module.four_rotations(x)
    assert label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # a quarter turn to the left by hand: the last column becomes the first row
    assert rotated[2, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert torch.equal(rotated[4], x[0].flip(1, 2))
    with pytest.raises(ValueError, match="square"):
        module.four_rotations(torch.zeros(2, 1, 3, 4))


def test_the_shown_data_set_reads_its_files(shown: dict[str, ModuleType], tmp_path: Path) -> None:
    [module] = [m for file, m in shown.items() if file.startswith("datamodules/")]
    [cls] = own_classes(module)
    with pytest.raises(OSError, match=r"train\.npz"):
        cls(root=str(tmp_path)).dataset("train")
    for part, n in (("train", 60), ("test", 30)):
        images = np.random.default_rng(0).integers(0, 256, (n, 28, 28, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(n) % 3)
    data = cls(root=str(tmp_path))
    assert [len(data.dataset(split)) for split in ("train", "bank", "val", "test")] == [54, 54, 6, 30]
    batch = data.transform(data.dataset("train").__getitems__([0, 1]), None)
    assert batch["input"].shape == (2, 1, 28, 28)
    synthetic = cls(root="nowhere", synthetic=True)
    assert synthetic.dataset("train").__getitems__([0])["input"].shape == (1, 1, 28, 28)


# ---- examples in docstrings --------------------------------------------------------------------------------


def docstring_examples() -> list[tuple[str, str, str]]:
    """(module, place, docstring) of every docstring that holds ``>>>`` or a block after ``Example::``."""
    found = []
    for path in PROJECT:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if ">>>" in text or re.search(r"^Examples?::$", text, flags=re.MULTILINE):
                    found.append((module, getattr(node, "name", "module"), text))
    return found


def missing_files(code: str) -> list[str]:
    """Strings of the code that look like the path of a file (a folder and a suffix) and name none."""
    strings = [
        n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    return [s for s in strings if re.fullmatch(r"[\w.~-]*(/[\w.-]+)+\.\w+", s) and not Path(s).exists()]


def functions_called(code: str) -> set[str]:
    calls = [n.func for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    return {f.id for f in calls if isinstance(f, ast.Name)}


EXAMPLES = docstring_examples()


@pytest.mark.parametrize(("module", "place", "text"), EXAMPLES, ids=[f"{m}.{p}" for m, p, _ in EXAMPLES])
def test_docstring_example(
    module: str, place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples run among their module's names. Not run: a block that reads a file which a run would have
    made.
    """
    monkeypatch.chdir(tmp_path)
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(text, dict(names), f"{module}.{place}", None, None)
    output: list[str] = []
    with torch.random.fork_rng(devices=[]):
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
        assert not output, "".join(output)
        left_out = []
        for block in re.findall(r"^Examples?::\n\n((?:[ ]+.*\n|\n)+)", text + "\n", flags=re.MULTILINE):
            code = textwrap.dedent(block)
            if ">>>" in code:
                continue
            unknown = {
                name for name in functions_called(code) if name not in names and not hasattr(builtins, name)
            }
            assert not unknown
            if missing := missing_files(code):
                left_out += missing
            else:
                exec(compile(code, f"{module}.{place}", "exec"), dict(names))
    if left_out and not test.examples:
        pytest.skip(f"reads a file that a run makes: {', '.join(left_out)}")
