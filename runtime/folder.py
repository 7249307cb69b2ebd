"""The run folder, and the rules for using one again."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import ConfigError, readable
from runtime.checkpoints import LAST, PREVIOUS, DamagedCheckpoint, read_checkpoint
from runtime.discovery import public_name, with_public_names
from runtime.environment import describe_environment
from runtime.failures import forget_failures
from runtime.files import remove_leftovers, temporary_beside, write_json, write_text
from runtime.lock import LOCK, only_run_in, wait_for_first_process
from runtime.signals import slurm_job
from sslmodules import SSLModule

#: Options that may change when a run is resumed: they affect where it runs and what it shows, not results.
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
    "disable_callbacks",  # its effect is visible in trainer.callbacks
    "save_every_n_steps",
    "save_every_minutes",
    "save_in_background",
)


def link_log(folder: Path) -> None:
    """Link the job's log to ``slurm.log`` in the run folder.

    ``slurm.sbatch`` passes it as SSL_LOG, because the folder is not known when SLURM opens the log.
    """
    log = Path(os.environ.get("SSL_LOG", ""))
    if not log.is_file():
        return
    name = folder / "slurm.log"
    with suppress(OSError):
        name.unlink(missing_ok=True)
        try:
            os.link(log, name)
        except OSError:  # another file system
            name.symlink_to(log.resolve())


class RunFolder:
    """A run folder; ``inspect`` decides whether it is new or resumed, before anything is built.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / LAST
        self.resume: Path | None = None  # the checkpoint to resume from
        self.content: dict[str, Any] = {}  # of the checkpoint, until ``forget``
        self.results = path / "results.json"
        self.saved_config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.damaged: list[Path] = []  # those of the files above that cannot be read
        self.rebuilt: dict[str, Any] | None = None  # config.yaml as stored in the checkpoint

    @classmethod
    def choose(cls, run_dir: str | None, data: str, method: str) -> RunFolder:
        """``run_dir``, or ``runs/<data set>-<method>/<date-time>``, the same for all processes of the run."""
        if os.environ.get("LOCAL_RANK", "0") != "0" and "SSL_RUN_DIR" in os.environ:
            return cls(Path(os.environ["SSL_RUN_DIR"]))  # from the process that started this one
        if run_dir is not None:
            return cls(_local_path(run_dir))
        parent = Path("runs") / f"{data.lower()}-{method.lower()}"
        if SLURMEnvironment.detect():
            return cls(parent / f"slurm-{slurm_job()}")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError("under torchrun the processes cannot agree on a date: give --run_dir DIR")
        path = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        others = itertools.count(2)
        while path.exists():  # a run started in the same second
            path = path.with_name(f"{path.name[:19]}_{next(others)}")
        return cls(path)

    def inspect(self, config: dict[str, Any], method: str) -> Path | None:
        """Find out whether the folder is new or contains this run. Writes nothing; called within ``in_use``.
        Args:
            config: the resolved configuration, plain values.
            method: class name of the method.

        Returns:
            The checkpoint to resume from, or None for a new run.

        Raises:
            ConfigError: not a run folder, another configuration or method, or an unreadable checkpoint.
        """
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        earlier = (
            self._earlier_config() if first else None
        )  # other ranks would see the folder created by rank 0
        if earlier is not None:
            self._check_config(earlier, config, method)
        self._read_newest()
        if self.resume is None:
            return None
        if first and self.saved_config in self.damaged and "config" in self.content:
            self.rebuilt = self.content["config"]
            self._check_config(self.rebuilt, config, method)
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
                f"{self.resume} contains only weights and cannot be resumed: choose another --run_dir"
            )
        return self.resume

    def _read_newest(self) -> None:
        """Read ``last.ckpt``, or the one before it if that is missing or damaged, which is reported.

        Raises:
            DamagedCheckpoint: the only checkpoint cannot be read.
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
                    f"warning: {problems[0].what}; resuming from {file}", file=sys.stderr, flush=True
                )
            return
        if len(problems) == 1:
            raise problems[0]
        if problems:
            what = " and ".join(problem.what for problem in problems)
            raise ConfigError(f"{what}: nothing is left to resume from; use a new --run_dir to start again")

    def forget(self) -> None:
        """Free the memory of the checkpoint."""
        self.content = {}

    def _earlier_config(self) -> dict[str, Any] | None:
        """The content of ``config.yaml``; None in a new folder, or if the file is damaged, which is recorded.

        Raises:
            ConfigError: this is not a run folder.
        """
        path = self.path
        if not self.saved_config.is_file():
            if path.is_dir() and any(not _is_begun(file) for file in path.iterdir()):
                raise ConfigError(
                    f"--run_dir {path} contains other files but no config.yaml, so it is not a run folder: "
                    "choose another"
                )
            return None
        earlier = _content(self.saved_config, yaml.safe_load)
        if isinstance(earlier, dict) and isinstance(earlier.get("model"), dict):
            return with_public_names(earlier)
        if earlier is not None or not self.last.parent.is_dir():
            raise ConfigError(
                f"{self.saved_config} is not that of a run: --run_dir {path} is not a run folder"
            )
        self.damaged.append(self.saved_config)
        return None

    def _check_config(self, earlier: dict[str, Any], config: dict[str, Any], method: str) -> None:
        """Raise ConfigError unless the existing run is the requested one."""
        found = str(earlier["model"].get("class_path", "")).rsplit(".", 1)[-1]
        if found != method:
            raise ConfigError(
                f"--run_dir {self.path} contains a run of {found}, not of {method}: choose another folder"
            )
        if differences := difference(earlier, config):
            if all(line.startswith(("trainer.max_epochs:", "trainer.max_steps:")) for line in differences):
                raise ConfigError(
                    f"--run_dir {self.path} contains a run of another length ({'; '.join(differences)}), "
                    "whose learning-rate schedule cannot be extended. Continue from its weights with a new "
                    f"schedule: --init_from {self.path} --run_dir NEW; or give the full length from the "
                    "start and interrupt the run at any time: the same command resumes it"
                )
            shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
            raise ConfigError(
                f"--run_dir {self.path} contains a run with another configuration ({shown}): "
                "repeat its options to resume it, or choose another folder"
            )

    def create(self, config: dict[str, Any], resumed: bool, init_from: dict[str, Any] | None = None) -> None:
        """Create the folder and write ``config.yaml`` and ``environment.json``, the latter for each restart.

        Only rank 0 does so, because it checks whether the folder is new.

        Args:
            config: the resolved configuration, plain values.
            resumed: whether the run is resumed.
            init_from: the initial weights, if not random.

        Raises:
            ConfigError: the folder cannot be written.
        """
        os.environ["SSL_RUN_DIR"] = str(
            self.path.resolve()
        )  # for the processes that DDP starts from this one
        self._record(config, resumed, init_from)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Lock the folder for this run; a new folder that stays unused is removed again.

        Raises:
            ConfigError: another process uses it, or it cannot be created.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--run_dir {self.path} is a file: expected a folder, new or of an earlier run")
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            wait_for_first_process(self.path)
            yield
            return
        with only_run_in(self.path):
            yield

    def check_weights(self, module: SSLModule) -> None:
        """Raise ConfigError with the first five differences if the checkpoint does not match the method."""
        stored, now = self.content["state_dict"], module.state_dict()
        shapes = {k: (tuple(stored[k].shape), tuple(now[k].shape)) for k in stored.keys() & now.keys()}
        wrong = [f"{k} was {a}, is {b}" for k, (a, b) in sorted(shapes.items()) if a != b]
        wrong += [f"{k} is new" for k in sorted(now.keys() - stored.keys())]
        wrong += [f"{k} is gone" for k in sorted(stored.keys() - now.keys())]
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

    def is_validated(self) -> bool:
        """Whether the checkpoint's last validation was completed."""
        return not self.content["callbacks"].get("Ending", {}).get("validating", False)

    @rank_zero_only
    def _record(self, config: dict[str, Any], resumed: bool, init_from: dict[str, Any] | None) -> None:
        path = self.path
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = temporary_beside(path / "probe")
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"--run_dir {path} cannot be written ({error.strerror}): choose a writable folder"
            ) from None
        forget_failures(path)
        for folder in (path, self.last.parent):
            remove_leftovers(folder)
        if self.resume is not None and self.resume != self.last and self.last.exists():
            os.replace(
                self.last, self.last.with_name("damaged.ckpt")
            )  # otherwise the next save would keep it as previous.ckpt
        now = describe_environment() | ({} if init_from is None else {"init_from": init_from})
        if resumed and self.environment.is_file():
            first = _content(self.environment, json.loads)
            if isinstance(first, dict):
                now = {**first, "restarts": [*first.get("restarts", []), now]}
            else:
                self.damaged.append(self.environment)
        for file in self.damaged:
            aside = file.with_stem(f"{file.stem}.damaged")
            os.replace(file, aside)
            print(f"warning: {file} is damaged: kept as {aside.name}, rewritten", file=sys.stderr, flush=True)
        if not self.saved_config.is_file():
            text = f"# python train.py --config {self.saved_config}   repeats this run in a new folder\n"
            write_text(self.saved_config, text + yaml.safe_dump(self.rebuilt or config, sort_keys=False))
        write_json(self.environment, now)
        link_log(path)


