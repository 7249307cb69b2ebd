"""Runs hold public names, not module paths: a run made before the project's files moved is read, evaluated
and resumed.

``fixtures/old_run`` was written by the version before public names were stored: Inpainting on Digits, stopped
in step 7 of 12. ``finished.pt`` and ``finished.json`` are the weights and the results of the same run without
the stop.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer

import eval as eval_command
import train as train_command
from datamodules.base import SSLDataModule
from runtime import discovery
from runtime.checkpoints import load_module, read_checkpoint
from runtime.discovery import (
    classes,
    current_path,
    find_class,
    public_name,
    with_current_paths,
    with_public_names,
)
from runtime.saving import BestCheckpoint, LastCheckpoint

OLD_RUN = Path(__file__).parent / "fixtures" / "old_run"
needs_its_options = pytest.mark.skipif(
    "enable_autolog_hparams" not in inspect.signature(Trainer).parameters,
    reason="the old run's configuration has an option of lightning 2.6",
)


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    yield shutil.copytree(OLD_RUN, tmp_path / "run")
    os.environ.pop("SSL_RUN_DIR", None)


def options_of(run: Path) -> list[str]:
    """The command line that repeats the run in its own folder."""
    return ["--config", str(OLD_RUN / "config.yaml"), "--run_dir", str(run), "--trainer.accelerator", "cpu"]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def numbers(node: Any) -> dict[str, float]:
    """Every number of a nested dict by its path."""
    if isinstance(node, dict):
        return {f"{key}/{k}": v for key, value in node.items() for k, v in numbers(value).items()}
    return {"": float(node)} if isinstance(node, (int, float)) else {}


@pytest.fixture
def last_batch_as_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that wrote the old run gave the last batch of each epoch the draws of the first."""
    generator = SSLDataModule._generator

    def earlier(self: Any, batch: Any, epoch: int, index: int) -> torch.Generator:
        last = self.trainer.training and self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return generator(self, batch, epoch, 0 if last else index)

    monkeypatch.setattr(SSLDataModule, "_generator", earlier)


@needs_its_options
def test_an_old_run_is_resumed_and_ends_as_it_would_have(
    old_run: Path, last_batch_as_first: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command.main(options_of(old_run)) == 0
    assert "resuming after epoch 2, step 7" in capsys.readouterr().out
    content = read_checkpoint(old_run / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 12
    finished = torch.load(OLD_RUN / "finished.pt", weights_only=True)
    assert content["state_dict"].keys() == finished.keys()
    for key, value in finished.items():  # bit for bit on one machine; other kernels may round otherwise
        torch.testing.assert_close(content["state_dict"][key], value, rtol=1e-4, atol=1e-5, msg=key)
    expected = numbers(json.loads((OLD_RUN / "finished.json").read_text()))
    now = numbers(results(old_run))  # of a later schema, which has more
    assert {key: now[key] for key in expected} == pytest.approx(expected, abs=0.02)


def test_an_old_run_remembers_its_best_epoch(old_run: Path) -> None:
    """Its two checkpoint callbacks were plain ModelCheckpoints."""
    callbacks = read_checkpoint(old_run / "checkpoints" / "last.ckpt")["callbacks"]
    scores = {key.split("{")[0]: state.get("best_model_score") for key, state in callbacks.items()}
    assert scores.keys() == {"FeatureProbe", "OnlineLinearProbe", "LastCheckpoint", "BestCheckpoint"}
    assert scores["BestCheckpoint"].item() == pytest.approx(0.6)
    best = BestCheckpoint("val/linear_top1", "max")
    assert best.state_key in callbacks and LastCheckpoint().state_key in callbacks


def test_an_old_run_is_read_and_evaluated(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_module(old_run / "checkpoints" / "last.ckpt")
    assert type(module).__name__ == "Inpainting" and module.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 8)
    assert eval_command.main([str(old_run), "--device", "cpu"]) == 0
    assert "Inpainting on Digits" in capsys.readouterr().out
    assert results(old_run)["results"].keys() == {"pretrained", "random_init", "raw_input"}


@needs_its_options
def test_a_new_run_holds_public_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    run = tmp_path / "run"
    assert train_command.main([*options_of(run), "--trainer.max_steps", "1", "--evaluate", "false"]) == 0
    os.environ.pop("SSL_RUN_DIR", None)
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    stored = [content[k] for k in ("hyper_parameters", "datamodule_hyper_parameters")]
    text = json.dumps(stored) + (run / "config.yaml").read_text()
    modules = {found.module for found in classes().values()}
    assert not [module for module in modules if re.search(rf"\b{re.escape(module)}\.", text)]
    assert stored[0]["_class_path"] == "Inpainting" and stored[0]["encoder"]["class_path"] == "ConvEncoder"
    assert stored[1]["_class_path"] == "Digits"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "Inpainting"
    assert config["trainer"]["callbacks"][0]["class_path"] == "FeatureProbe"
    assert (
        config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"
    )  # not of the project: as it is


def test_names_are_those_of_the_classes() -> None:
    for name, found in classes().items():
        if name.startswith("_"):
            continue
        cls = find_class(name)
        assert cls is not None and cls.__name__ == name and cls.__module__ == found.module
        assert (
            public_name(f"{found.module}.{name}") == name and current_path(name) == f"{found.module}.{name}"
        )


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("sslmodules.inpainting.Inpainting", "Inpainting"),
        ("datamodules.a_file_of_long_ago.Digits", "Digits"),
        ("mypackage.nets.Mine", "mypackage.nets.Mine"),
        ("mypackage.SimCLR", "mypackage.SimCLR"),  # another SimCLR than ours
        ("torch.optim.AdamW", "torch.optim.AdamW"),
        ("evaluation.NoSuchThing", "evaluation.NoSuchThing"),
    ],
)
def test_public_name(name: str, now: str) -> None:
    assert public_name(name) == now


