"""Kills a real run at random moments, resumes it, and compares its end with the undisturbed run's, bit for
bit.

    python benchmarks/resilience.py --kills 20

The run is ``train.main`` with configs/digits/simclr.yaml in two gloo processes on the CPU: 4 epochs of 8
steps, a checkpoint every 3 steps and at the end of each epoch, a validation with probes every 2 epochs. It is
saved far more often than anyone would, so that many of the moments fall into a save. Each trial has a folder
of its own:

- SIGKILL goes to both processes at once, as when a node is lost: a random time after a random step, and in
  every third trial a random time after a temporary file of a checkpoint has appeared. Then every checkpoint
  is read, checksums included.
- SIGTERM goes to one of the processes, drawn at random: the other must notice.

Then the same command resumes the run. At the end weights, optimizer, schedule and the logged losses of all
steps must equal those of the undisturbed run bit for bit.

The processes are forked from one that has imported torch, which saves their ten seconds of imports; what a
signal does in those is tested in tests/test_preemption.py. ``--kills 0`` measures the cost instead: the time
in the hooks that listen for signals and vote, and in saves, as shares of the time of a step.

Exit status: 0 if every run ended as it should, 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

import torch
from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from datamodules.errors import DataFileError
from runtime.callbacks import Throughput
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from runtime.stopping import Preemption

RANKS = 2
OPTIONS = [
    *(
        "--config",
        str(ROOT / "configs" / "digits" / "simclr.yaml"),
        "--data.batch_size",
        "64",
        "--data.bank_size",
        "200",
        "--evaluate",
        "false",
    ),
    *("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", str(RANKS)),
    *(
        "--trainer.max_epochs",
        "4",
        "--trainer.check_val_every_n_epoch",
        "2",
        "--trainer.log_every_n_steps",
        "1",
    ),
    *("--trainer.enable_progress_bar", "false", "--model.warmup_epochs", "1"),
]
OFTEN = ["--save_every_n_steps", "3"]
STEPS = 4 * 8
PATIENCE = 120  # seconds in which a run has to end


class Clocks:
    """Where a run is and what its hooks cost, seen from outside: a page of memory that the processes
    share.
    """

    FIELDS = ("step", "steps_s", "hooks_s", "saves_s", "saves")

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE)

    def __getitem__(self, name: str) -> float:
        return struct.unpack_from("d", self.page, 8 * self.FIELDS.index(name))[0]

    def __setitem__(self, name: str, value: float) -> None:
        struct.pack_into("d", self.page, 8 * self.FIELDS.index(name), value)

    def clear(self) -> None:
        for name in self.FIELDS:
            self[name] = 0.0

    def watch(self) -> None:
        """In rank 0: count steps, and time every hook of ``Preemption`` and every save."""

        def timed(owner: Any, name: str, clock: str) -> None:
            original = getattr(owner, name)

            def method(self_: Any, *args: Any, **kwargs: Any) -> Any:
                begin, inside = time.perf_counter(), self["saves_s"]
                try:
                    return original(self_, *args, **kwargs)
                finally:
                    saving = (
                        self["saves_s"] - inside if clock == "hooks_s" else 0.0
                    )  # within the hook, counted by itself
                    self[clock] += time.perf_counter() - begin - saving
                    self["saves"] += clock == "saves_s"

            setattr(owner, name, method)

        timed(Trainer, "save_checkpoint", "saves_s")
        timed(Preemption, "on_train_batch_start", "hooks_s")
        timed(Preemption, "on_train_batch_end", "hooks_s")
        original, last = Throughput.on_train_batch_end, time.perf_counter()

        def batch_end(self_: Any, trainer: Trainer, *args: Any) -> None:
            nonlocal last
            now = time.perf_counter()
            if (
                trainer.fit_loop.epoch_loop.batch_progress.current.ready > 1
            ):  # what lies between epochs is no step
                self["steps_s"] += now - last
            last = now
            original(self_, trainer, *args)
            self["step"] = trainer.global_step

        Throughput.on_train_batch_end = batch_end  # type: ignore[method-assign]


clocks = Clocks()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder: Path, *options: str) -> list[int]:
    """Both processes of a run, as torchrun would start them; their output goes to ``folder``.log."""
    clocks.clear()
    port, pids = free_port(), []
    for rank in range(RANKS):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "LOCAL_WORLD_SIZE": str(RANKS),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "bench",
            }
        )
        rank_zero_only.rank = rank  # type: ignore[attr-defined]  # Lightning looked at the environment when it was imported
        status = 1
        try:
            if rank == 0:
                clocks.watch()
            status = train.main([*OPTIONS, *options, "--run_dir", str(folder)])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pids


def wait(pids: list[int]) -> list[int]:
    """Exit statuses, negative for signals; who does not end in time is killed and has the status -9."""
    statuses: dict[int, int] = {}
    until = time.monotonic() + PATIENCE
    while len(statuses) < len(pids):
        for pid in set(pids) - set(statuses):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [statuses[pid] for pid in pids]


def alive(pids: list[int]) -> bool:
    """No process has ended; one that has stays to be waited for."""
    return all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids)


class End(NamedTuple):
    """What a run leaves behind that must not depend on what happened on the way."""

    state: dict[str, Any]
    curves: dict[str, dict[int, float]]


def end_of(folder: Path) -> End:
    content = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    state = {
        key: content[key]
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    }
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return End(state, {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags})


def same(one: Any, two: Any) -> bool:
    """Equal with all bits, tensors included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


