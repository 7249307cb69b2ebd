"""What needs a GPU, in the order of its worth, for as many minutes as one is there.

    python benchmarks/gpu.py --data DIR --minutes 11

Each item is a command that can be run alone; ``--list`` prints them. An item that has ended well is a line of
``--results`` with its output and is not run again. One is begun only if the minutes are likely to be enough;
the next call goes on with those that are left.

Exit status: 0 all items are recorded, 75 some are not, 2 bad arguments, 3 not run (no GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import UNFINISHED, origin
from benchmarks.parts.rounds import not_run
from runtime.messages import ROOT

KEPT = 100_000  # characters of an item's output
ENDING = 20  # seconds in which pytest lists what failed and what it has not run, before it is killed


class Item(NamedTuple):
    """A command, and the seconds that it takes on an H100, or that its first part takes: a gate leaves out by
    itself what would not end in time.
    """

    seconds: int
    command: str


ITEMS = {
    # each test fails after 30 seconds
    "kernels": Item(240, "pytest -m gpu -n 14 --dist worksteal -v --durations 15"),
    "gate": Item(60, "cifar10_gate.py --data DATA --variants supervised ours bare 'supervised, compressed'"),
    "torchvision's views": Item(330, "cifar10_gate.py --data DATA --variants 'bare, torchvision'"),
    "record": Item(230, "cifar10_gate.py --data DATA --variants record --epochs 100"),
    "profile": Item(40, "profile_step.py --method simclr --batch 512"),
    "peers": Item(120, "peers.py --rounds 2 --compile"),
    "compressed": Item(130, "cifar10_gate.py --data DATA --variants 'ours, compressed'"),
    "other variants": Item(130, "cifar10_gate.py --data DATA"),
    "emp_ssl": Item(330, "cifar10.py --data DATA --methods emp_ssl --epochs 10"),
    "methods": Item(480, "cifar10.py --data DATA --methods byol moco vicreg lejepa --epochs 50"),
    "record, 500 epochs": Item(120, "cifar10.py --data DATA --methods simclr_record --epochs 500"),
}


def words(command: str, data: Path, seconds: float) -> list[str]:
    """The command as a list of arguments."""
    script, *options = shlex.split(command)
    if script == "pytest":
        return [sys.executable, "-m", script, *options]
    options = [str(data) if option == "DATA" else option for option in options]
    if script.startswith("cifar10"):  # ends by itself, with its results
        options += ["--minutes", f"{max(0.1, (seconds - 20) / 60):.1f}"]
    return [sys.executable, str(ROOT / "benchmarks" / script), *options]


def run(name: str, data: Path, seconds: float) -> tuple[int, str]:
    """Exit status and output of an item, which is printed too; status 124 if it takes more seconds.

    pytest is interrupted before that, so that it lists the failures it found and the tests it did not run.
    """
    command = words(ITEMS[name].command, data, seconds)
    print(f"\n==== {name}: {ITEMS[name].command}", flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its workers end with it: they hold the GPU and the pipe
    )
    timers = [threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))]
    if "pytest" in command:
        timers.append(threading.Timer(seconds - ENDING, process.send_signal, (signal.SIGINT,)))
    for timer in timers:
        timer.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    status = process.wait()
    timed_out = not all(timer.is_alive() for timer in timers)
    for timer in timers:
        timer.cancel()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what a test has started
    return (124 if timed_out else status), "".join(lines)


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
    # a shell ignores it for commands in the background, and pytest would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if args.list:
        for name, item in ITEMS.items():
            print(f"{name:32}{item.seconds:5} s  {item.command}")
        return 0
    if args.data is None:
        parser.error("--data is missing: expected a folder or archive as for benchmarks/cifar10.py")
    if not torch.cuda.is_available():
        return not_run("not run: no GPU")
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.is_file() else []
    recorded = {row["item"] for row in map(json.loads, lines) if row["status"] == 0}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for name in args.items:
        left = deadline - time.monotonic()
        if name in recorded or left < ITEMS[name].seconds:
            continue
        start = time.monotonic()
        status, output = run(name, args.data.resolve(), left)
        row = {"item": name, "status": status, "seconds": round(time.monotonic() - start, 1)}
        row |= {"device": torch.cuda.get_device_name(), "output": output[-KEPT:], **origin("gpu.py")}
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        recorded |= {name} if status == 0 else set()
    missing = [name for name in args.items if name not in recorded]
    print(f"\n{len(args.items) - len(missing)} of {len(args.items)} items are recorded")
    if missing:
        print(f"missing: {'; '.join(missing)}; repeat the command")
    return UNFINISHED if missing else 0


if __name__ == "__main__":
    sys.exit(main())
