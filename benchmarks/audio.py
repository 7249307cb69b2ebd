"""Log-mel spectrograms of a batch against one clip after another, on one thread.

    python benchmarks/audio.py --clips 256 --rounds 15

The same samples, the same function (``MelScale.log_mel``); "per clip" is what a Dataset does that makes
spectrograms in its ``__getitem__``, "one go" the whole batch without the parts that a CPU's cache holds. All
take turns within each round, so that a slow moment of the machine hits all. The time is the CPU time of the
one thread. Results are compared before they are timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, ratios, summary
from datamodules.audio.mel import MelScale


def clips_per_second(way: Callable[[], Any], clips: int) -> float:
    """Of CPU time."""
    start = time.process_time()
    way()
    return clips / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--clips", type=int, default=256, help="of one second, in a batch")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for rate in (8000, 16000):
        scale = MelScale(rate, 40, 25.0, 10.0)
        clips = torch.randn(given.clips, rate, generator=torch.Generator().manual_seed(0)) * 0.1
        ways = {
            "batched": lambda s=scale, c=clips: s.log_mel(c),
            "per clip": lambda s=scale, c=clips: torch.cat([s.log_mel(one[None]) for one in c]),
            "one go": lambda s=scale, c=clips: s._log_mel(c),
        }
        for name in ("per clip", "one go"):
            torch.testing.assert_close(ways["batched"](), ways[name](), rtol=1e-4, atol=1e-4)
        runs = {name: partial(clips_per_second, way, given.clips) for name, way in ways.items()}
        rates = interleave(runs, given.rounds)
        for name, values in rates.items():
            low, high = min(values), max(values)
            print(f"{rate} Hz  {name:8}  {statistics.median(values):8.0f} clips/s  ({low:.0f} to {high:.0f})")
        for name in ("per clip", "one go"):
            spread = summary(ratios(rates["batched"], rates[name]))
            print(
                f"{rate} Hz  batched / {name:8}  {spread['median']:.2f}  "
                f"({spread['min']:.2f} to {spread['max']:.2f})"
            )


if __name__ == "__main__":
    main()
