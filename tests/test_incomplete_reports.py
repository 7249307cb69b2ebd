"""Runs whose evaluation is incomplete: everything measurable is reported, the rest is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import eval as eval_command
import train
from runtime.messages import ROOT

CONFIG = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


def results() -> dict[str, Any]:
    return json.loads(Path("run/results.json").read_text())


def test_a_class_with_few_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Reported before training; everything but the few-shot probe is reported, by eval.py as well."""
    rng = np.random.default_rng(0)
    for i, (name, count) in enumerate({"ape": 30, "bee": 20, "cat": 2}.items()):
        for j in range(count):
            Path("images", name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(60 * i, 60 * i + 80, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(f"images/{name}/{j}.png")
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.image_size", "8"]
    data += ["--data.channels", "1", "--data.mean", "[0.5]", "--data.std", "[0.5]", "--data.batch_size", "8"]
    limits = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert train.main([*CONFIG, *QUICK, *data, *limits, "--run_dir", "run"]) == 0
    out = capsys.readouterr().out
    report = results()
    reason = report["left_out"]["fewshot"]
    assert reason.startswith("class 'cat' has ")
    assert reason.endswith(" labeled training samples, but 5 per class are needed")
    said = f"the results will not include the fewshot probe: {reason}\n"
    assert (
        out.index(said)
        < out.index("SimCLR on ImageFolder: accuracy")
        < out.index(f"left out: fewshot: {reason}\n")
    )
    for row in report["results"].values():
        assert set(row) == {"linear_top1", "linear_macro", "knn_top1", "knn_macro"}
    assert eval_command.main(["run", "--device", "cpu"]) == 0
    again = results()
    assert again["results"] == report["results"] and again["left_out"] == report["left_out"]


def test_a_probe_with_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 after the other numbers are written; the same command evaluates again once it is fixed."""
    command = [*CONFIG, *QUICK, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    command += ["--data.synthetic", "true", "--run_dir", "run"]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise IndexError("out of range")

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.probes.knn.knn_votes", broken)
        assert train.main(command) == 1
    captured = capsys.readouterr()
    error = "IndexError: out of range"
    assert captured.err.count("Traceback") == 3 and captured.err.rstrip().endswith(error)
    assert f"failed: knn of pretrained: {error}\n" in captured.out and "run folder:" in captured.out
    encoders = ("pretrained", "random_init", "raw_input")
    assert results()["failed"] == {f"knn of {encoder}": error for encoder in encoders}
    assert "linear_top1" in results()["results"]["pretrained"]
    assert train.main(command) == 0
    assert "is finished" not in capsys.readouterr().out
    assert results()["failed"] == {} and "knn_top1" in results()["results"]["pretrained"]
    assert train.main(command) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_logger_that_fails_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("runtime.loggers.TensorBoardLogger.log_hyperparams", broken)
    command = [*CONFIG, *QUICK, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert train.main([*command, "--data.synthetic", "true", "--run_dir", "run"]) == 1
    assert "failed: TensorBoardLogger: ConnectionError: the server is gone\n" in capsys.readouterr().out
    assert results()["failed"] == {"TensorBoardLogger": "ConnectionError: the server is gone"}
    assert "knn_top1" in results()["results"]["pretrained"]
