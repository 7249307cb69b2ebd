"""What a configuration, a command line and a checkpoint may build: classes of the trusted kinds, never a
function. Every attempt here ends before anything is built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from datamodules.errors import ConfigError
from runtime import trust
from runtime.checkpoints import build_module
from runtime.command_line import SSLCommandLine
from runtime.messages import ROOT
from runtime.saved_run import build_data

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
LOAD = {
    "class_path": "timm.models.load_checkpoint",
    "init_args": {
        "model": {"class_path": "torch.nn.Identity"},
        "checkpoint_path": "x.pt",
        "weights_only": False,
    },
}
FETCH = {
    "class_path": "lightning.fabric.utilities.cloud_io._load",
    "init_args": {"path_or_url": "http://h/x"},
}
L = "lightning.pytorch"


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_more", [])


class Parsed(SSLCommandLine):
    """Fails the test when an object is about to be built."""

    def before_instantiate_classes(self) -> None:
        raise AssertionError("the configuration was admitted")


def refused(args: list[str]) -> str:
    """The one line that rejects a command line."""
    with pytest.raises(ConfigError) as refusal:
        Parsed(args)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def callback(name: str, **init_args: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [{"class_path": f"{L}.callbacks.{name}", "init_args": init_args}]}}


def encoder(spec: Any) -> dict[str, Any]:
    wrapped = {"class_path": "WrappedEncoder", "init_args": {"net": spec, "num_features": 8}}
    return {"model": {"class_path": "SimCLR", "init_args": {"encoder": wrapped}}}


FILES: dict[str, tuple[dict[str, Any], str]] = {
    "hook-is-a-call": (callback("LambdaCallback", on_fit_start=LOAD), "load_checkpoint.*names no functions"),
    "hook-fetches": (callback("LambdaCallback", on_fit_start=FETCH), "cloud_io._load.*names no functions"),
    "hook-is-a-name": (
        callback("LambdaCallback", on_fit_start="timm.models.load_checkpoint"),
        "on_fit_start.*load_checkpoint.*names no functions",
    ),
    "no-hook": (callback("LambdaCallback"), "calls functions"),
    "option-is-a-call": (
        callback("BackboneFinetuning", lambda_func=LOAD),
        "load_checkpoint.*names no functions",
    ),
    "option-is-a-name": (
        callback("BackboneFinetuning", lambda_func="timm.create_model"),
        "lambda_func.*create_model.*names no functions",
    ),
    "option-is-a-class": (
        callback("ThroughputMonitor", batch_size_fn={"class_path": "torch.nn.Identity"}),
        "batch_size_fn.*torch.nn.*Identity.*names no functions",
    ),
    "function-for-a-class": (
        encoder({"class_path": "timm.create_model", "init_args": {"model_name": "hf-hub:a/b"}}),
        "model.*create_model",
    ),
    "teacher-from-a-file": (
        encoder(
            {
                "class_path": "timm.task.distillation.DistillationTeacher",
                "init_args": {
                    "model_name_or_module": "resnet18",
                    "num_classes": 2,
                    "pretrained_path": "x.pt",
                },
            }
        ),
        "loads the weights of its teacher|there is no class 'timm",
    ),
    "call-in-a-list": (
        encoder({"class_path": "torch.nn.Sequential", "dict_kwargs": {"x": [{"a": LOAD}]}}),
        "encoder.*(load_checkpoint|dict_kwargs)",
    ),
    "extra-argument": (
        {
            "trainer": {
                "profiler": {
                    "class_path": f"{L}.profilers.PyTorchProfiler",
                    "dict_kwargs": {"on_trace_ready": {"class_path": "os.system"}},
                }
            }
        },
        "'os.system' is outside|dict_kwargs",
    ),
    "any-object": (
        {
            "trainer": {
                "strategy": {
                    "class_path": f"{L}.strategies.DDPStrategy",
                    "init_args": {
                        "ddp_comm_state": {"class_path": "subprocess.Popen", "init_args": {"args": "x"}}
                    },
                }
            }
        },
        "'subprocess.Popen' is outside",
    ),
    "communication-hook": (
        {
            "trainer": {
                "strategy": {
                    "class_path": f"{L}.strategies.DDPStrategy",
                    "init_args": {"ddp_comm_hook": "timm.models.load_checkpoint"},
                }
            }
        },
        "ddp_comm_hook.*load_checkpoint",
    ),
    "logger-with-a-server": (
        {"trainer": {"logger": {"class_path": f"{L}.loggers.CometLogger"}}},
        "connects to a server",
    ),
    "profiler-with-a-port": (
        {"trainer": {"profiler": {"class_path": f"{L}.profilers.XLAProfiler"}}},
        "opens a port",
    ),
    "plugin-is-a-program": (
        {"trainer": {"plugins": [{"class_path": f"{L}.cli.LightningCLI"}]}},
        "LightningCLI",
    ),
    "re-export": (encoder({"class_path": "timm.models.os.system", "init_args": {"command": "x"}}), "system"),
    "re-exported-class": (encoder({"class_path": "timm.models.helpers.Path"}), "encoder"),
    "own-function": (
        callback(
            "BackboneFinetuning",
            lambda_func={"class_path": "runtime.trust.trust", "init_args": {"packages": ["os"]}},
        ),
        "runtime.trust.trust",
    ),
    "optimizer-is-a-function": (
        {"model": {"class_path": "SimCLR", "init_args": {"optimizer": "timm.optim.create_optimizer_v2"}}},
        "optimizer",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file(case: str, tmp_path: Path) -> None:
    content, expected = FILES[case]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    line = refused([*DIGITS, "--config", str(tmp_path / "c.yaml")])
    assert re.search(expected, line), line


@pytest.mark.parametrize("case", FILES)
def test_the_same_as_json_on_the_command_line(case: str) -> None:
    content, expected = FILES[case]
    ((group, options),) = content.items()
    options = options.get("init_args", options)
    words = [
        f"--{group}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]
    line = refused([*DIGITS, *words])
    assert re.search(expected, line), line


def test_the_name_of_a_function_on_the_command_line() -> None:
    words = [
        f"--trainer.callbacks+={L}.callbacks.BackboneFinetuning",
        "--trainer.callbacks.lambda_func=timm.create_model",
    ]
    assert "names no functions" in refused([*DIGITS, *words])


def test_a_file_that_an_option_names(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    words = [*DIGITS, "--model.encoder", str(file)]
    file.write_text(yaml.safe_dump(LOAD))
    assert refused(words).startswith(f"{file}: 'timm.models.load_checkpoint' is not an encoder")
    built = {"class_path": "timm.create_model", "init_args": {"model_name": "resnet18"}}
    file.write_text(yaml.safe_dump(encoder(built)["model"]["init_args"]["encoder"]))
    assert refused(words).startswith(f"{file}.net: 'timm.create_model' is not a network")


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    profiler = {"class_path": f"{L}.profilers.PyTorchProfiler", "dict_kwargs": {"on_trace_ready": LOAD}}
    monkeypatch.setenv("PL_TRAINER__PROFILER", json.dumps(profiler))
    assert "load_checkpoint" in refused(DIGITS)


def test_no_module_that_runs_a_program_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lightning.__setup__` runs a file of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".actions").mkdir()
    (tmp_path / ".actions" / "assistant.py").write_text("import os\nos.mkdir('CODE_RAN')\n")
    assert "outside" in refused([*DIGITS, "--trainer.callbacks+=lightning.__setup__.Callback"])
    assert [p.name for p in tmp_path.iterdir()] == [".actions"]


HIDDEN = {
    "callable": {"norm_layer": LOAD},
    "nested": {"encoder": {"class_path": "TimmEncoder", "init_args": {"name": LOAD}}},
    "class": {"encoder": {"class_path": "timm.create_model", "init_args": {"model_name": "hf-hub:a/b"}}},
}


def test_a_checkpoint_of_a_method() -> None:
    """Its hyper-parameters are plain values; what they name is looked at before it is built."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    encoder = {"class_path": "sslmodules.networks.ConvEncoder"}
    good = {"_class_path": "SimCLR", "encoder": encoder, "optimizer": optimizer}
    assert type(build_module(good)).__name__ == "SimCLR"
    for key in ("encoder", "optimizer"):
        with pytest.raises((ConfigError, OSError), match="load_checkpoint"):
            build_module({**good, key: LOAD})
    net = {"class_path": "torch.nn.Sequential", "dict_kwargs": {"x": LOAD}}
    with pytest.raises((ConfigError, OSError), match="load_checkpoint"):
        build_module(
            {
                **good,
                "encoder": {"class_path": "WrappedEncoder", "init_args": {"net": net, "num_features": 2}},
            }
        )


