"""``eval.py labels``: the draws, the interpolation, the count of duplicates, and a continued table."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eval as script
import train
from datamodules import Digits
from datamodules.errors import ConfigError
from datamodules.images.module import ArrayDataset
from evaluation import label_budgets
from evaluation.commands import labels as command
from evaluation.duplicates import count_duplicates
from evaluation.label_budgets import BUDGETS, Budget, draw, equal_labels, steps_with, verdict
from runtime.messages import ROOT

LABELS = torch.tensor([0] * 30 + [1] * 10 + [-1] * 5)


def test_draws_are_stratified_and_the_same_for_every_row() -> None:
    rows = draw(LABELS, Budget(per_class=5), seed=1)
    assert rows is not None and torch.equal(rows, draw(LABELS, Budget(per_class=5), seed=1))  # type: ignore[arg-type]
    assert LABELS[rows].bincount().tolist() == [5, 5] and rows.unique().equal(rows)
    other = draw(LABELS, Budget(per_class=5), seed=2)
    assert other is not None and not torch.equal(rows, other)
    tenth = draw(LABELS, Budget(share=0.1), seed=0)
    assert tenth is not None and LABELS[tenth].bincount().tolist() == [3, 1]
    whole = draw(LABELS, Budget(share=1.0), seed=0)
    assert whole is not None and whole.tolist() == list(range(40))
    assert draw(LABELS, Budget(per_class=11), seed=0) is None


def test_runs_with_other_seeds_have_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """So their scores can be averaged; within a run, all rows of a draw have the same labels and seed."""
    called: list[tuple[list[int], int]] = []

    def score(self: Any, row: str, rows: torch.Tensor, seed: int) -> float:
        called.append((rows.tolist(), seed))
        return 0.0

    monkeypatch.setattr(command._Tasks, "_score", score)
    for run_seed in (0, 3):
        tasks = command._Tasks.__new__(command._Tasks)
        tasks.run, tasks.done, tasks.features = SimpleNamespace(seed=run_seed), {}, {"bank": {}}  # type: ignore[assignment]
        tasks.labels = {"bank": LABELS}
        for row in ("scratch", "fine-tuned"):
            tasks.score(row, Budget(per_class=5), 1)
    assert [seed for _, seed in called] == [1, 1, 3001, 3001]
    assert called[0] == called[1] != called[2] == called[3]
    assert called[0][0] != called[2][0]


def test_the_number_of_labels_is_interpolated_in_its_logarithm() -> None:
    curve = {10: 0.5, 1000: 0.9}
    assert equal_labels(curve, 0.7) == pytest.approx(100)
    assert equal_labels(curve, 0.9) == pytest.approx(1000)
    assert (
        equal_labels(curve, 0.4) == 10 and equal_labels(curve, 0.95) is None and equal_labels({}, 0.5) is None
    )


@pytest.mark.parametrize(
    ("tuned", "sentence"),
    [
        (
            0.8,
            "fine-tuning from this run with 10% of the labels (0.800) equals training from scratch with 32%",
        ),
        (
            0.95,
            "fine-tuning from this run with 10% of the labels (0.950) equals training from scratch with more "
            "than 100 %",
        ),
        (
            0.7,
            "no gain seen: with 10% of the labels fine-tuning from this run has 0.700, training from scratch "
            "0.700",
        ),
    ],
)
def test_the_verdict(tuned: float, sentence: str) -> None:
    table = {"scratch": {"10%": [0.6, 0.8], "100%": [0.9]}, "fine-tuned": {"10%": [tuned], "100%": [0.9]}}
    assert verdict(table, {"10%": 100, "100%": 1000}) == sentence


def test_duplicates_are_counted() -> None:
    """Of four test images one is equal to a training image, one is the same but for a pixel's last bit."""
    data = Digits()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 8, 8, 1), dtype=np.uint8)
    test = rng.integers(0, 255, (4, 8, 8, 1), dtype=np.uint8)
    test[0], test[1] = images[3], images[5]
    test[1, 0, 0, 0] ^= 1
    data._datasets = {"train": ArrayDataset(images, np.zeros(20)), "test": ArrayDataset(test, np.zeros(4))}
    assert count_duplicates(data, data) == {"exact": 1, "near": 2, "train": 20, "test": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = ["--config", str(ROOT / "configs/digits/simclr.yaml"), f"--run_dir={folder}", "--evaluate=false"]
    given += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        assert train.main(given) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["labels"], "interrupted; the same command continues\n"),
        (["features", "features.npz"], "interrupted\n"),
    ],
)
def test_ctrl_c_is_one_line(
    arguments: list[str],
    line: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    name, *more = arguments
    monkeypatch.setattr(f"evaluation.commands.{name}.embed_split", interrupted)
    assert script.main([name, str(run), *more]) == 130
    assert capsys.readouterr().err == line


@pytest.mark.slow
def test_a_table_that_goes_on_where_it_ended(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (Budget(per_class=20), Budget(per_class=500), Budget(share=0.1), Budget(share=1.0))
    monkeypatch.setattr(command, "BUDGETS", few)
    monkeypatch.setattr(label_budgets, "MOST", 3)
    assert script.main(["labels", str(run), "--draws=2"]) == 0
    told = capsys.readouterr().out
    assert "left out: 500 per class: a class has too few labeled training samples" in told
    assert "of 360 test samples 0 are among 1077 pre-training samples, 0 nearly" in told
    report = json.loads((run / "labels.json").read_text())
    assert report["labels"] == {"20 per class": 200, "10%": 109, "100%": 1077}
    assert list(report["scores"]) == list(command.ROWS)
    assert all(len(values) == 2 for row in report["scores"].values() for values in row.values())
    linear = report["scores"]["frozen pre-trained"]
    assert linear["100%"][0] == linear["100%"][1] > linear["20 per class"][0] > 0.5
    assert (run / "labels.png").is_file() and report["verdict"] in told

    whole = copy.deepcopy(report["scores"])
    report["scores"]["scratch"]["10%"].pop()  # as if it had been ended there
    (run / "labels.json").write_text(json.dumps(report))
    done: list[Any] = []
    original = command._Tasks.score

    def score(self: Any, *task: Any) -> float:
        done.append(task)
        return original(self, *task)

    monkeypatch.setattr(command._Tasks, "score", score)
    assert script.main(["labels", str(run), "--draws=2"]) == 0
    assert done == [("scratch", Budget(share=0.1), 1)]
    assert json.loads((run / "labels.json").read_text())["scores"] == whole
    capsys.readouterr()
    assert script.main(["labels", str(run), "--draws=3"]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}/labels.json contains results of other settings, weights or files, or of another "
        "version: give --overwrite to replace it, or those settings\n"
    )


def test_the_trained_module_stays_as_it_is(run: Path) -> None:
    """Every draw begins from the same weights."""
    from runtime.checkpoints import load_module

    module, data = load_module(run / "checkpoints/last.ckpt"), Digits()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    rows = draw(torch.as_tensor(data.dataset("bank").labels), BUDGETS[0], 0)  # type: ignore[attr-defined]
    assert rows is not None
    labels = torch.as_tensor(data.dataset("bank").labels)[rows]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_budgets, "FEWEST", 60)
        scores = label_budgets.train_classifier(module, data, rows, labels, 10, 1e-2, 0, torch.device("cpu"))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    x = label_budgets.samples(data, "bank", rows.tolist(), torch.device("cpu"))
    assert (scores(x).argmax(1) == labels).float().mean() > 0.8