class Trial(NamedTuple):
    moment: str
    in_save: bool
    steps_lost: int
    corrupted: int
    stopped_well: bool
    finished: bool
    equal: bool
    curves: bool


def trial(number: int, kind: signal.Signals, folder: Path, undisturbed: End, lot: random.Random) -> Trial:
    step, delay = lot.randrange(STEPS - 1), lot.uniform(0, 0.1)
    during_save = kind == signal.SIGKILL and number % 3 == 2
    checkpoints = folder / "checkpoints"
    pids = start(folder, *OFTEN)
    while alive(pids) and clocks["step"] < step:
        time.sleep(0.0005)
    if during_save:
        delay = lot.uniform(0, 0.01)
        while alive(pids) and not list(checkpoints.glob(".*.tmp")):
            pass
    time.sleep(delay)
    victims = pids if kind == signal.SIGKILL else [lot.choice(pids)]
    killed = alive(pids)
    for pid in victims:
        os.kill(pid, kind)
    statuses = wait(pids)
    reached = int(clocks["step"])
    in_save = bool(list(checkpoints.glob(".*.tmp")))
    stopped_well = killed and set(statuses) == {-9 if kind == signal.SIGKILL else 143}
    corrupted, saved = 0, 0
    for file in checkpoints.glob("*.ckpt"):
        try:
            content = read_checkpoint(file)
            saved = max(saved, content["global_step"]) if "optimizer_states" in content else saved
        except DataFileError as error:
            corrupted += 1
            print(f"  {error}")
    finished = set(wait(start(folder, *OFTEN))) == {0}
    if not (stopped_well and finished):
        print(f"  statuses {statuses}; the log ends with:\n", Path(f"{folder}.log").read_text()[-2000:])
    end = end_of(folder) if finished else End({}, {})
    where = f"step {reached}, {'in a save' if in_save else 'no save'}"
    return Trial(
        where, in_save, reached - saved, corrupted, stopped_well, finished,
        same(end.state, undisturbed.state), end.curves == undisturbed.curves,
    )  # fmt: skip


def series(kind: signal.Signals, kills: int, folder: Path, undisturbed: End, lot: random.Random) -> bool:
    trials = []
    for number in range(kills):
        begin = time.monotonic()
        place = folder / f"{kind.name}-{number}"
        trials.append(trial(number, kind, place, undisturbed, lot))
        t = trials[-1]
        print(
            f"{kind.name} {number + 1:2d}: {t.moment}; {t.steps_lost} steps lost, {t.corrupted} corrupted, "
            f"{'finished' if t.finished else 'NOT FINISHED'}, "
            f"{'equal' if t.equal and t.curves else 'DIFFERENT'} "
            f"({time.monotonic() - begin:.0f} s)",
            flush=True,
        )
        shutil.rmtree(place, ignore_errors=True)
    lost = [t.steps_lost for t in trials]
    print(
        f"{kind.name}: {sum(t.stopped_well for t in trials)} of {kills} ended with the right status, "
        f"{sum(t.finished for t in trials)} of {kills} resumed and finished, "
        f"{sum(t.in_save for t in trials)} hit a save, "
        f"steps lost {min(lost)} to {max(lost)} (median {statistics.median(lost)}), "
        f"{sum(t.corrupted for t in trials)} checkpoints corrupted, "
        f"final state equal {sum(t.equal for t in trials)} of {kills}, curves equal "
        f"{sum(t.curves for t in trials)} of {kills}",
        flush=True,
    )
    return all(t.stopped_well and t.finished and t.equal and t.curves and not t.corrupted for t in trials)


def overhead(folder: Path) -> None:
    """A run with the default interval: what a step, its hooks and a save take."""
    assert set(wait(start(folder, "--trainer.max_epochs", "20"))) == {0}
    steps, saves = 20 * 7, clocks["saves"]
    step, hooks, save = clocks["steps_s"] / steps, clocks["hooks_s"] / (20 * 8), clocks["saves_s"] / saves
    size = (folder / "checkpoints" / "last.ckpt").stat().st_size / 1e6
    print(
        f"a step takes {1e3 * step:.1f} ms, of which signal handling {1e6 * hooks:.0f} us = "
        f"{100 * hooks / step:.2f} %; "
        f"a save of {size:.1f} MB takes {1e3 * save:.0f} ms = {100 * save / (15 * 60):.4f} % of the 15 "
        "minutes between two, "
        f"and 1 % of an epoch of {100 * save:.1f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would warn about several files of events
    lot, begin = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            f"torch {torch.__version__}, {os.cpu_count()} cores, {RANKS} processes, {STEPS} steps", flush=True
        )
        if arguments.kills == 0:
            overhead(folder / "overhead")
            return 0
        assert set(wait(start(folder / "undisturbed", *OFTEN))) == {0}, (
            folder / "undisturbed.log"
        ).read_text()
        undisturbed = end_of(folder / "undisturbed")
        print(f"the undisturbed run took {time.monotonic() - begin:.0f} s", flush=True)
        well = [
            series(kind, arguments.kills, folder, undisturbed, lot)
            for kind in (signal.SIGKILL, signal.SIGTERM)
        ]
    print(f"{time.monotonic() - begin:.0f} s in all")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