def test_a_renamed_class_is_found_under_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(discovery.RENAMED, "Numerals", "Digits")
    assert (
        public_name("datamodules.images.Numerals") == "Digits" and find_class("Numerals").__name__ == "Digits"
    )


def test_names_deep_inside_are_replaced() -> None:
    stored = {
        "a": [{"class_path": "ConvEncoder", "init_args": {"net": {"class_path": "torch.nn.Linear"}}}],
        "b": ("SimCLR",),
    }
    there = with_current_paths(stored)
    assert there["a"][0]["class_path"] == current_path("ConvEncoder") != "ConvEncoder"
    assert there["a"][0]["init_args"]["net"]["class_path"] == "torch.nn.Linear" and there["b"] == ("SimCLR",)
    assert with_public_names(there) == stored


def test_two_classes_of_one_name_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in discovery.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "sslmodules" / "one.py").write_text("class Twice:\n    pass\n")
    (tmp_path / "evaluation" / "two.py").write_text("class Twice:\n    pass\n")
    monkeypatch.setattr(discovery, "ROOT", tmp_path)
    classes.cache_clear()
    try:
        with pytest.raises(
            ValueError, match=r"^two classes are named Twice, in evaluation.two and sslmodules.one:"
        ):
            classes()
    finally:
        classes.cache_clear()


def test_definitions_are_those_of_pythons_parser() -> None:
    """They are found by a pattern, which is faster."""
    for path in (p for package in discovery.PACKAGES for p in (discovery.ROOT / package).rglob("*.py")):
        expected = []
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                expected.append(discovery.Defined(node.name, None, ""))
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in node.bases)
                summary = discovery.first_paragraph(ast.get_docstring(node))
                expected.append(discovery.Defined(node.name, bases, summary))
        assert discovery._definitions(path) == expected, path


def test_definitions_of_all_forms(tmp_path: Path) -> None:
    source = '''class Plain:
    pass


@decorated
class Many(
    first.Base,
    Generic[Key, Value],
    metaclass=ABCMeta,
):  # a remark
    r"""One sentence
    on two lines.

    More.
    """

    class Inner:
        pass


async def waits(): ...


def function(value: int = max(1, 2)) -> dict[str, int]: ...
'''
    (tmp_path / "source.py").write_text(source)
    assert discovery._definitions(tmp_path / "source.py") == [
        ("Plain", (), ""),
        ("Many", ("Base", "Generic"), "One sentence on two lines."),
        ("function", None, ""),
    ]


def test_each_file_is_read_once() -> None:
    """The start of a run asks for the classes of all packages, and then for the exports of each."""
    for function in (discovery._definitions, classes, discovery.exports):
        function.cache_clear()
    classes()
    for package in discovery.PACKAGES:
        discovery.exports(package)
    files = [p for package in discovery.PACKAGES for p in (discovery.ROOT / package).rglob("*.py")]
    assert discovery._definitions.cache_info().misses == len(files)
