"""Contestants that take turns, and medians and ranges over the rounds."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch

NOT_RUN = 3  # exit status: a GPU or a package is missing

T = TypeVar("T")


def interleave(
    contestants: Mapping[str, Callable[[], T]], rounds: int, warm_up: int = 0, progress: bool = False
) -> dict[str, list[T]]:
    """Run every contestant once per round, so that a slow moment of the machine hits all of them.

    Args:
        contestants: by name, each returns its measurement.
        rounds: how many count.
        warm_up: rounds before those, whose measurements are dropped.
        progress: print each measurement, in seconds, to stderr.

    Returns:
        The measurements by name, one per round.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name, contestant in contestants.items():
            measured = contestant()
            if number >= 0:
                found[name].append(measured)
            if progress:
                text = f"round {number + 1} of {rounds}, {name}: {measured:.3f} s"
                print(text, file=sys.stderr, flush=True)
    return found


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios within each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Such as ``12 (10 to 15)``."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, with all of its work on the device."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def device_name(device: torch.device, cpu: str) -> str:
    """The GPU's name, or what is given for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


def not_run(reason: str) -> int:
    print(reason, file=sys.stderr)
    return NOT_RUN


def refuse(reason: str) -> NoReturn:
    """End with one line and the status of bad arguments."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def write_json(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """Write the settings and the report to ``--json``, if it is given."""
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        args.json.write_text(json.dumps({"settings": settings, **report}, indent=2) + "\n")
