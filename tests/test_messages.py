"""Whole messages for input that the parser rejects; more are in test_cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import ConfigError
from runtime.command_line import CheckedCommandLine
from runtime.messages import ROOT, pairs
from runtime.names import resolve
from sslmodules.networks import Encoder

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
MEANT = {
    "lr": "--model.optimizer.init_args.lr",
    "learning_rate": "--model.optimizer.init_args.lr",
    "epochs": "--trainer.max_epochs",
    "batch_size": "--data.batch_size",
    "gpus": "--trainer.devices",
    "seed": "--seed_everything",
    "runs_dir": "--run_dir",
}
EPOCHS = "trainer.epochs: Trainer has no option 'epochs' (did you mean 'max_epochs'?)"
NO_YAML = "is neither YAML nor JSON (duplicate key lr, first in line 1)"
REFUSED = {
    "--model.lr 0.1": f"--model.lr: SimCLR has no option 'lr' (did you mean '{MEANT['lr']}'?)",
    "--trainer.epochs 3": f"--{EPOCHS}",
    "--data.bs 3": "--data.bs: Digits has no option 'bs' (did you mean 'batch_size'?)",
    "--model.views x": "--model.views: SimCLR has no option 'views' (did you mean '--data.views'?)",
    "--model null": "--model: expected the name of a method, or a mapping with class_path, got None",
    "--trainer 3": "--trainer: expected options such as --trainer.max_epochs 10, got '3'",
    "--model.temperature.x 1": "model.temperature: expected float, got an option 'x' of it",
    "--model.optimizer {lr: 1, lr: 2}": f"--model.optimizer: '{{lr: 1, lr: 2}}' {NO_YAML}",
    "--seed_everything -1": "seed_everything must be in [0, 4294967295], got -1",
}
UNDER_INIT_ARGS = "expected class_path and init_args: options of SimCLR go under init_args"
CONV = {"class_path": "ConvEncoder", "init_args": "x 1"}
FILES: list[tuple[dict[str, Any], str]] = [
    ({"trainer": {"epochs": 3}}, EPOCHS),
    (
        {"model": {"init_args": {"encoder": CONV}}},
        "model.encoder.init_args: expected options and their values, got 'x 1'",
    ),
    ({"model": {"class_path": "SimCLR", "lr": 1}}, f"model: unknown key 'lr'; {UNDER_INIT_ARGS}"),
    ({"data": 3}, "data: expected the name of a data set, or a mapping with class_path, got 3"),
]


def refusal(words: list[str]) -> str:
    with pytest.raises(ConfigError) as error:
        CheckedCommandLine(words)
    return str(error.value)


@pytest.mark.parametrize("name", MEANT)
def test_the_option_that_was_meant(name: str) -> None:
    expected = f"unknown option --{name} (did you mean '{MEANT[name]}'?); see --help"
    assert refusal([*DIGITS, f"--{name}", "1"]) == expected


@pytest.mark.parametrize("words", REFUSED)
def test_the_line_for_an_option(words: str) -> None:
    option, _, value = words.partition(" ")
    assert refusal([*DIGITS, option, value]) == REFUSED[words]


@pytest.mark.parametrize(("content", "line"), FILES, ids=[line[:30] for _, line in FILES])
def test_the_line_for_a_file(content: dict[str, Any], line: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    assert refusal([*DIGITS, "--config", str(file)]) == f"{file}: {line}"


def test_an_empty_group_is_as_if_it_were_left_out(tmp_path: Path) -> None:
    """``trainer:`` with everything below it commented out."""
    (tmp_path / "c.yaml").write_text("trainer:\n")
    assert CheckedCommandLine([*DIGITS, "--config", str(tmp_path / "c.yaml")]).config.trainer.max_epochs == 60


@pytest.mark.parametrize(
    "plugin",
    ["LightningEnvironment", "[TorchSyncBatchNorm]", "lightning.pytorch.plugins.TorchCheckpointIO"],
)
def test_plugins_of_every_kind(plugin: str) -> None:
    plugins = CheckedCommandLine([*DIGITS, "--trainer.plugins", plugin]).config.trainer.plugins
    first = plugins[0] if isinstance(plugins, list) else plugins
    assert first.class_path.rpartition(".")[2] in plugin


def test_an_unknown_plugin() -> None:
    line = refusal([*DIGITS, "--trainer.plugins", "Foo"])
    kinds = "Precision class or ClusterEnvironment class or CheckpointIO class or LayerSync class"
    assert line.startswith(f"--trainer.plugins: unknown {kinds} 'Foo'; known: AsyncCheckpointIO, ")


def test_short_names_of_the_project_come_first() -> None:
    """Lightning has a CSVLogger too, timm a ConvEncoder."""
    config = CheckedCommandLine([*DIGITS, "--trainer.logger", "[CSVLogger]"]).config
    assert config.trainer.logger[0].class_path == "runtime.loggers.CSVLogger"
    assert resolve("ConvEncoder", Encoder, "x").__module__ == "sslmodules.networks.convnet"


def test_pairs() -> None:
    given = dict(pairs(["--a", "1", "--b=2", "--c", "--d", "-1", "stray", "--e=", "--f", ""]))
    assert given == {"--a": "1", "--b": "2", "--c": None, "--d": "-1", "stray": None, "--e": "", "--f": ""}
