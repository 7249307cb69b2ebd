"""benchmarks/gpu.py without a GPU: which items it runs, in which order, beside what, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from runtime.messages import ROOT

ITEM = """
import os, sys, time
print(*sys.argv[1:], flush=True)
sys.stdout.buffer.write(bytes([255, 10]))  # no UTF-8
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""
EXPECTED = {"views": 60, "long": 61}  # seconds
Call = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Runs the script on items (name -> place, seconds, status, options); returns its lines of results."""
    (tmp_path / "item.py").write_text(ITEM)
    (tmp_path / "pids").mkdir()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(gpu, "origin", lambda script: {})
    monkeypatch.setattr(gpu, "find_data", lambda given, runs: (given.name, []))
    results = tmp_path / "gpu.jsonl"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []

    def go(
        items: dict[str, tuple[Any, ...]], data: str = "CIFAR-10", options: str = ""
    ) -> list[dict[str, Any]]:
        made = {}
        for name, (place, seconds, status, *more) in items.items():
            command = f"{tmp_path}/item.py {tmp_path}/pids/{name} {seconds} {status} {' '.join(more)}"
            made[name] = gpu.Item(EXPECTED.get(name, 0), command.strip(), place)
        monkeypatch.setattr(gpu, "ITEMS", made)
        given = ["gpu.py", "--data", data, "--results", str(results), "--items", *made, *options.split()]
        monkeypatch.setattr(sys, "argv", given)
        before = len(lines())
        gpu.main()
        return lines()[before:]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield go
    for number, handler in handlers.items():
        signal.signal(number, handler)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["item"] for row in rows]


def test_an_item_runs_once_and_one_that_reads_images_once_for_each_data_set(call: Call) -> None:
    items = {"gate": ("beside", 0, 0, "--data DATA"), "profile": ("alone", 0, 0)}
    first = call(items)
    kept = ("item", "data", "status", "disturbed", "device")
    assert [tuple(row[key] for key in kept) for row in first] == [
        ("gate", "CIFAR-10", 0, False, "a GPU"),
        ("profile", None, 0, False, "a GPU"),
    ]
    assert names(call(items)) == []
    assert names(call(items, "CIFAR-10-JPEG")) == ["gate"]


def test_items_that_failed_are_tried_after_the_others(call: Call) -> None:
    """One whose time was not enough, or that was stopped with the script, is not among them."""
    call({"wrong": ("alone", 0, 1), "short": ("alone", 0, gpu.UNFINISHED)})
    items = {name: ("alone", 0, 0) for name in ("wrong", "short", "new")}
    assert names(call(items)) == ["short", "new", "wrong"]


def test_accuracies_are_measured_beside_the_item_that_needs_the_cores(call: Call) -> None:
    items = {"views": ("cores", 1, 0), "profile": ("alone", 0, 0), "long": ("beside", 0, 0)}
    items["gate"] = ("beside", 0, 0)
    rows = call(items)
    disturbed = {row["item"]: row["disturbed"] for row in rows}
    assert disturbed == {"gate": True, "views": True, "profile": False, "long": False}
    assert {row["item"]: "--disturbed other items" in row["output"] for row in rows} == disturbed
    assert names(rows)[2:] == ["profile", "long"]


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_stopped_script_ends_its_items_and_keeps_their_output(call: Call, number: int) -> None:
    pids = Path(gpu.RUNS).parent / "pids"

    def interrupt() -> None:
        while not all((pids / name).is_file() for name in ("views", "gate")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stopped:
        call({"views": ("cores", 60, 0), "gate": ("beside", 60, 0)})
    assert stopped.value.code == 128 + number
    rows = [json.loads(line) for line in (pids.parent / "gpu.jsonl").read_text().splitlines()]
    assert sorted((row["item"], row["status"]) for row in rows) == [("gate", -9), ("views", -9)]
    assert all(str(pids) in row["output"] for row in rows)
    for name in ("views", "gate"):
        with pytest.raises(ProcessLookupError):
            os.kill(int((pids / name).read_text()), 0)


def test_the_words_of_a_command() -> None:
    """With the variables before it; one that reads images ends 20 seconds before it would be killed."""
    read = gpu.Item(0, "A=1 B=2 cifar10.py --data DATA --lr 0.06")
    script = str(ROOT / "benchmarks" / "cifar10.py")
    expected = ["env", "A=1", "B=2", sys.executable, script, "--data", "/images", "--lr", "0.06"]
    assert gpu.words(read, Path("/images"), 320, False) == [*expected, "--minutes", "5.0"]
    tests = gpu.Item(0, "pytest tests/test_cuda.py -m gpu")
    assert gpu.words(tests, Path("/images"), 320, False) == [
        sys.executable,
        "-m",
        *tests.command.split(),
    ]


def test_the_kernels_are_those_of_all_files_with_gpu_tests() -> None:
    """pytest collects no others: a module that needs a missing package would end it."""
    marked = [
        f"tests/{path.relative_to(ROOT / 'tests')}"
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    given = [word for word in gpu.ITEMS["kernels"].command.split() if word.endswith(".py")]
    # two have them in strings
    assert sorted(given) == sorted(set(marked) - {"tests/test_gpu_checks.py", "tests/test_gpu_script.py"})
