"""The process that died is reported, whichever process notices it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from torch import distributed

from runtime import failures, peers

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:20155: Connection reset by peer")


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def two_ranks(child: subprocess.Popen, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen:
    """This process is rank 0, the child rank 1."""
    hosts = zlib.crc32(socket.gethostname().encode())
    monkeypatch.setattr(peers, "_ranks", [(hosts, os.getpid()), (hosts, child.pid)])
    monkeypatch.setattr(peers, "PAUSE", 0.01)
    monkeypatch.setenv("SSL_RUN_DIR", "/runs/my run")
    return child


def line(child: subprocess.Popen, how: str) -> str:
    return (
        f"rank 1 (process {child.pid} on {socket.gethostname()}) {how}: most often memory ran out; see the "
        "system's log; the same command with --run_dir '/runs/my run' resumes the run"
    )


def test_a_broken_connection_is_explained_by_who_is_gone(
    two_ranks: subprocess.Popen, capsys: pytest.CaptureFixture[str]
) -> None:
    two_ranks.kill()  # its parent has not yet noticed: it is still listed by the system
    with pytest.raises(peers.LostProcess) as caught:
        peers.explain_lost_connection(GLOO)
    assert str(caught.value) == line(two_ranks, "is gone")
    assert failures.finish(caught.value) == 2
    assert capsys.readouterr().err == f"error: {line(two_ranks, 'is gone')}\n"


def test_an_error_of_another_kind_is_not(two_ranks: subprocess.Popen) -> None:
    two_ranks.kill()
    peers.explain_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_broken_connection_between_living_processes_is_not(
    two_ranks: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peers.lost(patience=0.05) is None
    here, there = peers._ranks
    monkeypatch.setattr(peers, "_ranks", [here, (there[0] + 1, 1)])
    told = "the connection to a process of the run on another machine is lost: see its output"
    assert peers.lost(patience=0.05) == told


@pytest.mark.parametrize(("number", "told"), [(signal.SIGKILL, "was ended by SIGKILL"), (None, None)])
def test_a_run_that_waits_for_a_dead_process_is_ended(
    number: signal.Signals | None,
    told: str | None,
    two_ranks: subprocess.Popen,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A process that failed by itself has already printed why."""
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(peers, "PATIENCE", 0.05)
    if number is not None:
        two_ranks.send_signal(number)
    failed = subprocess.Popen([sys.executable, "-c", "exit(3)"])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    procs = [two_ranks, other] if number is not None else [failed, other]
    watch = peers.Watch(SimpleNamespace(procs=procs))
    watch.start()
    watch.join(10)
    assert ends == [1]
    assert capsys.readouterr().err == (f"error: {line(two_ranks, told)}\n" if told else "")
    assert other.wait(5) == -signal.SIGKILL  # it would wait for ever
    failed.wait()


def test_a_run_that_ends_by_itself_is_left_alone(
    two_ranks: subprocess.Popen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    two_ranks.kill()
    watch = peers.Watch(SimpleNamespace(procs=[two_ranks]))
    watch.start()
    watch.over.set()
    watch.join(10)
    assert ends == [] and capsys.readouterr().err == ""
    quiet = peers.Watch(SimpleNamespace())  # a launcher that starts nothing
    quiet.start()
    quiet.over.set()
    quiet.join(10)


def test_they_tell_each_other_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        peers.meet()
        assert peers._ranks == [(zlib.crc32(socket.gethostname().encode()), os.getpid())]
    finally:
        distributed.destroy_process_group()
        peers._ranks.clear()


def test_what_a_rank_has_told_does_not_stay_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        one, two = peers.Exchange(), peers.Exchange()
        assert [one.share(str(n)) for n in range(3)] == [["0"], ["1"], ["2"]]
        assert two.share("other") == ["other"]
        assert [one.store.check([f"{n}/0"]) for n in range(3)] == [False, False, True]
    finally:
        distributed.destroy_process_group()


def test_who_does_not_answer_because_it_is_dead_is_told(
    two_ranks: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.05)
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        exchange = peers.Exchange()
        exchange.size = 2
        two_ranks.kill()
        with pytest.raises(peers.LostProcess) as caught:
            exchange.share("anybody?")
        assert str(caught.value) == line(two_ranks, "is gone")
    finally:
        distributed.destroy_process_group()


def test_ranks_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with nothing left to do stays until the other has evaluated, and rank 0, which keeps the
    store, until nobody looks in it.
    """
    store = distributed.HashStore()
    order: list[str] = []

    class Of(peers.Exchange):
        def __init__(self) -> None:
            self.store, self.size, self.sent, self.read = store, 2, 0, 0
            self.rank = int(threading.current_thread().name)

        def receive(self) -> list[str]:
            lines = super().receive()
            order.append(f"{self.rank} has read {lines[0]}")
            return lines

    monkeypatch.setattr(peers, "Exchange", Of)

    def leave() -> None:
        peers.leave_together(2)
        order.append(f"{threading.current_thread().name} left")

    other = threading.Thread(target=leave, name="1")
    other.start()
    time.sleep(0.1)
    order.append("evaluated")
    first = threading.Thread(target=leave, name="0")
    first.start()
    first.join(5)
    other.join(5)
    assert order[0] == "evaluated" and {"0 left", "1 left"} < set(order)
    assert order.index("1 has read done") < order.index("0 left")
    peers.leave_together(1)  # alone: there is nobody to wait for
