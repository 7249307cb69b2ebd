"""Faults of input: options, configurations that run code, devices, processes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.faults.bench import DIGITS, QUICK, STEPS, Bench, row


@row(35, "misspelt option")
def _(bench: Bench) -> None:
    bench.refused("--model.optimizer.lerning_rate", "1", because="no option 'lerning_rate'")
    bench.refused("--model.temprature", "1", because="(did you mean 'temperature'?)")
    (bench.folder / "c.yaml").write_text("model: {init_args: {temprature: 1}}\n")
    bench.refused("--config", "c.yaml", because="(did you mean 'temperature'?)")


@row(36, "value of the wrong type or out of range")
def _(bench: Bench) -> None:
    for yml, because in {
        "model: {init_args: {temperature: .nan}}": "model.temperature: expected float, got NaN",
        "model: {init_args: {temperature: hot}}": "model.temperature: expected float, got hot",
        "model: {init_args: {temperature: -1}}": "model.temperature must be positive, got -1.0",
        "trainer: {max_epochs: -1}": "--trainer.max_epochs -1 would never end",
        "trainer: {max_epochs: -3}": "-3",
        "trainer: {limit_train_batches: 0}": "leaves nothing to train",
        "data: {init_args: {batch_size: 2.5}}": "data.batch_size: expected int, got 2.5",
        "seed_everything: one": "seed_everything: expected",
    }.items():
        (bench.folder / "c.yaml").write_text(yml)
        bench.refused("--config", "c.yaml", because=because)
    (bench.folder / "c.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}}}"
    )
    assert (
        bench.train("--config", "c.yaml", "--trainer.max_steps", "1").status == 0
    )  # a string for YAML 1.1, a number here


LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
RUNS_CODE = (
    "model: os.system",
    "model: {class_path: os.system, init_args: {command: x}}",
    "model: {init_args: {encoder: {class_path: subprocess.Popen, init_args: {args: [touch, x]}}}}",
    "model: {init_args: {encoder: {class_path: mypackage.Mine}}}",
    "model: {init_args: {encoder: {class_path: torch.hub.load}}}",
    "model: {init_args: {encoder: {class_path: timm.models.os.system}}}",
    "model: {init_args: {encoder: {class_path: ConvEncoder, dict_kwargs: {x: {class_path: os.system}}}}}",
    "model: {init_args: {optimizer: os.system}}",
    "trainer: {callbacks: [{class_path: os.system}]}",
    "trainer: {callbacks+: [mypackage.Mine]}",
    f"trainer: {{callbacks: [{{class_path: {LAMBDA}, init_args: {{on_fit_start: os.system}}}}]}}",
    f"trainer: {{callbacks: [{{class_path: {LAMBDA}, init_args: {{on_fit_start: torch.hub.load}}}}]}}",
    "trainer: {plugins: [{class_path: mypackage.Mine}]}",
    "trainer: {strategy: {class_path: mypackage.Mine}}",
    "trainer: other.yaml",
    "data: {init_args: {views: {class_path: mypackage.Mine}}}",
    "model: !!python/object/apply:os.system [x]",
)


@row(37, "configuration that would run code")
def _(bench: Bench) -> None:
    mark = foreign_package(bench)
    for yml in RUNS_CODE:
        (bench.folder / "c.yaml").write_text(yml)
        bench.refused("--config", "c.yaml", because="c.yaml")
    trust = "--trust_config_classes mypackage"
    bench.refused("--model.encoder", "mypackage.Mine", because=f"If you trust what it runs: {trust}")
    bench.refused("--model.encoder", '{"class_path": "mypackage.Mine"}', because=trust)
    bench.refused("--trainer.callbacks+=mypackage.Mine", because=trust)
    bench.refused("--trainer", "c.yaml", because="--trainer: expected options")
    assert not mark.exists() and "mypackage" not in sys.modules
    runs_when_trusted(bench)
    assert mark.exists()


def foreign_package(bench: Bench) -> Path:
    """Writes a package with an encoder and a function; returns the file that appears when it is imported."""
    mark = bench.folder / "code-ran"
    (bench.folder / "mypackage.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom sslmodules.networks import "
        "ConvEncoder\n"
        "class Mine(ConvEncoder):\n    pass\ndef hook(*args):\n    pass\n"
    )
    bench.patch.syspath_prepend(str(bench.folder))
    return mark


def runs_when_trusted(bench: Bench) -> None:
    """train.py and eval.py use the package's encoder if told to trust it."""

    def status(script: str, *options: str) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / script), *options]
        env = {**os.environ, "PYTHONPATH": str(bench.folder)}
        done = subprocess.run(command, cwd=bench.folder, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr

    trust = ["--trust_config_classes", "mypackage"]
    mine = ["--model.encoder", "mypackage.Mine", "--model.encoder.in_channels", "1"]
    short = ["--config", str(QUICK), "--run_dir", "run", "--trainer.max_steps", "1"]
    trained, error = status("train.py", *DIGITS, *short, *mine, *trust)
    assert trained == 0, error
    encoder = read_checkpoint(bench.last)["hyper_parameters"]["encoder"]
    assert encoder["class_path"] == "mypackage.Mine"
    for flag, expected in (([], 2), (trust, 0)):
        evaluated, error = status("eval.py", "run", "--probes", "knn", *flag)
        assert evaluated == expected, error


@row(38, "archive that reaches outside its folder, wrong checksum")
def _(bench: Bench) -> None:
    import hashlib
    import io
    import tarfile

    archive = bench.folder / "data" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    options = [
        "--data",
        "CIFAR10",
        "--data.root",
        "data",
        "--data.download",
        "true",
        "--model.encoder.in_channels",
        "3",
    ]
    # early versions of Python 3.10 and 3.11 have no safe way to unpack, and unpack nothing
    safe = hasattr(tarfile, "data_filter")
    because = "which is outside the destination" if safe else "cannot unpack a tar archive safely"
    for name, link in (("../outside", None), ("link", "../../outside")):
        with tarfile.open(archive, "w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            tar.addfile(info, io.BytesIO())
        with bench.patch.context() as patch:  # as if the publisher's own archive did that
            patch.setattr(
                "torchvision.datasets.CIFAR10.tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest()
            )
            bench.refused(*options, because=because)
    # a checksum that is wrong: the file is fetched again, which the address makes impossible here
    bench.patch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/none.tar.gz")
    bench.refused(*options, because="could not be downloaded to --data.root data")


@row(39, "one of two processes raises")
def _(bench: Bench) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
    for rank in ("0", "1"):
        outcome = bench.process(f"rank-raises {rank}", *two)
        assert outcome.status != 0 and outcome.text.count(f"RuntimeError: the fault of rank {rank}") == 1, (
            outcome.text
        )
        assert outcome.text.count("Traceback") == 1 and "Connection" not in outcome.text, outcome.text


@row(40, "no GPU, half precision on a CPU, logger not installed, port in use")
def _(bench: Bench) -> None:
    if not torch.cuda.is_available():
        bench.refused(
            "--trainer.accelerator", "gpu", because="--trainer.accelerator gpu: there is no GPU here"
        )
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        assert bench.train("--trainer.precision", "16-mixed", "--trainer.max_steps", "1").status == 0
    shutil.rmtree(bench.folder / "run")
    bench.refused("--trainer.logger", "lightning.pytorch.loggers.WandbLogger", because="Requirement 'wandb")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
        outcome = bench.process("none", *two, MASTER_PORT=port, MASTER_ADDR="127.0.0.1")
    assert (
        outcome.status == 2
        and f"error: port {port} is in use" in outcome.error
        and "Traceback" not in outcome.text
    )


@row(41, "one of two processes is killed")
def _(bench: Bench) -> None:
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "128"]
    for moment, status, how in (("1", 2, "is gone"), ("1:start", 1, "was ended by SIGKILL")):
        outcome = bench.process(f"rank-killed {moment}", *two)
        shutil.rmtree(bench.folder / "run")
        told = [line for line in outcome.text.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and re.match(rf"error: rank 1 \(process \d+ on .+\) {how}: ", told[0]), told
        assert outcome.status == status and "Traceback" not in outcome.text, outcome.text


@row(42, "config.yaml or environment.json empty after a power cut")
def _(bench: Bench) -> None:
    assert bench.train().status == 0
    bench.last.with_name("previous.ckpt").replace(bench.last)
    config = (bench.folder / "run" / "config.yaml").read_bytes()
    for name in ("config.yaml", "environment.json"):
        (bench.folder / "run" / name).write_bytes(b"")
    outcome = bench.train()
    warnings = [line.partition(": kept")[0] for line in outcome.error.splitlines()]
    assert warnings == [
        "warning: run/config.yaml is damaged",
        "warning: run/environment.json is damaged",
    ]
    assert outcome.status == 0 and read_checkpoint(bench.last)["global_step"] == STEPS
    assert (bench.folder / "run" / "config.yaml").read_bytes() == config


@row(43, "statistics of batch norm overflow")
def _(bench: Bench) -> None:
    assert bench.train().status == 0
    bench.last.with_name("previous.ckpt").replace(bench.last)

    def overflow(module: Any, batch: Any) -> Any:
        next(b for n, b in module.named_buffers() if n.endswith("running_var")).fill_(float("inf"))
        return original(module, batch)

    original = SimCLR.losses
    with bench.patch.context() as patch:
        patch.setattr(SimCLR, "losses", overflow)
        outcome = bench.train()
    assert outcome.status == 2 and "running_var of SimCLR is not finite after step 8" in outcome.error
    bench.goes_on(STEPS // 2)


@row(44, "--run_dir is an address")
def _(bench: Bench) -> None:
    for name in ("s3://bucket/run", "a::b"):
        bench.refused(run=name, because=f"--run_dir {name}: expected a folder on this machine")
