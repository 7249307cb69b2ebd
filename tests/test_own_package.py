"""A user's package outside of the repository: method, encoder, callback and data set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eval as evaluation_script
import train
from runtime import trust
from runtime.checkpoints import load_module
from runtime.messages import ROOT
from tests.documents import shown_files

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
QUICK = [
    "--trainer.max_epochs",
    "1",
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
]
MORE = '''
from lightning import Callback
from torch import nn

from datamodules import Digits
from sslmodules.networks import Encoder

seen = []


class Net(Encoder):
    """Net: one layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer, self.num_features = nn.Linear(64, width), width

    def forward(self, x):
        return self.layer(x.flatten(1))


class Seen(Callback):
    """Seen: counts epochs."""

    def on_train_epoch_end(self, trainer, module) -> None:
        seen.append(type(module).__name__)


class FewDigits(Digits):
    """FewDigits: the same digits."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The README's method and what else there may be, as a package in the current folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(shown_files(ROOT / "README.md")["mine.py"])
    (tmp_path / "mine" / "more.py").write_text(MORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(trust, "_more", [])
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_everything_of_a_run_can_be_the_users(
    package: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DIGITS, *QUICK, "--model", "mine.AlignUniform", "--model.spread", "0.5", "--run_dir", "run"]
    words += ["--model.encoder", "mine.more.Net", "--model.encoder.width", "12"]
    words += ["--trainer.callbacks+=mine.more.Seen", "--data", "mine.more.FewDigits"]
    assert train.main([*words, "--trust_config_classes", "mine"]) == 0
    assert "--model mine.AlignUniform replaces SimCLR" in capsys.readouterr().out
    assert sys.modules["mine.more"].seen == ["AlignUniform"]
    assert evaluation_script.main(["run", "--trust_config_classes", "mine", "--output", "r.json"]) == 0
    module = load_module("run/checkpoints/last.ckpt")
    assert type(module).__name__ == "AlignUniform" and module.encoder.num_features == 12
    assert module.hparams["spread"] == 0.5


def test_without_the_flag_it_is_not_even_imported(package: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*DIGITS, *QUICK, "--model", "mine.AlignUniform"]) == 2
    assert capsys.readouterr().err == (
        "error: --model: 'mine.AlignUniform' is outside of the project, torch.nn, torch.optim, torchvision, "
        "timm and lightning, and a configuration may build only their classes. If you trust what it runs: "
        "--trust_config_classes mine\n"
    )
    assert "mine" not in sys.modules


def test_its_help_is_read_without_importing_it(package: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--model.help", "mine.AlignUniform"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--model AlignUniform: views of an image close")
    assert "  --model.spread  float, default 1.0" in lines and "options of every SSLModule:" in lines
    assert "mine" not in sys.modules