def test_a_checkpoint_of_a_data_set() -> None:
    with pytest.raises(ConfigError, match="load_checkpoint"):
        build_data({"_class_path": "Digits", "views": LOAD}, [])
    with pytest.raises(ConfigError, match="load_checkpoint"):
        build_data({"_class_path": "Digits"}, [f"--data.views={json.dumps(LOAD)}"])


# ---- the flag ----------------------------------------------------------------------------------------------


def test_what_the_user_trusts_is_built() -> None:
    name = f"{L}.callbacks.LambdaCallback"
    words = [f"--trainer.callbacks+={name}"]
    with pytest.raises(AssertionError, match="admitted"):
        Parsed([*DIGITS, *words, "--trust_config_classes", name])


def test_trust_in_a_package_is_no_trust_in_what_it_imports() -> None:
    trust.trust(["tests"])
    trust.admit({"class_path": "tests.test_trust.Mine"})
    with pytest.raises(ConfigError, match="outside"):
        trust.admit({"class_path": "tests.test_trust.Path"})
    with pytest.raises(ConfigError, match="DataLoader"):
        trust.admit({"class_path": "torch.utils.data.DataLoader"})


class Mine:
    """Of no kind that is built without the flag."""


# ---- the packages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [nn.functional.relu, torch.load, nn.Identity(), open, [print], {"a": {"b": nn.Module.to}}],
    ids=["function", "builtin", "object", "open", "list", "method"],
)
def test_an_object_where_a_value_is_expected(value: Any) -> None:
    with pytest.raises(ConfigError):
        trust.admit({"x": value})
