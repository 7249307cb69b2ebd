"""Derives all random seeds of a run from the run's seed."""

from __future__ import annotations

import os

import numpy as np


def mix_seed(*numbers: int) -> int:
    """Hash integers into one 63-bit seed: neighboring steps, ranks and seeds give unrelated numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def run_seed() -> int:
    """The run's seed, set by ``--seed_everything`` (``lightning.seed_everything``), or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
