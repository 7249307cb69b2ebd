"""The cluster that all SLURM tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm, missing_programs


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    """Two idle nodes; skipped where SLURM is not installed (Debian: apt-get install slurm-wlm munge)."""
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge)")
    with Slurm() as cluster:
        yield cluster
