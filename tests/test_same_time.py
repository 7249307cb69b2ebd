"""Accuracy for the same time: options of a run, and the tables of its results."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.same_time import options_of, read_lines, tables


def test_the_table_of_equal_time_has_the_best_method_first_and_the_baselines_last() -> None:
    def line(method: str, seed: int, linear: float, **more: object) -> dict[str, object]:
        key = {"data": "CIFAR-10-JPEG", "images": 10_000, "seconds": 40.0, "batch": 128, "encoder": "conv"}
        scores = {"linear_top1": linear, "knn_top1": 40.0, "fewshot_top1": 30.0}
        return {**key, "method": method, "seed": seed, **scores, **more}

    lines = [line("pixels", 0, 70.0), line("byol", 0, 50.0, steps=100, trained_seconds=39.6)]
    lines += [line("simclr", 0, 52.0, steps=90, trained_seconds=41.0)]
    lines += [line("simclr", 1, 54.0, steps=94, trained_seconds=40.0), line("untrained", 0, 45.0)]
    assert tables(lines).splitlines() == [
        "CIFAR-10-JPEG: 10,000 training images, 40 seconds of processor time, batch 128, encoder conv",
        "",
        "| method | seeds | steps | seconds | ms per step | linear | kNN | 5-shot |",
        "|---|---|---|---|---|---|---|---|",
        "| simclr | 0, 1 | 92 | 40 | 441 | 53.0 ± 1.4 | 40.0 ± 0.0 | 30.0 ± 0.0 |",
        "| byol | 0 | 100 | 40 | 396 | 50.0 | 40.0 | 30.0 |",
        "| pixels | 0 |  |  |  | 70.0 | 40.0 | 30.0 |",
        "| untrained | 0 |  |  |  | 45.0 | 40.0 | 30.0 |",
    ]


def test_lines_of_equal_time_that_name_no_encoder_have_the_conv_net(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('{"method": "byol"}\n{"method": "ibot", "encoder": "vit"}\n')
    assert [line["encoder"] for line in read_lines(tmp_path / "r")] == ["conv", "vit"]
    assert read_lines(tmp_path / "none") == []


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
