"""What needs a GPU, in the order of its worth, for as many minutes as one is there.

    python benchmarks/gpu.py --data DIR --minutes 11

Each item is a command that can be run alone; ``--list`` prints them. An item that has ended well is a line of
``--results`` with its output and is not run again on the same data. One is begun only if the minutes are
likely to be enough; the next call goes on with those that are left, and tries those that failed or took too
long after the others.

torchvision's views need all cores and a part of the GPU: items of which only accuracies count run beside
them if they are likely to end first, the others wait. What Ctrl-C or SIGTERM ends has a line too, and begins
again in its place.

Exit status: 0 all items are recorded, 75 some are not, 2 bad arguments, 3 not run (no GPU).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import RUNS, UNFINISHED, find_data, origin
from benchmarks.parts.rounds import not_run
from runtime.messages import ROOT

KEPT = 100_000  # characters of an item's output
ENDING = 20  # seconds in which pytest lists what failed and what it has not run, before it is killed
RUNNING: set[subprocess.Popen[str]] = set()
GATE = "cifar10_gate.py --data DATA --variants"
CIFAR10 = "cifar10.py --data DATA --methods"
PROFILE = "profile_step.py --method simclr --batch 512"


class Item(NamedTuple):
    """A command, after variables of its environment, and with ``--data DATA`` if it reads images.

    seconds: that it takes on an H100, or that its first part takes: a gate leaves out by itself what would
        not end in time, and cifar10.py goes on in the next call.
    place: "cores" for one that needs them more than the GPU, "beside" for one that may run at the same time.
    """

    seconds: int
    command: str
    place: Literal["alone", "beside", "cores"] = "alone"


ITEMS = {
    # what may explain the missing points: the views, and with CIFAR-10 itself as DATA the files
    "torchvision's views": Item(330, f"{GATE} 'bare, torchvision'", "cores"),
    "record": Item(230, f"{GATE} record --epochs 100", "beside"),
    "gate": Item(60, f"{GATE} bare supervised ours 'supervised, compressed'", "beside"),
    # each test fails after 30 seconds
    "kernels": Item(240, "pytest tests/test_cuda.py -m gpu -n 14 --dist worksteal -v --durations 15"),
    "profile": Item(40, PROFILE),
    "peers": Item(120, "peers.py --rounds 2 --compile"),
    "profile, compiled": Item(90, f"{PROFILE} --compile"),
    "profile, CUDA graphs": Item(90, f"TORCHINDUCTOR_CUDAGRAPHS=1 {PROFILE} --compile"),
    "compressed": Item(130, f"{GATE} 'ours, compressed'", "beside"),
    "batch norm, decay": Item(130, f"{GATE} 'ours, batch norm per view' 'ours, decay on all'", "beside"),
    "float32": Item(300, f"{GATE} 'ours, float32'", "beside"),
    "emp_ssl": Item(120, f"{CIFAR10} emp_ssl --epochs 10"),
    **{name: Item(120, f"{CIFAR10} {name} --epochs 50") for name in ("byol", "moco", "vicreg", "lejepa")},
    "profile, max-autotune": Item(240, f"TORCHINDUCTOR_MAX_AUTOTUNE=1 {PROFILE} --compile"),
    "record, 500 epochs": Item(120, f"{CIFAR10} simclr_record --epochs 500 --lr 0.06"),
}


def words(item: Item, data: Path, seconds: float, disturbed: bool) -> list[str]:
    """The command as a list of arguments; one that reads images ends by itself, with its results."""
    given = shlex.split(item.command)
    variables = list(itertools.takewhile(lambda word: "=" in word, given))
    script, *options = given[len(variables) :]
    if script == "pytest":
        return [sys.executable, "-m", script, *options]
    if "DATA" in options:
        options = [str(data) if option == "DATA" else option for option in options]
        options += ["--minutes", f"{max(0.1, (seconds - 20) / 60):.1f}"]
    if disturbed:
        options += ["--disturbed", "other items of benchmarks/gpu.py used the GPU and the cores"]
    return ["env", *variables, sys.executable, str(ROOT / "benchmarks" / script), *options]


def end(process: subprocess.Popen[str]) -> None:
    """Kill an item and what it has started, such as the processes of pytest, which hold the GPU."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(name: str, data: Path, seconds: float, disturbed: bool = False) -> tuple[int, str]:
    """Exit status and output of an item, which is printed too; status 124 if it takes more seconds.

    pytest is interrupted before that, so that it lists the failures it found and the tests it did not run.
    """
    item = ITEMS[name]
    print(f"==== {name}: {item.command}", flush=True)
    process = subprocess.Popen(
        words(item, data, seconds, disturbed),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",  # a crash may print anything
        start_new_session=True,  # a group, for `end`
    )
    RUNNING.add(process)
    seconds = min(seconds, threading.TIMEOUT_MAX)
    timers = [threading.Timer(seconds, end, (process,))]
    if item.command.startswith("pytest"):
        timers.append(threading.Timer(seconds - ENDING, process.send_signal, (signal.SIGINT,)))
    for timer in timers:
        timer.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{name}] {line}", end="", flush=True)
        lines.append(line)
    status = process.wait()
    timed_out = not all(timer.is_alive() for timer in timers)
    for timer in timers:
        timer.cancel()
    end(process)
    RUNNING.discard(process)
    return (124 if timed_out else status), "".join(lines)


