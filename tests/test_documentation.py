"""The documentation is true: its examples run, its commands parse, its files exist, its lists are
complete.
"""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

import sslmodules
from datamodules import Digits, Fasta, TextFiles, Tones
from runtime.callback_lists import EVERY_RUN, turned_off
from runtime.discovery import below, classes
from runtime.messages import ROOT, config_files, help_text, methods
from tests.conftest import EMBEDDED, method_of
from tests.documents import (
    DOCUMENTS,
    PACKAGES,
    SHOWN,
    check_command,
    code_blocks,
    commands,
    name_of,
    shown_files,
    train_arguments,
)
from train import main as train_main


@pytest.fixture
def readme() -> Path:
    if not (ROOT / "README.md").is_file():
        pytest.skip("README.md is not written yet")
    return ROOT / "README.md"


# ---- README.md, CONTRIBUTING.md and docs/ ------------------------------------------------------------------


def test_readme_begins_with_the_two_commands(readme: Path) -> None:
    _, first = code_blocks(readme)[0]
    assert first.split("\n") == [
        "pip install -e . && python train.py --config configs/digits/simclr.yaml",
        "pip install -e '.[test]' && pytest",
        "",
    ]


def test_readme_is_short(readme: Path) -> None:
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_badges_are_true(readme: Path) -> None:
    badges = re.findall(r"!\[([^\]]+)\]\(https://([^)]+)\)", readme.read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.findall(r'^requires-python = ">=(.+)"$', project, re.MULTILINE)[0]
    repository = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["repository-code"]
    assert badges == [
        ("CI", f"{repository.removeprefix('https://')}/actions/workflows/ci.yml/badge.svg"),
        (f"Python {oldest} and newer", f"img.shields.io/badge/python-{oldest}%2B-blue"),
        ("License: Apache-2.0", "img.shields.io/badge/license-Apache--2.0-green"),
    ]
    assert (ROOT / ".github/workflows/ci.yml").is_file() and 'license = "Apache-2.0"' in project


def test_readme_lists_methods_that_exist(readme: Path) -> None:
    """Below "## Methods" each name links to its page. A method of a user's own need not be there."""
    _, _, section = readme.read_text(encoding="utf-8").partition("\n## Methods")
    listed = dict(re.findall(r"\[`(\w+)`\]\(docs/methods/(\w+)\.md\)", section.partition("\n## ")[0]))
    assert len(listed) >= 20 and set(listed) <= set(methods())
    assert len(set(listed.values())) == len(listed)


#: What docs/methods/index.md promises of each page; a page may have further sections.
SECTIONS = ["Objective", "One training step", "Differences from the", "Common implementation mistakes"]
SECTIONS += ["Command", "When to choose it", "Results"]


def test_each_page_of_a_method_has_the_same_sections() -> None:
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    found = {
        page.stem: [
            section
            for heading in re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            for section in SECTIONS
            if heading.startswith(section)
        ]
        for page in pages
        if page.stem != "index"
    }
    assert found == dict.fromkeys(found, SECTIONS) and len(found) >= 20


def page_of(method: str) -> Path:
    """The page of a class of methods, which one of a user's own need not have."""
    module = sslmodules.methods()[method].__module__
    return ROOT / "docs" / "methods" / f"{module.rpartition('.')[2]}.md"


def test_each_config_is_on_the_page_of_its_method() -> None:
    pages = {name: page_of(name) for name in methods()}
    texts = {name: page.read_text(encoding="utf-8") for name, page in pages.items() if page.is_file()}
    used = {config: method_of(config).__name__ for config in map(name_of, config_files())}
    assert [config for config, name in used.items() if config not in texts.get(name, config)] == []


def test_the_page_on_choosing_leads_to_every_method_for_images_and_has_its_settings() -> None:
    """Those that have a config for Digits. GPT, which reads pixels as a text, has no settings there."""
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    choice, settings = (
        page.partition(f"{title}\n")[2] for title in ("## Which method", "### For each method")
    )
    choice, settings = choice.partition("\n## ")[0], settings.partition("\n## ")[0]
    digits = {path.stem for path in (ROOT / "configs" / "digits").glob("*.yaml")}
    known = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} & digits
    assert set(re.findall(r"\(methods/(\w+)\.md", choice)) - {"index"} == known
    rows = re.findall(r"^\| (\[.*?) \|", settings, re.MULTILINE)
    assert set(re.findall(r"\(methods/(\w+)\.md", " ".join(rows))) == known - {"gpt"}


