"""The documentation is true: its examples run, its commands parse, its files exist, its lists are
complete.
"""

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

import sslmodules
from datamodules import Digits, Fasta, TextFiles, Tones
from runtime.callback_lists import EVERY_RUN, turned_off
from runtime.command_line import CheckedCommandLine
from runtime.discovery import below, classes
from runtime.help import class_help
from runtime.messages import ROOT, config_files, help_text, methods
from train import main as train_main

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/README.md")
DOCUMENTS = [
    p for p in (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()
]
PACKAGES = ("sslmodules", "datamodules", "evaluation", "runtime")
PROJECT = [p for folder in PACKAGES for p in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """(what stands after the opening fence, content) of every fenced block."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```([^\n]*)\n(.*?)^```[ ]*$", text, flags=re.MULTILINE | re.DOTALL)


def shown_files(document: Path) -> dict[str, str]:
    """Files that a document gives in full: a block whose fence says ``title="path"``."""
    return {m[1]: code for info, code in code_blocks(document) if (m := re.search(r'title="([^"]+)"', info))}


@pytest.fixture
def readme() -> Path:
    if not (ROOT / "README.md").is_file():
        pytest.skip("README.md is not written yet")
    return ROOT / "README.md"


# ---- CONTRIBUTING.md: its method and its data set work as they stand ---------------------------------------

SHOWN = shown_files(ROOT / "CONTRIBUTING.md")


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


# ---- README.md, CONTRIBUTING.md and docs/ ------------------------------------------------------------------


def test_readme_begins_with_the_two_commands(readme: Path) -> None:
    _, first = code_blocks(readme)[0]
    assert first.split("\n") == [
        "pip install -e . && python train.py --config configs/digits/simclr.yaml",
        "pip install -e '.[test]' && pytest",
        "",
    ]


def test_readme_lists_methods_that_exist(readme: Path) -> None:
    """Below "## Methods" each name links to its page. A method of a user's own need not be there."""
    _, _, section = readme.read_text(encoding="utf-8").partition("\n## Methods")
    listed = dict(re.findall(r"\[`(\w+)`\]\(docs/methods/(\w+)\.md\)", section.partition("\n## ")[0]))
    assert len(listed) >= 20 and set(listed) <= set(methods())
    assert len(set(listed.values())) == len(listed)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_mentioned_files_exist(document: Path) -> None:
    """Paths below the project's folders, and relative links; ``<method>`` and other placeholders are no
    paths.
    """
    text = document.read_text(encoding="utf-8")
    folders = "configs|docs|benchmarks|cluster|tests|sslmodules|datamodules|evaluation|runtime"
    paths = set(
        re.findall(
            rf"(?<![\w/.-])((?:{folders})/[\w./-]*\.(?:yaml|md|py|sh|sbatch|json|png))(?![\w<{{*])", text
        )
    )
    known = shown_files(document)
    missing = [p for p in sorted(paths) if not (ROOT / p).exists() and p not in known]
    links = {
        link.partition("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"\w+:|#", link)
    }
    missing += [link for link in sorted(links) if not (document.parent / link).exists()]
    assert not missing


def commands(document: Path) -> list[str]:
    """What follows ``python train.py`` in a document's blocks and between backticks, without comments and
    pipes.
    """
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = r"^```[^\n]*\n(.*?)^```"
    lines = [
        line
        for block in re.findall(fenced, text, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`([^`\n]+)`", re.sub(fenced, "", text, flags=re.MULTILINE | re.DOTALL))
    return [command for line in lines if (command := train_arguments(line))]


def train_arguments(line: str) -> str:
    """The arguments of the line's ``python train.py``; brackets around what is optional are taken off."""
    _, _, rest = line.partition("python train.py ")
    rest = re.split(r"&&|\||;|\s#\s|\s{2,}\(|>", rest)[0]
    return re.sub(r"\[(--[^\]]*)\]", r"\1", rest).strip()


def is_placeholder(argument: str) -> bool:
    """``FILE``, ``SEED``, ``--model.X``, ``<name>``, ``{a,b}``, ``...``: to be filled in by the reader."""
    return bool(re.search(r"[<>{}*]|\.\.\.|^FILE|^SEED$|\.X$", argument))


def check_command(command: str, known: Iterable[str] = ()) -> None:
    """Every name in the command exists. Left out: a command with a placeholder, or of a file that is only
    shown.
    """
    arguments = shlex.split(command)
    if "--help" not in arguments and not any(is_placeholder(a) or a in known for a in arguments):
        assert class_help(arguments) or CheckedCommandLine(arguments), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_train_commands_parse(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(document):
        check_command(command, SHOWN)


PAGE = ROOT / "docs" / "loggers_and_callbacks.md"
#: Packages that are not installed here, and one that the reader would write.
ABSENT = ("WandbLogger", "MLFlowLogger", "mine.")


@pytest.mark.parametrize(
    "command", [c for c in commands(PAGE) if not any(name in c for name in ABSENT)] + ["the file"]
)
def test_the_page_on_loggers_and_callbacks_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command for one step of training, and the file that the page shows."""
    if command == "the file":
        [text] = [code for info, code in code_blocks(PAGE) if info == "yaml"]
        (tmp_path / "callbacks.yaml").write_text(text, encoding="utf-8")
        command = f"--config configs/digits/simclr.yaml --config {tmp_path / 'callbacks.yaml'}"
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu"]
    quick += ["--trainer.enable_progress_bar=false", "--evaluate=false", f"--run_dir={tmp_path / 'run'}"]
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.chdir(ROOT)
    assert train_main([*shlex.split(command), *quick]) == 0
    made = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    probed = "every_n_validations=2" not in command  # its first probe would come in a second epoch
    assert "last.ckpt" in made and ("best.ckpt" in made) == probed
    assert any(re.fullmatch(r"0-0\.\d{3}\.ckpt", name) for name in made) == ("callbacks.yaml" in command)


def test_the_page_names_every_callback_that_can_be_turned_off() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8").partition("## Loggers")[0], re.MULTILINE
    )
    assert set(table) == turned_off(",".join(table)) and len(table) == 5 + len(EVERY_RUN)


@pytest.mark.parametrize("config", config_files(), ids=name_of)
def test_a_config_begins_with_its_command(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first = config.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# python train.py --config {name_of(config)}")
    check_command(train_arguments(first))


@pytest.mark.parametrize(
    "config", [p for p in config_files() if p.parent.name in ("cifar10", "imagenet")], ids=name_of
)
def test_a_config_for_a_gpu_says_what_to_expect_and_whether_it_was_run(config: Path) -> None:
    """The number that its settings are published with, or that there is none; and that nobody here has seen
    it.
    """
    header = " ".join(
        line.lstrip("# ")
        for line in re.findall(r"^#.*", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert re.search(r"(?i)(expected|published)\b.* \d|no published result", header), header
    assert re.search(r"Not run here|Measured", header), header


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("pip install . && python train.py --config a.yaml  # a comment", "--config a.yaml"),
        ("python train.py --config a.yaml [--data.download true]", "--config a.yaml --data.download true"),
        (
            "# python train.py --config a.yaml --data.root DIR    (DIR/train)",
            "--config a.yaml --data.root DIR",
        ),
        ("python train.py --help | less", "--help"),
        ("python eval.py run", ""),
    ],
)
def test_train_arguments(line: str, arguments: str) -> None:
    assert train_arguments(line) == arguments


def test_help_names_every_method_and_config() -> None:
    text = help_text()
    assert all(name in text for name in methods())
    imported = {
        name for name, cls in sslmodules.methods().items() if cls.__module__.startswith("sslmodules.")
    }
    assert set(methods()) == imported  # read from the files, without importing them
    assert all(path.stem in text and path.parent.name in text for path in config_files())


# ---- structure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=name_of)
def test_a_config_is_short(config: Path) -> None:
    assert len(config.read_text(encoding="utf-8").splitlines()) <= 30


# ---- statements tied to the code ---------------------------------------------------------------------------


def test_the_page_of_metrics_knows_every_baseline() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names: set[str] = set()
    for data in (
        Digits(),
        Tones(synthetic=True),
        TextFiles(synthetic=True),
        Fasta(root="unused", synthetic=True),
    ):
        names |= data.baselines().keys()
    assert names == {"raw_input", "mean_log_mel", "bag_of_words", "tfidf", "kmers"}
    assert not [name for name in names if f"`{name}`" not in page]


def test_no_method_page_denies_that_batch_norm_is_synchronized() -> None:
    """configs/default.yaml synchronizes it on several GPUs."""
    assert (
        yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())["trainer"]["sync_batchnorm"] is True
    )
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    assert not [
        page.name for page in pages if "--trainer.sync_batchnorm true" in page.read_text(encoding="utf-8")
    ]


def test_one_version() -> None:
    """The package and the file to cite."""
    package = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert package is not None and package[1] == cited


def test_the_layout_lists_every_file() -> None:
    """CONTRIBUTING.md's tree: a folder ends in ``/``, a file has one line; indentation is the depth.

    A file that adds a class which is found by its type, such as a method of a user's own, need not be there.
    """
    block = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    folders: list[str] = []
    listed = []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        if name.endswith(".py"):
            listed.append("/".join(folders))
    there = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
        if path.name != "__init__.py"
    }
    roots = [
        "SSLModule",
        "SSLDataModule",
        "Encoder",
        "BatchTransform",
        "Callback",
        "Probe",
        "Measure",
        "Command",
    ]
    added = {f"{classes()[name].module.replace('.', '/')}.py" for name in below(roots)}
    assert len(listed) == len(set(listed)) and set(listed) <= there
    assert there - set(listed) <= added