class Session:
    """The items of one call.

    Args:
        args: the command line.
        data: name of the images.
        deadline: of time.monotonic().
    """

    def __init__(self, args: argparse.Namespace, data: str, deadline: float) -> None:
        self.args, self.data, self.deadline = args, data, deadline
        self.device = torch.cuda.get_device_name()
        rows = map(json.loads, args.results.read_text().splitlines()) if args.results.is_file() else ()
        known = [row for row in rows if row["data"] in (None, data)]
        self.recorded = {row["item"] for row in known if row["status"] == 0}
        self.failed = {row["item"] for row in known if row["status"] > 0 and row["status"] != UNFINISHED}

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def record(self, name: str, disturbed: bool) -> None:
        """Run an item and append its line."""
        start = time.monotonic()
        status, output = run(name, self.args.data.resolve(), self.left(), disturbed)
        row: dict[str, Any] = {"item": name, "data": self.data if "DATA" in ITEMS[name].command else None}
        row |= {"status": status, "seconds": round(time.monotonic() - start, 1), "disturbed": disturbed}
        row |= {"device": self.device, "output": output[-KEPT:], **origin("gpu.py")}
        with self.args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.recorded |= {name} if status == 0 else set()

    def go(self, pool: ThreadPoolExecutor) -> None:
        """Run what fits. Beside an item that needs the cores: what may, and is likely to end first."""
        waiting = [name for name in self.args.items if name not in self.recorded]
        waiting.sort(key=lambda name: name in self.failed)
        cores: Future[None] | None = None
        until = 0.0
        while True:
            busy = cores is not None and not cores.done()
            places = ("beside",) if busy else ("alone", "beside", "cores")
            seconds = min(self.left(), until - time.monotonic()) if busy else self.left()
            fitting = [n for n in waiting if ITEMS[n].place in places and ITEMS[n].seconds <= seconds]
            if fitting:
                name = fitting[0]
                waiting.remove(name)
                needs_cores = ITEMS[name].place == "cores"
                future = pool.submit(self.record, name, busy or needs_cores)
                if needs_cores:
                    cores, until = future, time.monotonic() + ITEMS[name].seconds
                else:
                    future.result()
            elif cores is not None:
                cores.result()
                cores = None
            else:
                return


def stop(number: int, _: object) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="as for benchmarks/cifar10.py")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--items", nargs="+", default=list(ITEMS), choices=ITEMS, metavar="NAME")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.jsonl")
    parser.add_argument("--list", action="store_true", help="print the items and their seconds")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    if args.list:
        for name, item in ITEMS.items():
            print(f"{name:32}{item.seconds:5} s  {item.place:8}{item.command}")
        return 0
    if args.data is None:
        parser.error("--data is missing: expected a folder or archive as for benchmarks/cifar10.py")
    if not torch.cuda.is_available():
        return not_run("not run: no GPU")
    # handled, so that pytest does not inherit that a shell ignores Ctrl-C for commands in the background
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for folder in (RUNS, args.results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    session = Session(args, find_data(args.data, RUNS)[0], deadline)
    with ThreadPoolExecutor(2) as pool:  # which waits for the lines of stopped items
        try:
            session.go(pool)
        finally:
            for process in list(RUNNING):
                end(process)
    missing = [name for name in args.items if name not in session.recorded]
    print(f"\n{len(args.items) - len(missing)} of {len(args.items)} items are recorded")
    if missing:
        print(f"missing: {'; '.join(missing)}; repeat the command")
    return UNFINISHED if missing else 0


if __name__ == "__main__":
    sys.exit(main())
