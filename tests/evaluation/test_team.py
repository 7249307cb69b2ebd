"""Evaluation by several processes: the same numbers as one, failures, and continuing after a kill."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Digits
from datamodules.base import raw_input
from datamodules.errors import DataFileError
from evaluation import extraction, features
from evaluation.extraction import Extraction
from evaluation.features import Means, Rows, extract_features
from evaluation.probes import knn
from evaluation.report import assist, evaluate
from evaluation.team import Team
from tests import pair
from tests.evaluation import teams

CPU = torch.device("cpu")
SIZE = 3


class Table:
    """Where the threads of a team put down what they tell each other."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(SIZE, timeout=60)
        self.words: list[Any] = [None] * SIZE

    def ask(self, rank: int, word: Any) -> list[Any]:
        self.words[rank] = word
        self.barrier.wait()
        words = list(self.words)
        self.barrier.wait()
        return words


class Threads(Team):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, table: Table) -> None:
        self.rank, self.size, self.table = rank, SIZE, table

    def ask(self, word: Any) -> list[Any]:
        return [json.loads(line) for line in self.table.ask(self.rank, json.dumps(word))]

    def gather(self, local: Tensor, rows: int) -> Tensor | None:
        padded = torch.cat([local, local.new_zeros(rows - len(local), *local.shape[1:])])
        parts = self.table.ask(self.rank, padded)
        return torch.cat(parts) if self.rank == 0 else None

    def share(self, rows: Tensor | None, like: Tensor) -> Tensor:
        return self.table.ask(self.rank, rows)[0].split(len(like))[self.rank].clone()

    def spread(self, values: Tensor) -> Tensor:
        return self.table.ask(self.rank, values)[0].clone()


