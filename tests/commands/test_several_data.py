"""eval.py probe with several data sets: their files, and one table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.eval_main import data_sets
from tests.commands.calls import error_of, evaluate

pytestmark = pytest.mark.usefixtures("clean_environment")


def folder(name: str, digits: tuple[np.ndarray, np.ndarray], first: int) -> list[str]:
    """Digits as a folder, and the options for it."""
    for i in range(first, first + 100):
        Path(f"{name}/{digits[1][i]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[0][i]).save(f"{name}/{digits[1][i]}/{i}.png")
    return ["--data", "ImageFolder", "--data.root", name]


def test_several_data_sets_are_one_table(
    run: Path, digits: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "Digits", *folder("one", digits, 0), *folder("two", digits, 100)]
    assert evaluate("probe", run, "--probes", "knn", *data) == 0
    out = capsys.readouterr().out
    table = out[out.rindex("accuracy on the test split") :]
    expected = []
    for name in ("digits", "imagefolder", "imagefolder-2"):
        results = json.loads((run / f"results-{name}.json").read_text())["results"]
        assert list(results) == ["pretrained", "random_init", "raw_input"]
        expected += [
            (f"{name}: {e}", f"{row['knn_top1']:.3f}", f"{row['knn_macro']:.3f}")
            for e, row in results.items()
        ]
    assert re.findall(r"│\s+?(\S+: \S+)\s+│ (\d\.\d+) │ (\d\.\d+) │", table) == expected
    samples = [json.loads(p.read_text())["protocol"]["samples"] for p in sorted(run.glob("results-im*.json"))]
    assert samples == [{"bank": 72, "val": 8, "test": 20}] * 2


def test_options_belong_to_the_data_set_before_them() -> None:
    words = ["--data.batch_size", "8", "--data", "A", "--data.root", "a", "--data=B", "--data.size", "3"]
    assert data_sets(words) == [
        ["--data.batch_size", "8", "--data", "A", "--data.root", "a"],
        ["--data.batch_size", "8", "--data=B", "--data.size", "3"],
    ]
    assert data_sets(["--data.root", "a"]) == [["--data.root", "a"]] and data_sets([]) == [[]]


def test_what_several_data_sets_do_not_go_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "Digits", "--data", "Digits"]
    assert error_of(capsys, "features", run, "f.npz", *data) == (
        "error: features reads one data set, but --data is given 2 times\n"
    )
    assert error_of(capsys, "probe", run, "--output", "r.json", *data) == (
        "error: --output names one file, but --data is given 2 times: leave it out\n"
    )
