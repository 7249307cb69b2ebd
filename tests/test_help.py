"""The help of a class: short, its own options first, at once, and no option left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Trainer

import train
from datamodules.errors import ConfigError
from runtime.discovery import below, find_class
from runtime.help import class_help
from runtime.messages import ROOT, data_sets, methods
from runtime.options import options_of

GROUPS = [*(("model", name) for name in methods()), *(("data", name) for name in data_sets())]
GROUPS += [("model.encoder", name) for name in below(["Encoder"])]


def options_in(text: str, prefix: str) -> list[str]:
    return re.findall(rf"^  --{re.escape(prefix)}\.(\w+)  ", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("prefix", "name"), GROUPS, ids=[name for _, name in GROUPS])
def test_every_option_of_a_class(prefix: str, name: str) -> None:
    text = class_help([f"--{prefix}.help", name])
    cls = find_class(name)
    assert text is not None and cls is not None
    assert len(text.splitlines()) < 100 and max(map(len, text.splitlines())) <= 110
    shown = options_in(text, prefix)
    assert set(shown) == set(options_of(cls)) and len(shown) == len(set(shown))


def test_a_methods_own_options_come_first() -> None:
    text = class_help(["--model.help", "SimCLR"])
    assert text is not None
    lines = text.splitlines()
    assert lines[:3] == [
        "--model SimCLR: contrast two views of an image with all other views of the global batch.",
        "",
        "its own options:",
    ]
    assert options_in(text, "model") == [
        "encoder",
        "temperature",
        "projector_hidden",
        "projector_out",
        "projector_layers",
        "optimizer",
        "warmup_epochs",
        "final_lr_factor",
    ]
    assert "  --model.temperature  float, default 0.1" in lines
    assert "options of every SSLModule:" in lines


def test_the_trainer() -> None:
    text = class_help(["--trainer.help"])
    assert text is not None and len(text.splitlines()) < 100
    assert set(options_in(text, "trainer")) == set(options_of(Trainer))
    assert "  --trainer.strategy  str | Strategy, default 'auto'" in text.splitlines()


def test_without_a_name_the_classes_are_listed() -> None:
    assert class_help(["--model.help"]) == "\n".join(f"--model.help {n}  {t}" for n, t in methods().items())
    text = class_help(["--data.help"])
    assert text is not None and "--data.help Digits  " in text


def test_a_name_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"^--model.help: unknown method 'SimCRL' \(did you mean 'SimCLR'\?\)"
    ):
        class_help(["--model.help=SimCRL"])
    assert train.main(["--data.help", "Digit"]) == 2
    assert "unknown data set 'Digit' (did you mean 'Digits'?)" in capsys.readouterr().err


def test_a_class_that_is_not_found_without_importing_is_left_to_the_parser() -> None:
    assert class_help(["--model.optimizer.help", "AdamW"]) is None
    assert class_help(["--config", "x.yaml"]) is None


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, train\n"
        "for words in (['--model.help', 'GAN'], ['--data.help', 'MNIST'], ['--trainer.help']):\n"
        "    assert train.main(words) == 0\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--trainer.help"]])
def test_a_reader_that_stops_reading(words: list[str]) -> None:
    """``train.py --help | head -1``."""
    command = f"{sys.executable} {ROOT / 'train.py'} {' '.join(words)} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (len(done.stdout), done.stderr) == (1, "")
