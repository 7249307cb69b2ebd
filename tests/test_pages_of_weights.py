"""The commands of docs/weights.md, docs/comparing.md and docs/did_it_help.md, one after the other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as script
import train
from datamodules import Digits
from evaluation import label_budgets
from evaluation.commands import labels
from evaluation.label_budgets import Budget
from runtime.messages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"]
QUICK += ["--trainer.enable_progress_bar", "false"]


def shown(page: str) -> list[list[str]]:
    """The words of each command behind ``python``."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [shlex.split(line) for line in re.findall(r"^python (.*)$", text, flags=re.MULTILINE)]


def test_each_command_works_as_the_pages_say(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    for words in shown("weights.md"):
        assert words[0] == "train.py"
        assert train.main([*words[1:], *QUICK]) == 0, words
    runs = [Path("runs/first"), Path("runs/longer"), Path("runs/tuned")]
    tuned = sorted(Path("runs").glob("digits-finetune/*"))
    assert [
        json.loads((run / "environment.json").read_text()).get("init_from") is not None for run in runs
    ] == [
        False,
        True,
        True,
    ]
    assert len(tuned) == 2 and all((run / "results.json").is_file() for run in [*runs, *tuned])
    assert {run.name for run in Path("runs").iterdir()} == {"first", "longer", "tuned", "digits-finetune"}

    Path("runs/digits-simclr").symlink_to("digits-finetune")
    comparing = [_two_runs(words) for words in shown("comparing.md")]
    for words in comparing:
        if "--labels" not in words:
            assert script.main(words[1:]) == 0, words
    assert Path("table.md").is_file() and Path("curves.png").is_file()

    monkeypatch.setattr(labels, "BUDGETS", (Budget(share=0.1), Budget(share=1.0)))
    monkeypatch.setattr(label_budgets, "MOST", 2)
    monkeypatch.setattr(label_budgets, "FEWEST", 2)
    dataset = Digits().dataset("test")
    for image, label in zip(dataset.images[:200, ..., 0], dataset.labels[:200], strict=True):  # type: ignore[attr-defined]
        Path(f"DIR/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(
            f"DIR/{label}/{len(list(Path(f'DIR/{label}').iterdir()))}.png"
        )
    Path("RUN").symlink_to("runs/first")
    commands = [words for words in shown("did_it_help.md") if "RUN" in words]
    assert len(commands) >= 2
    for words in commands:
        assert script.main([*words[1:], "--device", "cpu"]) == 0, words
    assert Path("RUN/labels.json").is_file() and Path("RUN/labels-imagefolder.png").is_file()

    assert script.main(["labels", "runs/longer", "--device", "cpu"]) == 0
    (words,) = [words for words in comparing if "--labels" in words]
    assert script.main(words[1:]) == 0, words


def _two_runs(words: list[str]) -> list[str]:
    """``RUN RUN`` becomes two runs."""
    runs = iter(("runs/first", "runs/longer"))
    return [next(runs) if word == "RUN" else word for word in words]
