"""Checkpoints that are complete or absent, and methods rebuilt from them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.plugins import TorchCheckpointIO

from datamodules.errors import ConfigError, DataFileError
from runtime.construction import gaps
from runtime.discovery import RENAMED_STATE, find_class, with_current_paths
from runtime.files import not_written, temporary_beside, whole_file
from runtime.lightning_internals import set_hyperparameters
from runtime.trust import build, denied_name, find, is_trusted, outside
from sslmodules import methods
from sslmodules.base import SSLModule

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

#: The states of a run's own two checkpoint callbacks are stored under these names; in earlier versions they
#: were plain ModelCheckpoints.
_EVERY_EPOCH = "'every_n_train_steps': 0, 'every_n_epochs': 1, 'train_time_interval': None}"
RENAMED_CALLBACKS = {
    f"ModelCheckpoint{what}, {_EVERY_EPOCH}": f"{name}{what}, {_EVERY_EPOCH}"
    for name, what in (
        ("LastCheckpoint", "{'monitor': None, 'mode': 'min'"),
        ("BestCheckpoint", "{'monitor': 'val/linear_top1', 'mode': 'max'"),
        ("BestCheckpoint", "{'monitor': 'val/loss', 'mode': 'min'"),
    )
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, syncs and renames it, so that there is always a complete checkpoint.

    The former ``last.ckpt`` is kept as ``previous.ckpt``. Lightning's own class writes to the system's
    temporary folder and moves the file; across file systems, that copies over the good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; on failure raise DataFileError with path, size and free space, and keep the
        old.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(target) as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # complete before the file that it replaces is touched
                if target.name == LAST and target.exists():
                    _keep(target, target.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:  # torch wraps some system errors
            why = not_written(target, error.__cause__ or error, _size(checkpoint))
            raise DataFileError(f"{why}: make room, then repeat the command to resume") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and plain values only, so that no code in the file is run; default: to the CPU."""
        return with_current_names(torch.load(path, map_location=map_location or "cpu", weights_only=True))


def with_current_names(content: Any) -> Any:
    """The content of a checkpoint of this or an earlier version, with the current names of its weights."""
    if isinstance(content, dict) and isinstance(state := content.get("state_dict"), dict):
        content["state_dict"] = {RENAMED_STATE.get(k, k): v for k, v in state.items()}
        callbacks = content.get("callbacks", {})
        if not any(key.startswith("LastCheckpoint{") for key in callbacks):
            content["callbacks"] = {RENAMED_CALLBACKS.get(k, k): v for k, v in callbacks.items()}
    return content


def _keep(file: Path, name: Path) -> None:
    """Give ``file`` a second name; it keeps its own."""
    link = temporary_beside(name)
    try:
        os.link(file, link)
    except OSError:  # no hard links here: until the next rename, only the second name exists
        os.replace(file, name)
    else:
        os.replace(link, name)
        link.unlink(
            missing_ok=True
        )  # if both are the same file after a kill at this point, rename does nothing


def _size(node: Any) -> int:
    """Bytes of all tensors in a checkpoint."""
    if isinstance(node, torch.Tensor):
        return node.nbytes
    items = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return sum(map(_size, items))


class DamagedCheckpoint(DataFileError):
    """A checkpoint that is incomplete or has changed on disk."""

    def __init__(self, path: Path, what: str) -> None:
        self.what = f"{path} {what}"
        others = [p for p in path.parent.glob("*.ckpt") if p != path and p.stat().st_size > 0]
        newest = max(others, key=lambda p: p.stat().st_mtime, default=None)
        super().__init__(f"{self.what}: {f'try {newest}' if newest else 'there is no other checkpoint'}")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint on the CPU, read without running code from it.

    Raises:
        DamagedCheckpoint: empty, truncated, or a tensor does not match the checksum (CRC-32) that torch
            writes with it, but does not verify itself.
        DataFileError: missing, containing objects other than tensors and plain values, or not a Lightning
            checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise DataFileError(f"{path} does not exist: expected a checkpoint such as RUN/checkpoints/last.ckpt")
    if path.stat().st_size == 0:
        raise DamagedCheckpoint(path, "is empty (0 bytes)")
    # before torch reads it: damaged data could look like code
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except Exception as error:  # damaged tables of contents raise many kinds of errors
        raise DamagedCheckpoint(path, f"is truncated or not a checkpoint ({type(error).__name__})") from None
    if changed is not None:
        raise DamagedCheckpoint(path, f"is damaged (the checksum of {changed} is wrong)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # likewise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise DataFileError(
                f"{path} contains objects other than tensors and plain values; loading them could run code, "
                "so it was refused"
            ) from None
        raise DamagedCheckpoint(path, f"is truncated or not a checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise DataFileError(
            f"{path} is not a Lightning checkpoint (no state_dict): expected one written by train.py"
        )
    return with_current_names(content)


