"""Two nodes, as network namespaces of this machine, on which a node's name is 127.0.1.1, as Debian has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.messages import ROOT

NODES = ("ssl-test-0", "ssl-test-1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[None]:
    """Joined by a cable; skipped without the rights."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, ip and unshare")
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip(
            "link",
            "add",
            "sslt0",
            "netns",
            NODES[0],
            "type",
            "veth",
            "peer",
            "name",
            "sslt1",
            "netns",
            NODES[1],
        )
        for number, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
            ip("-n", node, "addr", "add", f"{address}/24", "dev", f"sslt{number}")
            for device in ("lo", f"sslt{number}"):
                ip("-n", node, "link", "set", device, "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield
    remove()


def remove() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


@pytest.mark.slow
def test_ranks_vote_where_a_nodes_name_is_127_0_1_1(nodes: None, tmp_path: Path) -> None:
    processes = []
    for rank, node in enumerate(NODES):
        hosts = tmp_path / f"hosts-{rank}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 node{rank}\n")
        script = f'mount --bind {hosts} /etc/hosts && hostname node{rank} && exec "$@"'
        inner = [sys.executable, "-m", "tests.namespaces", str(rank), ADDRESSES[0], str(tmp_path / f"{rank}")]
        command = [
            "ip",
            "netns",
            "exec",
            node,
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            script,
            "sh",
            *inner,
        ]
        log = (tmp_path / f"log-{rank}").open("wb")
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    try:
        for process in processes:
            process.wait(60)
    finally:
        for process in processes:
            process.kill()
    said = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(2))
    assert [(tmp_path / f"{rank}").is_file() for rank in range(2)] == [True, True], said[-3000:]
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["END", "END"]
