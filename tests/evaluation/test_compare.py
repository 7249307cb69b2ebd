"""``eval.py compare``: differing options, scores, and separate columns for different protocols."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import eval as script
from evaluation.curves import _number


def make_run(folder: Path, linear: float | None, seed: int = 0, model: Any = None, **protocol: Any) -> None:
    """A run folder with a curve of two points, ten seconds apart."""
    folder.mkdir(parents=True)
    options = {"temperature": 0.2, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}
    config = {
        "seed_everything": seed,
        "model": model or {"class_path": "SimCLR", "init_args": options},
        "data": {"class_path": "Digits", "init_args": {"root": str(folder)}},
        "trainer": {"max_epochs": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with SummaryWriter(str(folder)) as writer:
        for step, value in ((10, 0.5), (20, (linear or 0.5) - 0.1)):
            writer.add_scalar("val/linear_top1", value, step, walltime=1000.0 + step)
    (folder / "environment.json").write_text(json.dumps({"hardware": {"cpu": "chip", "gpus": []}}))
    if linear is not None:
        measured = {"linear_l2": linear, "linear_l2_by_encoder": {}, "seed": seed, "knn_k": 20, **protocol}
        rows = {"pretrained": {"linear_top1": linear}, "raw_input": {"linear_top1": 0.1}}
        results = {"method": "SimCLR", "data": "Digits", "protocol": measured, "results": rows}
        (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seeds of one setting, and one of another, below a folder."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/a", 0.8)
    make_run(tmp_path / "runs/b", 0.9, seed=1)
    other = {"class_path": "SimCLR", "init_args": {"temperature": 0.5}}
    make_run(tmp_path / "runs/c", 0.95, model=other)
    return tmp_path


def test_seeds_become_mean_and_deviation(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "runs/*", "--sort=test/linear_top1", "--output=table.md", "--plot=curves.png"]
    assert script.main(given) == 0
    assert (runs / "table.md").read_text() == (
        "| run | model.temperature | val/linear_top1 | test/linear_top1 | minutes |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| runs/c | 0.5 | 0.850 | 0.950 | 0.167 |\n"
        "| runs/a (2 seeds) | 0.2 | 0.750 ± 0.071 | 0.850 ± 0.071 | 0.167 ± 0.000 |\n"
    )
    told = capsys.readouterr().out
    assert "│ runs/c           │ " in told  # names are aligned at the left
    assert "0.850 ± 0.071" in told and "note" not in told and told.endswith("written: curves.png\n")
    with Image.open("curves.png") as picture:
        assert picture.size == (1120, 444) and len(set(picture.getdata())) > 3


def test_columns_are_chosen(runs: Path) -> None:
    given = ["compare", "runs/a", "runs/c", "--columns=test/linear_top1", "--output=table.csv"]
    assert script.main(given) == 0
    assert (runs / "table.csv").read_text() == "run,test/linear_top1\nruns/a,0.800\nruns/c,0.950\n"


def test_different_protocols_have_columns_of_their_own(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "runs/d", 0.7, linear_l2_grid=[1])
    assert script.main(["compare", "runs/a", "runs/d", "--output=table.csv"]) == 0
    assert capsys.readouterr().out.startswith(
        "note: linear_l2_grid in the protocol of linear differs (null in runs/a; [1] in runs/d): do not "
        "compare these scores\n"
    )
    assert (runs / "table.csv").read_text() == (
        "run,val/linear_top1,test/linear_top1 [A],test/linear_top1 [B],minutes\n"
        "runs/a,0.700,0.800,-,0.167\n"
        "runs/d,0.600,-,0.700,0.167\n"
    )


def test_a_protocol_matters_to_the_scores_that_depend_on_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third run has one probe, another text about a baseline, and the spelling of an early version."""
    make_run(runs / "runs/d", 0.7, seed=2, standardise=True, raw_input="pixels", layers="a mean")
    for name, k in (("a", 20), ("b", 10)):
        file = runs / f"runs/{name}/results.json"
        results = json.loads(file.read_text())
        results["protocol"] |= {"standardize": True, "raw_input": "images", "knn_k": k}
        results["results"]["pretrained"]["knn_top1"] = 0.6
        file.write_text(json.dumps(results))
    assert script.main(["compare", "runs/a", "runs/b", "runs/d", "--output=table.csv"]) == 0
    note, below = capsys.readouterr().out.split("\n")[:2]
    assert note == (
        "note: knn_k in the protocol of knn differs (20 in runs/a; 10 in runs/b): do not compare these scores"
    )
    assert below.strip() == "3 runs"
    assert (runs / "table.csv").read_text() == (
        "run,val/linear_top1,test/linear_top1,test/knn_top1 [A],test/knn_top1 [B],minutes\n"
        "runs/a (3 seeds),0.700 ± 0.100,0.800 ± 0.100,0.600 (1 of 3),0.600 (1 of 3),0.167 ± 0.000\n"
    )


