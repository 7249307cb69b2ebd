"""The folder of a run: the one place where everything of it lives, and the rules for using one twice."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import ConfigError, DataFileError, readable
from runtime.checkpoints import LAST, PREVIOUS, DamagedCheckpoint, read_checkpoint
from runtime.discovery import public_name, with_public_names
from runtime.environment import describe_environment
from runtime.failures import forget_failures
from runtime.files import remove_leftovers, temporary_beside, write_json, write_text
from runtime.signals import slurm_job
from sslmodules import SSLModule

#: May differ between the start and the resumption of a run: where it runs and what it shows, not what it
#: computes.
MACHINE = (
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "trainer.logger",
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.num_workers",
    "evaluate",
    "disable_callbacks",  # what it turns off is missing in trainer.callbacks
    "save_every_n_steps",
    "save_every_minutes",
    "save_in_background",
)


class RunFolder:
    """A run folder; ``prepare`` decides whether it is new, resumed, finished or not ours, before anything is
    built.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / LAST
        self.resume: Path | None = None  # the checkpoint to go on from
        self.content: dict[str, Any] = {}  # of it, until ``forget``
        self.results = path / "results.json"
        self.saved_config = path / "config.yaml"

    @classmethod
    def choose(cls, run_dir: str | None, data: str, method: str) -> RunFolder:
        """``run_dir``, or ``runs/<data set>-<method>/<date-time>``, the same for all processes of the run."""
        if os.environ.get("LOCAL_RANK", "0") != "0" and "SSL_RUN_DIR" in os.environ:
            return cls(
                Path(os.environ["SSL_RUN_DIR"])
            )  # from the process that Lightning started this one from
        if run_dir is not None:
            if not run_dir.strip():
                raise ConfigError("--run_dir is empty: expected the name of a folder")
            return cls(Path(run_dir))
        parent = Path("runs") / f"{data.lower()}-{method.lower()}"
        if SLURMEnvironment.detect():
            return cls(parent / f"slurm-{slurm_job()}")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError("under torchrun the processes cannot agree on a date: give --run_dir DIR")
        return cls(parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))

    def inspect(self, config: dict[str, Any], method: str) -> Path | None:
        """Is the folder new, or does it hold this very run? Writes nothing.

        Args:
            config: the resolved configuration, plain values.
            method: class name of the method.

        Returns:
            The checkpoint to resume from, or None for a new run.

        Raises:
            ConfigError: no run folder, another configuration, another method, or an unreadable checkpoint.
        """
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # for all; a process started a moment later would see the folder that this one makes
            self._check_config(config, method)
        self._read_newest()
        if self.resume is None:
            return None
        stored = public_name(str(self.content.get("hyper_parameters", {}).get("_class_path", ""))).rsplit(
            ".", 1
        )[-1]
        if stored != method:
            raise ConfigError(
                f"{self.resume} is a checkpoint of {stored or 'something else'}, not of {method}: choose "
                "another --run_dir"
            )
        if "optimizer_states" not in self.content:
            raise ConfigError(
                f"{self.resume} holds weights only and cannot be resumed: choose another --run_dir"
            )
        return self.resume

    def _read_newest(self) -> None:
        """``last.ckpt``, or the one before it if that is damaged, which is said in a line, or missing.

        Raises:
            DamagedCheckpoint: the only one there is cannot be read.
            ConfigError: neither of the two can be read.
        """
        self.resume, self.content = None, {}
        problems: list[DamagedCheckpoint] = []
        for file in (self.last, self.last.with_name(PREVIOUS)):
            if not file.is_file():
                continue
            try:
                self.content = read_checkpoint(file)
            except DamagedCheckpoint as error:
                problems.append(error)
                continue
            self.resume = file
            if problems:
                rank_zero_only(print)(
                    f"warning: {problems[0].what}; going on from {file}", file=sys.stderr, flush=True
                )
            return
        if len(problems) == 1:
            raise problems[0]
        if problems:
            what = " and ".join(problem.what for problem in problems)
            raise ConfigError(
                f"{what}: nothing is left to resume from; the same command with a new --run_dir starts again"
            )

    def forget(self) -> None:
        """Give back the memory of the checkpoint."""
        self.content = {}

    def _check_config(self, config: dict[str, Any], method: str) -> None:
        path, saved_config = self.path, self.saved_config
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--run_dir {path} is a file: expected a folder, new or of an earlier run")
        if not saved_config.is_file():
            if path.is_dir() and any(not _is_begun(file) for file in path.iterdir()):
                raise ConfigError(
                    f"--run_dir {path} holds other files and no config.yaml: it is no run folder, choose "
                    "another"
                )
            return
        earlier = with_public_names(_parsed(saved_config, yaml.safe_load) or {})
        found = earlier.get("model", {}).get("class_path", "").rsplit(".", 1)[-1]
        if found != method:
            raise ConfigError(
                f"--run_dir {path} holds a run of {found}, not of {method}: choose another folder"
            )
        if differences := difference(earlier, config):
            shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
            raise ConfigError(
                f"--run_dir {path} holds a run of another configuration ({shown}): "
                "repeat its options to resume it, or choose another folder"
            )

    def create(self, config: dict[str, Any], resumed: bool) -> None:
        """Make the folder and write ``config.yaml`` and ``environment.json``, the latter with each restart.
        Rank 0 does: it looks whether the folder is new, which another rank that is faster must not change.

        Raises:
            ConfigError: the folder cannot be written.
        """
        os.environ["SSL_RUN_DIR"] = str(
            self.path.resolve()
        )  # for the processes that DDP starts from this one
        self._record(config, resumed)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other runs out of the folder (rank 0), as long as this process lives, even if it is killed.

        Raises:
            ConfigError: another process is at it.
        """
        if rank_zero_only.rank != 0 or not self.path.is_dir():  # type: ignore[attr-defined]
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            patience = (
                time.monotonic() + 10
            )  # data-loading workers of a killed run hold its lock for some seconds
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > patience:
                        raise ConfigError(
                            f"--run_dir {self.path} is in use by another process: end it, or choose another"
                        ) from None
                    time.sleep(0.2)
                except OSError:  # a file system without locks
                    break
            for folder in (self.path, self.last.parent):
                remove_leftovers(folder)
            yield

    def check_weights(self, module: SSLModule) -> None:
        """ConfigError with the first five differences if the checkpoint does not fit the method as it is
        now.
        """
        stored, now = self.content["state_dict"], module.state_dict()
        shapes = {k: (tuple(stored[k].shape), tuple(now[k].shape)) for k in stored.keys() & now.keys()}
        wrong = [f"{k} is {a} there, {b} now" for k, (a, b) in sorted(shapes.items()) if a != b]
        wrong += [f"{k} is not there" for k in sorted(now.keys() - stored.keys())]
        wrong += [f"{k} is not here" for k in sorted(stored.keys() - now.keys())]
        if wrong:
            more = f"; ... ({len(wrong)} in all)" if len(wrong) > 5 else ""
            raise ConfigError(
                f"{self.resume} does not fit {type(module).__name__}: {'; '.join(wrong[:5])}{more}. Choose "
                "another --run_dir"
            )

    def progress(self) -> tuple[int, int]:
        """(finished epochs, optimizer steps) of the checkpoint."""
        processed = self.content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        return processed, self.content["global_step"]

    def stopped(self) -> str | None:
        """Why the checkpoint's run ended before its last epoch and step; None if it did not."""
        return self.content["callbacks"].get("Ending", {}).get("stopped")

    @rank_zero_only
    def _record(self, config: dict[str, Any], resumed: bool) -> None:
        path = self.path
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = temporary_beside(path / "probe")
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"--run_dir {path} cannot be written ({error.strerror}): choose a folder where you may write"
            ) from None
        forget_failures(path)
        if self.resume is not None and self.resume != self.last and self.last.exists():
            os.replace(
                self.last, self.last.with_name("damaged.ckpt")
            )  # or the next save would keep it as the one before
        saved_config, environment = self.saved_config, path / "environment.json"
        if not saved_config.is_file():
            text = f"# python train.py --config {saved_config}   repeats this run in a new folder\n"
            write_text(saved_config, text + yaml.safe_dump(config, sort_keys=False))
        now = describe_environment()
        if environment.is_file() and resumed:
            first = _parsed(environment, json.loads)
            now = {**first, "restarts": [*first.get("restarts", []), now]}
        write_json(environment, now)


def _parsed(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        with readable(file):
            return parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataFileError(f"{file} is damaged ({reason}): choose another --run_dir") from None


def _is_begun(file: Path) -> bool:
    """Is this all that a run leaves which is killed before it has written ``config.yaml``?"""
    if file.name == "checkpoints" and file.is_dir():
        return not any(file.iterdir())
    return file.name in (".lock", ".failed") or file.suffix == ".tmp"


def difference(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``key: old -> new`` for every value that differs and matters to the result."""

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(node, dict) and node:
            return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): node}

    old, new = flat(earlier), flat(now)
    keys = [k for k in {**old, **new} if not any(k == m or k.startswith(f"{m}.") for m in MACHINE)]
    return [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys if old.get(k) != new.get(k)]