def build_module(hyper_parameters: dict[str, Any], **given: Any) -> SSLModule:
    """Build a method with initial weights from the class and options recorded in a checkpoint.

    Args:
        hyper_parameters: ``_class_path`` and the options.
        given: objects to use instead of the recorded ones, such as ``encoder``.

    Raises:
        DataFileError: no class is named, or one that is not a method of this project; or a network is not
            recorded.
    """
    recorded = {k: v for k, v in hyper_parameters.items() if not k.startswith("_") and k not in given}
    options = _without_downloads(recorded)
    class_path = str(hyper_parameters.get("_class_path", ""))
    cls = find_class(class_path)
    if cls is None and is_trusted(class_path):  # from a package that the user trusts
        cls = find(class_path, "the checkpoint")
    if not (isinstance(cls, type) and issubclass(cls, SSLModule)):
        raise DataFileError(
            f"the checkpoint names {class_path or 'no class'!r}, which is not a method of this project "
            f"(known: {', '.join(methods())}). If it was saved from Python, build the method and use "
            "load_state_dict"
        )
    unknown = dict(gaps(options))
    has_optimizer = unknown.pop("optimizer", None) is None
    if not has_optimizer:  # not needed for features
        options["optimizer"] = {"class_path": "torch.optim.SGD"}
    for place, kind in unknown.items():
        name = place.partition(".")[0]
        raise DataFileError(
            f"the checkpoint does not record how {place} was built ({kind}): give the object, "
            f"load_module(PATH, {name}=...), or build {cls.__name__} and use load_state_dict"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "model", skip=set(given), instantiate=False)
    try:
        arguments = build(parser, {"model": with_current_paths(options)}).model
        module = cls(**vars(arguments), **given)
    except (ArgumentError, ConfigError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        if denied := denied_name(error):
            reason = outside(denied, "model")
        raise DataFileError(f"{cls.__name__} cannot be built from the checkpoint: {reason}") from None
    set_hyperparameters(module, {**hyper_parameters, **given})
    if not has_optimizer:
        module.optimizer = _unknown_optimizer
    return module


def _without_downloads(options: Any) -> Any:
    """Disable published initial weights of networks.

    The checkpoint's weights replace them anyway, and a baseline with random weights must not contain them.
    """
    if isinstance(options, dict):
        is_off = {key: key == "pretrained" and value is True for key, value in options.items()}
        return {k: False if is_off[k] else _without_downloads(v) for k, v in options.items()}
    return options


def _unknown_optimizer(parameters: Any) -> Any:
    raise ConfigError(
        "the checkpoint does not record its optimizer: set module.optimizer before training, for example to "
        "functools.partial(torch.optim.AdamW, lr=1e-3)"
    )


def initial_module(checkpoint: dict[str, Any], seed: int | None = None) -> SSLModule:
    """The method of a checkpoint before training: initial weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint.get("seed", 0) if seed is None else seed)
        return build_module(checkpoint.get("hyper_parameters", {})).eval()


def evaluated_checkpoint(module: SSLModule, last: Path) -> Path:
    """The checkpoint that a run's results are from.

    It is ``best.ckpt`` if the method has a ``best_metric`` and the run has validated, else ``last.ckpt``.
    """
    best = last.with_name(BEST)
    return best if module.best_metric is not None and best.is_file() else last


def load_module(path: str | Path, **given: Any) -> SSLModule:
    """The trained method of a checkpoint of ``train.py`` or any Trainer, on the CPU, in eval mode.

    Args:
        path: such as ``RUN/checkpoints/last.ckpt``.
        given: networks that the checkpoint cannot record, because their classes are not the project's:
            ``encoder=MyNetwork()``. Their weights are replaced by the trained ones.

    Raises:
        DataFileError: the file cannot be used; the message gives the reason.

    Example::

        module = load_module("runs/digits-simclr/2026-01-01_12-00-00/checkpoints/last.ckpt")
        h = module.embed(images)  # (B, num_features)
    """
    checkpoint = read_checkpoint(path)
    module = build_module(checkpoint.get("hyper_parameters", {}), **given)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataFileError(f"{path} does not fit {type(module).__name__}: {'; '.join(lines[:5])}") from None
    return module.eval()


for _name, _cls in methods().items():
    globals()[_name] = _cls