def test_each_seed_counts_once(runs: Path) -> None:
    make_run(runs / "runs/d", 0.7)
    assert script.main(["compare", "runs/a", "runs/b", "runs/d", "--output=table.csv"]) == 0
    assert (runs / "table.csv").read_text() == (
        "run,val/linear_top1,test/linear_top1,minutes\n"
        "runs/a (2 seeds),0.750 ± 0.071,0.850 ± 0.071,0.167 ± 0.000\n"
        "runs/d,0.600,0.700,0.167\n"
    )


def test_one_run_is_singular(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["compare", "runs/a"]) == 0
    assert capsys.readouterr().out.split("\n")[0].strip() == "1 run"


def add_probes(folder: Path, attentive: float, sgd: float | None = None, steps: int = 500) -> None:
    """Scores of ``eval.py probe --head attentive`` and ``--protocol sgd`` in the results of a run."""
    results = json.loads((folder / "results.json").read_text())
    scores = {"pretrained": {"top1": attentive}, "random_init": {"top1": 0.2}}
    results["head_attentive"] = {**scores, "protocol": {"steps": steps, "seed": 0}}
    if sgd is not None:
        results["sgd_probe"] = {"top1": sgd, "protocol": {"epochs": 10, "seed": 0}}
    (folder / "results.json").write_text(json.dumps(results))


def test_heads_and_the_sgd_probe_have_columns_and_protocols_of_their_own(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_probes(runs / "runs/a", 0.82, sgd=0.7)
    add_probes(runs / "runs/b", 0.86)
    add_probes(runs / "runs/c", 0.99, steps=1000)
    assert script.main(["compare", "runs", "--sort=test/sgd_probe_top1", "--output=table.md"]) == 0
    assert capsys.readouterr().out.startswith(
        "note: steps in the protocol of head_attentive differs (500 in runs/a; 1000 in runs/c): do not "
        "compare these scores\n"
    )
    headings, _, *rows = (runs / "table.md").read_text().splitlines()
    assert headings == (
        "| run | model.temperature | val/linear_top1 | test/linear_top1 | test/sgd_probe_top1 | "
        "test/head_attentive_top1 [A] | test/head_attentive_top1 [B] | minutes |"
    )
    assert rows == [
        "| runs/a (2 seeds) | 0.2 | 0.750 ± 0.071 | 0.850 ± 0.071 | 0.700 (1 of 2) | 0.840 ± 0.028 | - | "
        "0.167 ± 0.000 |",
        "| runs/c | 0.5 | 0.850 | 0.950 | - | - | 0.990 | 0.167 |",
    ]


def test_a_run_without_results_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs / "runs/e", None)
    assert script.main(["compare", "runs"]) == 0
    assert capsys.readouterr().out.startswith("note: runs/e has no results.json: not evaluated\n")


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "SimCLR", "protocol": [], "results": null}'])
def test_results_of_something_else_are_told(
    content: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "runs/a/results.json").write_text(content)
    assert script.main(["compare", "runs", "--columns=test/linear_top1", "--output=table.csv"]) == 0
    assert capsys.readouterr().out.startswith(
        "note: runs/a/results.json was not written by this project, or is damaged: left out\n"
    )
    assert (
        runs / "table.csv"
    ).read_text() == "run,test/linear_top1\nruns/a (2 seeds),0.900 (1 of 2)\nruns/c,0.950\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["empty"],
            "empty: contains no run (no folder with a config.yaml of train.py): expected run folders, or",
        ),
        (
            ["runs/*", "--sort=lr"],
            "there is no column lr: expected one of run, model.temperature, val/linear",
        ),
        (["runs/*", "--output=x.txt"], "--output x.txt: expected a name that ends in .md or .csv"),
        (
            ["runs/*", "--plot=p.png", "--metric=loss"],
            "--metric loss: no run has logged it; they have val/lin",
        ),
        (["runs/*", "--metric=val/loss"], "--metric is what --plot draws: give --plot FILE.png, or leave it"),
        (["runs/*", "--data=Digits"], "compare reads no data and has no option --data"),
        (["broken"], "broken/config.yaml was not written by train.py"),
    ],
)
def test_what_cannot_be_compared(
    options: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "empty").mkdir()
    (runs / "broken").mkdir()
    (runs / "broken/config.yaml").write_text("trainer: {}")
    assert script.main(["compare", *options]) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"error: {message}") and error.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("value", "span", "text"),
    [
        (7.908e-07, 0.31, "0"),
        (0.31415926, 0.31, "0.3142"),
        (0.9861, 0.2, "0.9861"),
        (1e-6, 1e-5, "1e-06"),
        (math.inf, math.inf, "inf"),
    ],
)
def test_numbers_on_an_axis(value: float, span: float, text: str) -> None:
    assert _number(value, span) == text