def test_the_page_on_collapse_has_advice_for_every_method_for_images() -> None:
    advice = (ROOT / "docs" / "collapse.md").read_text(encoding="utf-8").partition("\n## What to do\n")[2]
    named = [name for row in re.findall(r"^\| (.*?) \|", advice, re.MULTILINE) for name in row.split(", ")]
    digits = {path.stem for path in (ROOT / "configs" / "digits").glob("*.yaml")} - {"finetune"}
    pages = [p for p in (ROOT / "docs" / "methods").glob("*.md") if p.stem in digits]
    titles = {page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in pages}
    assert set(named) - {"method", "---"} == titles and len(named) == len(set(named))


def test_benchmarks_take_the_arguments_that_pages_give_them() -> None:
    """Options that are in the text of the script or its parts, and one without a name if it has any."""
    parts = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "benchmarks" / "parts").glob("*.py"))
    wrong = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`\n|&#>]*)", text):
            source = (ROOT / script).read_text(encoding="utf-8") + parts
            words = re.sub(r"[\[\]]", "", rest).split()
            names = [w.partition("=")[0] for w in words if w[0] == "-" and w != "--help"]
            unknown = [name for name in names if f'"{name}"' not in source]
            if words and words[0][0] != "-" and not re.search(r"""(?:add|argument)\(\s*"[a-z]""", source):
                unknown.append(words[0])
            wrong += [f"{name_of(document)}: {script} {word}" for word in unknown]
    assert wrong == []


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


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(page, marks=pytest.mark.slow) if page.parent.name in ("methods", "data") else page
        for page in DOCUMENTS
    ],
    ids=name_of,
)
def test_train_commands_parse(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(document):
        check_command(command, SHOWN)


PAGE = ROOT / "docs" / "loggers_and_callbacks.md"
#: Packages that are not installed here, and one that the reader would write.
ABSENT = ("WandbLogger", "MLFlowLogger", "mine.")


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, id=name_of(path), marks=() if path.parent.name in EMBEDDED else pytest.mark.slow)
        for path in config_files()
    ],
)
def test_a_config_begins_with_its_command(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first = config.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# python train.py --config {name_of(config)}")
    check_command(train_arguments(first))


@pytest.mark.parametrize("config", config_files(), ids=name_of)
def test_a_config_points_to_its_results(config: Path) -> None:
    """The page in its line ``Measured on HARDWARE, DATE: NUMBER (PAGE)`` has its numbers: those of Digits in
    the row of the method, others anywhere.
    """
    table = runpy.run_path(str(ROOT / "docs" / "config_table.py"))
    for _, _, number, page in table["MEASURED"].findall(config.read_text(encoding="utf-8")):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        if config.parent.name == "digits" and page == "results.md":
            text = "\n".join(re.findall(rf"^\| {config.stem} \|.*|.*{name_of(config)}.*", text, re.MULTILINE))
        found = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", number)
        assert found and all(value in text for value in found), (found, text)


def test_the_table_of_configs_is_made_from_their_headers() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "config_table.py"))["page"]()
    assert (ROOT / "docs" / "configs.md").read_text(encoding="utf-8") == written


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
    assert all(name in text for name in methods()) and "`" not in text
    imported = {
        name for name, cls in sslmodules.methods().items() if cls.__module__.startswith("sslmodules.")
    }
    assert set(methods()) == imported  # read from the files, without importing them
    assert all(path.stem in text and path.parent.name in text for path in config_files())


# ---- structure ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=name_of)
def test_a_config_is_short(config: Path) -> None:
    assert len(re.findall(r"^[^#]", config.read_text(encoding="utf-8"), re.MULTILINE)) <= 29


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
