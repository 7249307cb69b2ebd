"""Accuracy for the same time: options of a run, and the tables of its results."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.same_time import means, options_of, read_lines, tables
from runtime.messages import ROOT


def same_time_line(method: str, seed: int, linear: float, **more: object) -> dict[str, object]:
    key = {"data": "CIFAR-10-JPEG", "images": 10_000, "seconds": 40.0, "batch": 128, "encoder": "conv"}
    scores = {"linear_top1": linear, "knn_top1": 40.0, "fewshot_top1": 30.0}
    return {**key, "method": method, "seed": seed, **scores, **more}


def test_the_table_of_equal_time_has_the_best_method_first_and_the_baselines_last() -> None:
    line = same_time_line
    lines = [line("pixels", 0, 70.0), line("byol", 0, 50.0, steps=100, trained_seconds=39.6)]
    lines += [line("simclr", 0, 52.0, steps=90, trained_seconds=41.0)]
    lines += [line("simclr", 10, 54.0, steps=94, trained_seconds=40.0), line("untrained", 0, 45.0)]
    lines += [line("simclr", 2, 53.0, steps=92, trained_seconds=40.0)]
    assert tables(lines).splitlines() == [
        "CIFAR-10-JPEG: 10,000 training images, 40 seconds of processor time, batch 128, encoder conv",
        "",
        "| method | seeds | steps | seconds | ms per step | linear | kNN | 5-shot |",
        "|---|---|---|---|---|---|---|---|",
        "| simclr | 0, 2, 10 | 92 | 40 | 435 | 53.0 ± 1.0 | 40.0 ± 0.0 | 30.0 ± 0.0 |",
        "| byol | 0 | 100 | 40 | 396 | 50.0 | 40.0 | 30.0 |",
        "| pixels | 0 |  |  |  | 70.0 | 40.0 | 30.0 |",
        "| untrained | 0 |  |  |  | 45.0 | 40.0 | 30.0 |",
    ]


def test_lines_of_equal_time_that_name_no_encoder_have_the_conv_net(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('{"method": "byol"}\n{"method": "ibot", "encoder": "vit"}\n')
    assert [line["encoder"] for line in read_lines(tmp_path / "r")] == ["conv", "vit"]
    assert read_lines(tmp_path / "none") == []


def test_the_means_of_equal_time_have_a_row_for_each_time_and_no_other_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = same_time_line
    lines = [line("pixels", 0, 70.0), line("byol", 0, 50.0), line("barlow_twins", 0, 51.0)]
    lines += [line("byol", 1, 53.0), line("byol", 0, 60.0, seconds=90.0), line("byol, 4 views", 0, 99.0)]
    lines += [line("ibot", 0, 99.0, encoder="vit")]
    assert means(lines).splitlines() == [
        "|  | BYOL | Barlow Twins | pixels |",
        "|---|---|---|---|",
        "| linear, 40 s | 51.5 | 51.0 | 70.0 |",
        "| kNN, 40 s | 40.0 | 40.0 | 40.0 |",
        "| 5-shot, 40 s | 30.0 | 30.0 | 30.0 |",
        "| linear, 90 s | 60.0 |  |  |",
        "| kNN, 90 s | 40.0 |  |  |",
        "| 5-shot, 90 s | 30.0 |  |  |",
    ]
    with pytest.raises(SystemExit) as caught:
        means([*lines, line("byol", 0, 50.0, batch=64)])
    assert caught.value.code == 2
    message = "error: --means needs --results of one data set, number of images and batch size\n"
    assert capsys.readouterr().err == message


def test_readmes_means_of_equal_time_are_those_of_the_results() -> None:
    lines = read_lines(ROOT / "benchmarks" / "results" / "same_time.jsonl")
    assert means(lines) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_counts_of_epochs_keep_their_share_of_a_run_of_equal_time() -> None:
    """DINO's config for Digits has 60 epochs, 5 of them warm-up, 10 until the teacher's last temperature."""
    given = options_of("dino", argparse.Namespace(images=1280, batch=128, encoder="conv"), steps=120, seed=3)
    values = {word: value for word, value in pairwise(given) if word.endswith("_epochs")}
    assert values == {
        "--trainer.max_epochs": "-1",
        "--model.warmup_epochs": "1.0",
        "--model.teacher_temperature_epochs": "2",
        "--model.freeze_last_layer_epochs": "0",
    }
