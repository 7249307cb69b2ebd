"""``--compile true``: the encoder's training steps by torch.compile, and nothing else changes."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from lightning.pytorch.strategies import FSDPStrategy

from datamodules.errors import ConfigError
from runtime.checkpoints import read_checkpoint
from runtime.compiling import CompileEncoder
from runtime.folder import difference
from runtime.messages import ROOT
from tests.conftest import build
from tests.resume import BATCHES, check, run, three_runs

SIMCLR = "configs/digits/simclr.yaml"
COMPILE = ["--compile", "true"]
ONE_EPOCH = ["--trainer.max_epochs", "1"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SSL_RUN_DIR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(ROOT)
    yield
    torch.compiler.reset()
    torch.compiler.set_stance("default")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each compiled call, whether it was part of training; what is compiled runs as torch runs it."""
    calls: list[bool] = []

    def backend(graph: Any, examples: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return graph(*args)

        return call

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return calls


@pytest.mark.parametrize("config", (SIMCLR, pytest.param("configs/digits/mae.yaml", marks=pytest.mark.slow)))
def test_training_steps_are_compiled_and_nothing_else_changes(
    config: str, tmp_path: Path, traced: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the batches of the online probe are, without gradients; no validation and no evaluation is. MAE
    calls the blocks of its encoder, not the encoder as a whole.
    """
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    expected = run(config, plain, ONE_EPOCH)
    assert traced == []
    assert run(config, compiled, [*ONE_EPOCH, *COMPILE, "--evaluate", "true"]) == expected
    blocks = 4 if config.endswith("mae.yaml") else 1
    step = [True] * blocks + [False]
    assert traced == [True, *step * BATCHES]  # the first is the trial before the run
    torch.compile(torch.sin)(torch.zeros(2))
    assert len(traced) == 2 + len(step * BATCHES), "other code is no longer compiled"
    one, two = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (plain, compiled))
    assert list(one["state_dict"]) == list(two["state_dict"])
    assert yaml.safe_load((compiled / "config.yaml").read_text())["compile"] is True
    capsys.readouterr()
    assert run(config, compiled, ONE_EPOCH)[0] == 2
    assert capsys.readouterr().err == (
        f"error: --run_dir {compiled} contains a run with another configuration (compile: True there, False "
        "now): repeat its options to resume it, or choose another folder\n"
    )


def test_a_run_from_before_the_option_is_resumed() -> None:
    assert difference({"model": {"lr": 1}}, {"model": {"lr": 1}, "compile": False}) == []
    assert difference({"model": {"lr": 1}}, {"model": {"lr": 1}, "compile": True}) == [
        "compile: False there, True now"
    ]


def test_sharded_weights_are_refused() -> None:
    """torch.compile would fail in the first backward pass, with the sizes of a shard and of its weights."""
    with pytest.raises(ConfigError) as told:
        CompileEncoder().setup(cast(Any, Namespace(strategy=FSDPStrategy())), build(SIMCLR)[0], "fit")
    assert str(told.value) == (
        "--compile true does not work with FSDP: train without --compile, or give --trainer.strategy ddp"
    )


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert run(SIMCLR, tmp_path / "run", COMPILE) == (2, [])
    assert capsys.readouterr().err == (
        "error: --compile true: torch.compile does not work here (InvalidCxxCompiler: No working C++ "
        "compiler found in torch._inductor.config.cpp.cxx: (None, 'no-such-compiler')): install what is "
        "missing, such as a C++ compiler, or train without --compile\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_compiled_run_is_resumed_exactly(tmp_path: Path) -> None:
    """With compiled code: a stopped and resumed run equals the undisturbed one, bit for bit."""
    check(three_runs(SIMCLR, tmp_path, COMPILE), tmp_path, stopped_after=3)
    assert run(SIMCLR, tmp_path / "plain", [])[0] == 0
    weights = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("plain", "whole")
    ]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