def add_labels(folder: Path, tenth: list[float], **changed: Any) -> None:
    scores = {"scratch": {"10%": tenth, "100%": [0.9]}, "fine-tuned": {"10%": [0.8], "100%": [0.95]}}
    report = {
        "settings": {"data": "Digits", "draws": len(tenth), "lr": 0.001, "measured_on": str(folder)},
        "protocol": {"draws": "stratified"},
        "scores": scores,
        "labels": {"10%": 100, "100%": 1000},
        "verdict": "equal",
    }
    (folder / "labels.json").write_text(json.dumps({**report, **changed}))


def test_tables_of_labels_are_averaged_over_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_labels(runs / "runs/a", [0.5, 0.7])
    add_labels(runs / "runs/b", [0.6])
    (runs / "runs/c/labels.json").write_text("{")
    assert script.main(["compare", "runs", "--labels", "--output=table.md"]) == 0
    assert (runs / "table.md").read_text() == (
        "| run |  | 10% | 100% |\n"
        "| --- | --- | --- | --- |\n"
        "| runs/a (2 seeds) | scratch | 0.600 ± 0.100 | 0.900 ± 0.000 |\n"
        "| runs/a (2 seeds) | fine-tuned | 0.800 ± 0.000 | 0.950 ± 0.000 |\n"
    )
    assert capsys.readouterr().out.startswith("note: runs/c has no finished labels.json: left out\n")


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": {"scratch": [0.1]}},
        {"scores": {"scratch": {"10%": ["x"]}}},
        {"scores": {"scratch": {"10%": 0.1}}},
        {"labels": None},
        {"settings": []},
    ],
)
def test_no_table_of_labels(runs: Path, damage: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    add_labels(runs / "runs/a", [0.5], **damage)
    assert script.main(["compare", "runs", "--labels"]) == 2
    assert capsys.readouterr().err == (
        "error: no run has a finished labels.json: python eval.py labels RUN writes it\n"
    )


def test_tables_of_labels_that_do_not_belong_together(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_labels(runs / "runs/a", [0.5])
    add_labels(runs / "runs/b", [0.5], protocol={"draws": "by chance"})
    assert script.main(["compare", "runs/a", "runs/b", "--labels"]) == 2
    assert capsys.readouterr().err == (
        'error: draws of labels.json is "stratified" in runs/a and "by chance" in runs/b: repeat one of them '
        "with eval.py labels --overwrite, or leave it out\n"
    )
    assert script.main(["compare", "runs/a", "--labels", "--sort=run"]) == 2
    assert capsys.readouterr().err == "error: --sort is not for --labels: leave one of them out\n"