def together(work: Any) -> list[Any]:
    """``work(team)`` on every rank: what each returns or raises."""
    table, results = Table(), [None] * SIZE

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, table))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        (features, ("FULL_PRECISION_UP_TO", "IN_MEMORY_UP_TO")),
        (extraction, ("MANY_SAMPLES",)),
        (knn, ("HALF_ROWS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    teams.everything_is_large()


@pytest.mark.parametrize("many", [False, True])
def test_several_processes_report_what_one_reports(
    many: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """1,077, 360 and 360 samples in batches of 100 by three ranks: every sample once, every number equal."""
    if many:
        request.getfixturevalue("large")
    alone = teams.report_of(Team(), tmp_path)
    (tmp_path / "kept.json").unlink()
    pairs = [teams.networks() for _ in range(SIZE)]
    leader, *others = together(lambda team: teams.report_of(team, tmp_path, pairs[team.rank]))
    assert leader == alone and others == [None] * (SIZE - 1)
    assert alone["failed"] == {} and list(alone["results"]) == ["pretrained", "random_init", "raw_input"]
    assert alone["protocol"]["samples"] == {"bank": 1077, "val": 360, "test": 360}
    assert alone["protocol"].get("precision") == ("bf16-mixed" if many else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json"]


@pytest.mark.slow
def test_two_gloo_processes_report_what_one_reports(tmp_path: Path, large: None) -> None:
    command = [sys.executable, "-m", "tests.evaluation.teams", str(tmp_path)]
    statuses = pair.wait(pair.start([command, command], tmp_path, pair.ROOT), 120)
    assert statuses == [0, 0], pair.said(tmp_path)
    (tmp_path / "kept.json").unlink()
    assert json.loads((tmp_path / "report.json").read_text()) == teams.report_of(Team(), tmp_path)


@pytest.mark.usefixtures("large")
def test_large_splits_are_embedded_one_encoder_after_the_other_in_the_precision_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    real = extraction.extract_features

    def extract(encoders: Any, *rest: Any) -> Any:
        found = real(encoders, *rest)
        asked.append([(name, rows.dtype) for name, (rows, _) in found.items()])
        return found

    monkeypatch.setattr(extraction, "extract_features", extract)
    teams.report_of(Team(), tmp_path, probes=())
    kinds = {"pretrained": torch.bfloat16, "random_init": torch.bfloat16, "raw_input": torch.float16}
    assert asked == [[(name, kind)] for name, kind in kinds.items() for _ in range(3)]


class Failing:
    """A network that fails at its n-th batch."""

    def __init__(self, module: Any, batch: int) -> None:
        self.embed_before, self.left = module.embed, batch

    def __call__(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no\nluck")
        return self.embed_before(x)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("batch", [0, 2])
def test_an_encoder_that_fails_in_one_process_is_left_out_in_all(
    rank: int, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [teams.networks() for _ in range(SIZE)]

    def work(team: Team) -> Any:
        (module, untrained), data = pairs[team.rank], Digits(batch_size=8, synthetic=True)
        if team.rank == rank:
            untrained.embed = Failing(untrained, batch)
        means = Means(team)
        if team.rank:
            return assist(module, untrained, data, CPU, means)
        return evaluate(module, untrained, data, "x.ckpt", probes=("knn",), means=means)

    report, *others = together(work)
    assert report["failed"] == {"features of random_init": "RuntimeError: no luck"}
    assert list(report["results"]) == ["pretrained", "raw_input"] and others == [None] * (SIZE - 1)
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_a_file_ends_the_extraction_in_all_processes(rank: int) -> None:
    def work(team: Team) -> Any:
        data = Digits(batch_size=8, synthetic=True)
        if team.rank == rank:
            data.decode = broken_file  # type: ignore[method-assign]
        return extract_features({"raw": raw_input}, data, "bank", CPU, Means(team))

    errors = together(work)
    assert [(type(e), str(e)) for e in errors] == [(DataFileError, "a.jpg is truncated")] * SIZE


def broken_file(raw: Tensor) -> Tensor:
    raise DataFileError("a.jpg is truncated")


@pytest.mark.usefixtures("large")
def test_an_evaluation_that_was_ended_goes_on_with_the_next_encoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = teams.report_of(Team(), tmp_path, probes=("fewshot",))
    kept = tmp_path / "kept.json"
    kept.unlink()
    embedded: list[str] = []
    real = Extraction.features

    def asked(self: Extraction, names: list[str]) -> Any:
        embedded.extend(names)
        if embedded == ["pretrained", "random_init"]:
            raise KeyboardInterrupt  # as a signal does
        return real(self, names)

    monkeypatch.setattr(Extraction, "features", asked)
    with pytest.raises(KeyboardInterrupt):
        teams.report_of(Team(), tmp_path, probes=("fewshot",))
    assert list(json.loads(kept.read_text())["parts"]["results"]) == ["pretrained"]
    assert teams.report_of(Team(), tmp_path, probes=("fewshot",)) == whole
    assert embedded == ["pretrained", "random_init", "random_init", "raw_input"]
    embedded[:] = ["none"]
    module, untrained = teams.networks()
    evaluate(module, untrained, Digits(), "x.ckpt", probes=("knn",), kept=kept)  # other probes, other data
    assert embedded == ["none", "pretrained", "random_init", "raw_input"]


def test_rows_are_one_array_and_above_a_limit_a_file_without_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[Any, Any]] = []
    real = torch.empty

    def empty(shape: Any, **options: Any) -> Tensor:
        made.append((shape, options.get("dtype")))
        return real(shape, **options)

    monkeypatch.setattr(features, "FULL_PRECISION_UP_TO", 10)
    monkeypatch.setattr(features, "IN_MEMORY_UP_TO", 64)
    monkeypatch.setattr(torch, "empty", empty)
    like = real(0, 4)
    Rows(8, like, tmp_path)
    assert made == [((8, 4), torch.float16)]
    rows = Rows(9, like, tmp_path)
    assert len(made) == 1 and list(tmp_path.iterdir()) == []
    rows.add(torch.ones(9, 4))
    assert rows.values.dtype == torch.float16 and rows.values.sum() == 36