def test_scratch_begins_from_random_weights_and_fine_tuning_from_the_trained(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two draws from scratch begin from different weights, as two seeds do. Columns that have the same draws
    are trained once, and probes on all labels are fitted once. Without a terminal, lines tell how far it is.
    """
    from runtime.checkpoints import load_module

    starts: list[torch.Tensor] = []

    def note(module: Any, *rest: Any) -> Any:
        starts.append(next(module.feature_encoder.parameters()).detach().clone())
        return lambda x: torch.zeros(len(x), 10)

    budgets = (Budget(per_class=1), Budget(share=0.01), Budget(share=0.1), Budget(share=1.0))
    monkeypatch.setattr(command, "BUDGETS", budgets)
    monkeypatch.setattr(command, "train_classifier", note)
    fitted: list[int] = []

    def count(train: tuple[torch.Tensor, torch.Tensor], *rest: Any) -> float:
        fitted.append(len(train[1]))
        return 0.5

    monkeypatch.setattr(command, "linear_score", count)
    monkeypatch.setattr(command, "PAUSE", 0)
    assert script.main(["labels", str(run), "--draws=2", "--overwrite"]) == 0
    told = re.findall(r"^labels: (.*) after \d+ s; the last: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [share for share, _ in told] == [f"{n} of 40 scores" for n in range(1, 41)]
    assert [told[0][1], told[39][1]] == ["scratch, 1 per class, draw 1", "fine-tuned, 100%, draw 2"]
    trained = next(load_module(run / "checkpoints/last.ckpt").feature_encoder.parameters())
    assert [torch.equal(start, trained) for start in starts] == 3 * [False, False, True, True]
    assert not torch.equal(starts[0], starts[1])
    assert fitted == 3 * [10, 10] + 3 * [109, 109] + 3 * [1077]
    scores = json.loads((run / "labels.json").read_text())["scores"]
    assert all(row["1 per class"] == row["1%"] for row in scores.values())


def test_results_of_another_protocol_are_not_continued(tmp_path: Path) -> None:
    target = tmp_path / "labels.json"
    settings = {"draws": 1}
    begun = command._begin(target, settings, overwrite=True)
    target.write_text(json.dumps(begun | {"scores": {"scratch": {"10%": [0.5]}}}))
    assert command._begin(target, settings, overwrite=False)["scores"] == {"scratch": {"10%": [0.5]}}
    target.write_text(json.dumps(begun | {"protocol": begun["protocol"] | {"training": "longer"}}))
    with pytest.raises(ConfigError, match="contains results of other settings, weights or files"):
        command._begin(target, settings, overwrite=False)


@pytest.mark.slow
def test_results_are_of_these_weights_and_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A moved run continues; with other files of the same kind, or after further training, it does not."""
    asked: list[str] = []

    def score(self: Any, row: str, *rest: Any) -> float:
        asked.append(row)
        return 0.5

    monkeypatch.setattr(command, "BUDGETS", (Budget(per_class=1), Budget(share=0.1), Budget(share=1.0)))
    monkeypatch.setattr(command._Tasks, "score", score)
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        for i in range(60):
            target = tmp_path / folder / "train" / str(i % 2) / f"{folder}{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(target)
    copy_of_run = tmp_path / "run"
    shutil.copytree(run, copy_of_run)
    own = ["--data", "ImageFolder", "--data.image_size=8", "--data.channels=1", "--data.mean=[0.5]"]
    own += ["--data.std=[0.5]", "--draws=1"]

    def labels(folder: Path, files: str, *more: str) -> int:
        asked.clear()
        return script.main(["labels", str(folder), *own, f"--data.root={tmp_path / files}", *more])

    assert labels(copy_of_run, "a") == 0 and len(asked) == 15
    shutil.move(copy_of_run, tmp_path / "moved")
    assert labels(tmp_path / "moved", "a", "--data.num_workers=1") == 0 and asked == []
    refused = (
        f"error: {tmp_path}/moved/labels-imagefolder.json contains results of other settings, weights or "
        "files, or of another version: give --overwrite to replace it, or those settings\n"
    )
    capsys.readouterr()
    assert labels(tmp_path / "moved", "b") == 2
    assert capsys.readouterr().err == refused
    content = torch.load(tmp_path / "moved/checkpoints/last.ckpt", weights_only=True)
    next(v for k, v in content["state_dict"].items() if k.endswith("weight")).add_(1)
    torch.save(content, tmp_path / "moved/checkpoints/last.ckpt")
    assert labels(tmp_path / "moved", "a") == 2
    assert capsys.readouterr().err == refused


def test_what_the_training_of_a_row_costs_on_digits() -> None:
    """Samples that pass through the network for a draw, by column."""
    counts = (10, 50, 100, 200, 109, 1077)
    cost = [steps_with(count) * min(label_budgets.BATCH, count) for count in counts]
    assert cost == [2000, 3200, 3200, 3200, 3200, 8624]
    assert steps_with(10**6) == 8000


def test_data_without_labels_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--draws=0"], "error: --draws must be at least 1, got 0\n"),
        (["--lr=0"], "error: --lr must be positive, got 0.0\n"),
    ):
        assert script.main(["labels", str(run), *options]) == 2
        assert capsys.readouterr().err == message


def test_one_draw_is_singular(capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        "scores": {row: {"1 per class": [0.5]} for row in command.ROWS},
        "seconds": {row: {"1 per class": 2.0} for row in command.ROWS},
        "labels": {"1 per class": 10},
        "settings": {"data": "Digits", "draws": 1},
        "verdict": "it",
    }
    command.show(report)
    assert capsys.readouterr().out.split("\n")[0].strip() == "Digits: top-1 on the test split, 1 draw"
