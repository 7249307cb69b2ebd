"""Where the time of a training step goes, and whether anything in it makes the host wait for the GPU.

    python benchmarks/profile_step.py --method simclr --batch 512 --json profile.json

Runs ``configs/cifar10/<method>.yaml`` on random images as ``python train.py`` would, callbacks and
TensorBoard log included, twice.

First without a profiler: events on the device's own clock (the host's on CPU) separate the parts of a
step, medians over ``--steps`` steps: views; forward pass and loss; backward pass; the rest of the step
(gradient norm, optimizer, schedule, teacher, callbacks); and between the steps (next batch fetched and
copied).

Then with torch.profiler over as many steps: the share of the time in which the device works, the kernels that
take most of it, and the calls by which the host waits, counted separately in steps that log (every
``log_every_n_steps``-th) and in those that do not. ``cudaEventSynchronize`` is listed apart: it is the loss
of the step before being read, one step late, so that the device always has the next step queued
(runtime/callbacks.py, FiniteLoss).

Exit status: 0 measured, and no step that does not log waits; 1 one does; 2 bad arguments; 3 not run (no GPU).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import device_name, not_run, write_json
from benchmarks.parts.simclr import SIZE, ArrayImages
from benchmarks.parts.training import fit
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework

ROOT = Path(__file__).resolve().parents[1]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense", "aten::nonzero")
PARTS = (
    ("views", "making views begins", "making views ends"),
    ("forward and loss", "forward begins", "forward ends"),
    ("backward", "backward begins", "backward ends"),
    ("norm, optimizer, callbacks", "backward ends", "step ends"),
)
WARM_UP = 20


class Parts(Callback):
    """Marks the borders between the parts of each step on the clock of the device."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.steps: list[dict[str, Any]] = []
        self.current: dict[str, Any] = {}

    def mark(self, name: str) -> None:
        if self.cuda:
            self.current[name] = torch.cuda.Event(enable_timing=True)
            self.current[name].record()
        else:
            self.current[name] = time.perf_counter()

    def between(self, first: Any, second: Any) -> float:
        """Milliseconds."""
        return first.elapsed_time(second) if self.cuda else 1000 * (second - first)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Marks around each call of a method."""
        inner = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            self.mark(f"{name} begins")
            result = inner(*args, **kwargs)
            self.mark(f"{name} ends")
            return result

        setattr(owner, method, outer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch(trainer.datamodule, "transform", "making views")  # type: ignore[attr-defined]
        self.watch(pl_module, "losses", "forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self.mark("backward begins")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark("backward ends")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.mark("step ends")
        self.steps.append(self.current)
        self.current = {}

    def table(self) -> dict[str, float]:
        """Median milliseconds of each part and of the whole."""
        if self.cuda:
            torch.cuda.synchronize()
        counted = self.steps[WARM_UP:]
        found = {name: statistics.median(self.between(s[a], s[b]) for s in counted) for name, a, b in PARTS}
        pairs = list(itertools.pairwise(counted))
        found["between steps"] = statistics.median(
            self.between(a["step ends"], b["making views begins"]) for a, b in pairs
        )
        found["whole step"] = statistics.median(
            self.between(a["step ends"], b["step ends"]) for a, b in pairs
        )
        return found


class Profiled(Callback):
    """torch.profiler over some steps, each within a range of its own name."""

    def __init__(self, steps: int, cuda: bool) -> None:
        self.last = WARM_UP + steps
        self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
        self.range: Any = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # From the end of a step to the end of the next: the fetch, the views, the step. Lightning writes a
        # step's log after these hooks have been called, which is in the range that begins here.
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.range = None
        if batch_idx == WARM_UP:
            self.profiler.start()
        if WARM_UP <= batch_idx < self.last:
            logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            self.range = record_function("step that logs" if logs else "step without log")
            self.range.__enter__()
        if batch_idx == self.last:
            self.profiler.stop()


def run(args: argparse.Namespace, callback: Callback) -> int:
    """One short run with the callback; the steps between two logs."""
    steps = WARM_UP + args.steps + 2
    images = np.random.default_rng(0).integers(0, 256, (args.batch * steps, SIZE, SIZE, 3), dtype=np.uint8)
    options = ["--config", str(ROOT / "configs" / "cifar10" / f"{args.method}.yaml")]
    options += ["--data.synthetic", "true", "--data.batch_size", str(args.batch)]
    options += ["--trainer.accelerator", args.device, "--trainer.devices", "1", "--trainer.max_epochs", "1"]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    options += ["--trainer.benchmark", "true"]
    if args.device == "cpu":  # where bf16 is emulated
        options += ["--trainer.precision", "32-true"]
    trainer = fit(
        options,
        callback,
        lambda cli: ArrayImages(images, views=cli.datamodule.views, batch_size=args.batch),
        args.compile,
    )
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def waits(profiler: profile) -> dict[str, dict[str, float]]:
    """By kind of step: how often, per step, the host made a call that waits."""
    events = profiler.events()
    ranges = [
        (e.name, e.time_range.start, e.time_range.end)
        for e in events
        if e.name.startswith("step ") and e.device_type == DeviceType.CPU
    ]
    found: dict[str, Counter[str]] = {"step without log": Counter(), "step that logs": Counter()}
    for event in events:
        if event.name in (*WAITS, "cudaEventSynchronize"):
            for name, start, end in ranges:
                if start <= event.time_range.start < end:
                    found[name][event.name] += 1
    number = Counter(name for name, _, _ in ranges)
    return {
        kind: {call: n / number[kind] for call, n in calls.items()}
        for kind, calls in found.items()
        if number[kind]
    }


def kernels(profiler: profile, steps: int, most: int = 15) -> tuple[float, list[tuple[str, float, float]]]:
    """Milliseconds of device work per step, and the kernels with most of it: name, milliseconds and calls per
    step.
    """
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        # the profiler also lists a range of the host, such as an optimizer's step, as if it were work of the
        # device
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            total[event.name] += event.time_range.elapsed_us() / 1000
            calls[event.name] += 1
    rows = [(name, ms / steps, calls[name] / steps) for name, ms in total.most_common(most)]
    return sum(total.values()) / steps, rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(p.stem for p in (ROOT / "configs" / "cifar10").glob("*.yaml"))
    parser.add_argument("--method", default="simclr", choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="gpu", help="cpu only tries the script out"
    )
    parser.add_argument("--compile", action="store_true", help="train with --compile true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args()
    for name in ("batch", "steps"):
        if getattr(args, name) < 2:
            parser.error(f"--{name} must be at least 2, got {getattr(args, name)}")
    return args


def print_parts(times: dict[str, float], batch: int) -> None:
    """Milliseconds of the parts of a step, and images per second."""
    print(f"\n{'part of a step':30}{'ms':>9}{'share':>8}")
    for name, ms in times.items():
        print(f"{name:30}{ms:9.3f}{ms / times['whole step']:8.1%}")
    print(f"{'images/s':30}{1000 * batch / times['whole step']:9.0f}")


def print_kernels(busy: float, rows: list[tuple[str, float, float]], step: float) -> None:
    """How long the device works in a step of ``step`` milliseconds, and on what."""
    print(f"\nthe device works {busy:.3f} ms of a step: {min(1.0, busy / step):.1%}")
    print(f"\n{'kernel':80}{'ms/step':>9}{'share':>8}{'calls':>8}")
    for name, ms, calls in rows:
        print(f"{name[:78]:80}{ms:9.3f}{ms / busy:8.1%}{calls:8.1f}")


def print_waits(waiting: dict[str, dict[str, float]], interval: int) -> bool:
    """The calls that wait, per step; whether a step that does not log makes one."""
    print(f"\ncalls that make the host wait, per step (a log every {interval} steps)")
    for kind, calls in waiting.items():
        print(f"{kind}: " + (", ".join(f"{call} {n:.2f}" for call, n in sorted(calls.items())) or "none"))
    waited = any(call in WAITS for call in waiting.get("step without log", {}))
    print(f"{'a' if waited else 'no'} step without a log waits for the device")
    return waited


def main() -> int:
    args = parse_arguments()
    cuda = args.device == "gpu"
    if cuda and not torch.cuda.is_available():
        return not_run("not run: no GPU (--device cpu tries the script out, its numbers mean nothing)")
    silence_framework()
    device = device_name(
        torch.device("cuda" if cuda else "cpu"), "CPU: a trial of the script, no measurement"
    )
    environment = describe_environment()
    print(
        f"{args.method}, configs/cifar10/{args.method}.yaml, batch {args.batch}"
        f"{', compiled' if args.compile else ''}; {device}; torch "
        f"{environment['versions']['torch']}"
    )
    parts, profiled = Parts(cuda), Profiled(args.steps, cuda)
    run(args, parts)
    times = parts.table()
    interval = run(args, profiled)
    waiting = waits(profiled.profiler)
    busy, rows = kernels(profiled.profiler, args.steps)
    print_parts(times, args.batch)
    if cuda:
        print_kernels(busy, rows, times["whole step"])
    waited = print_waits(waiting, interval)
    report = {
        "device": device,
        "environment": environment,
        "ms": times,
        "device_busy_ms": busy,
        "kernels": rows,
        "waits_per_step": waiting,
    }
    write_json(args, report)
    return int(waited and cuda)


if __name__ == "__main__":
    sys.exit(main())
