"""An evaluation by two processes, for tests/evaluation/test_team.py: ``python -m tests.evaluation.teams
FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from datamodules import Digits
from evaluation import extraction, features
from evaluation.features import Means
from evaluation.probes import knn
from evaluation.report import assist, evaluate
from evaluation.team import Team
from runtime.peers import leave_together
from tests.conftest import build

CPU = torch.device("cpu")


def everything_is_large() -> None:
    """Each limit below what Digits has: half precision, one encoder after the other, blocks, a file."""
    features.FULL_PRECISION_UP_TO = features.IN_MEMORY_UP_TO = extraction.MANY_SAMPLES = 1000
    knn.HALF_ROWS = 300


def networks() -> tuple[Any, Any]:
    """Two untrained SimCLRs, always the same."""
    torch.manual_seed(0)
    return build("configs/digits/simclr.yaml")[0], build("configs/digits/simclr.yaml")[0]


def report_of(
    team: Team, folder: Path, pair: tuple[Any, Any] | None = None, probes: tuple[str, ...] = ("linear", "knn")
) -> dict[str, Any] | None:
    """Of an untrained SimCLR on Digits, whose splits fill no whole number of batches; None on other ranks."""
    module, untrained = pair or networks()
    data = Digits(batch_size=100)
    means = Means(team, "bf16-mixed", folder)
    if team.rank:
        assist(module, untrained, data, CPU, means)
        return None
    return evaluate(module, untrained, data, "x.ckpt", probes, means=means, kept=folder / "kept.json")


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    everything_is_large()
    report = report_of(Team(together=True), folder)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))
    leave_together(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