def _local_path(run_dir: str) -> Path:
    """A folder on this machine.

    Raises:
        ConfigError: a URL, or a name that Lightning and fsspec would take for one.
    """
    if not run_dir.strip():
        raise ConfigError("--run_dir is empty: expected the name of a folder")
    path = Path(run_dir).expanduser()
    if "://" in run_dir or "::" in str(path.absolute()):
        raise ConfigError(
            f"--run_dir {run_dir}: expected a folder on this machine, and no '://' or '::' in its path"
        )
    return path


def _content(file: Path, parse: Callable[[str], Any]) -> Any:
    """The parsed content of a file; None if it is damaged."""
    try:
        with readable(file):
            return parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        return None


def _is_begun(file: Path) -> bool:
    """Whether a file can be left by a run that was killed before it wrote ``config.yaml``."""
    if file.name == "checkpoints" and file.is_dir():
        return not any(file.iterdir())
    return file.name in (LOCK, ".failed") or file.suffix == ".tmp"


def difference(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for every value that differs and affects the results."""

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(node, dict) and node:
            return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): node}

    old, new = {"compile": False, **flat(earlier)}, flat(now)  # versions up to 0.2 did not have the option
    keys = [k for k in {**old, **new} if not any(k == m or k.startswith(f"{m}.") for m in MACHINE)]
    return [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys if old.get(k) != new.get(k)]
