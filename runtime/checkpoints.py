"""Checkpoints that are whole or absent."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: at every moment the old file or the new one is there, whole.

    ``last.ckpt`` of before stays as ``previous.ckpt``. Lightning's own writes to the system's temporary folder and moves the
    file, which across file systems is a copy over the good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError with the path, the size needed and the space left; the old file stays."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                _keep(target, target.with_name(PREVIOUS))
            os.replace(temporary, target)
            _sync_folder(target.parent)  # the renames themselves must survive a power cut
        except (OSError, RuntimeError) as error:  # torch wraps some failures of the system
            raise OSError(_why(error, checkpoint, target)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain values only: reading runs no code from the file. On the CPU unless ``map_location`` says where."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _keep(file: Path, name: Path) -> None:
    """``file`` under a second name; it keeps its own."""
    link = _temporary(name)
    try:
        os.link(file, link)
    except OSError:  # a file system without hard links: until the coming rename there is the second name only
        os.replace(file, name)
    else:
        os.replace(link, name)
        link.unlink(missing_ok=True)  # where both were the same file, after a kill at this place: rename does nothing then


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _why(error: BaseException, checkpoint: dict[str, Any], target: Path) -> str:
    """One line: what happened, how much is needed, how much there is."""

    def size(node: Any) -> int:
        if isinstance(node, torch.Tensor):
            return node.nbytes
        items = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
        return sum(map(size, items))

    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    kept = f"{target} is as it was before" if target.exists() else "there is no earlier one"
    return (
        f"{target} could not be written ({reason}): about {size(checkpoint) / 1e6:.1f} MB are needed, "
        f"{shutil.disk_usage(target.parent).free / 1e6:.1f} MB are free. {kept}: make room, then repeat the command to resume"
    )


def prune(folder: Path) -> None:
    """Remove what killed processes had begun to write. Only for the one run that uses the folder."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)
