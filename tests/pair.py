"""Two gloo processes of one run on this machine, started as torchrun does it."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from runtime.messages import ROOT


def start(commands: list[list[str]], logs: Path, folder: Path) -> list[subprocess.Popen[bytes]]:
    """One process per command; the output of rank r goes to ``logs``/log-r.txt. All work in ``folder``."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank, command in enumerate(commands):
        size = str(len(commands))
        env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "SSL_RUN_DIR")}
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "GROUP_RANK": "0",
        }
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (logs / f"log-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
            )
    return processes


def wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    """Exit statuses. TimeoutExpired, and none left behind, if one does not end."""
    try:
        return [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def said(logs: Path) -> str:
    """The output of all of them."""
    return "".join(file.read_text() for file in sorted(logs.glob("log-*.txt")))
