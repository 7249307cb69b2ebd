"""Three runs of a config: undisturbed, stopped by a signal inside an epoch, and resumed; with all that can be
seen of them.

``python -m tests.resume FOLDER CONFIG ...`` is one of the processes of a run, as torchrun starts them.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import train
from runtime import stopping
from runtime.checkpoints import read_checkpoint
from sslmodules import SSLModule
from tests.conftest import shrunk

#: Two epochs of five batches; the signal comes during the third, which is the first of two where gradients
#: accumulate.
BATCHES, STOP_AT = 5, 3
OPTIONS = [
    *("--evaluate", "false", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", str(BATCHES)),
    *(
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.log_every_n_steps",
        "1",
    ),
    *(
        "--trainer.limit_val_batches",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.num_sanity_val_steps",
        "0",
    ),
    *("--trainer.callbacks+", "OnlineLinearProbe"),
]


def fingerprint(value: Any) -> Any:
    """Every bit of every tensor."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {k: fingerprint(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(v) for v in value]
    return value


class Killed(BaseException):
    """Ends the run there and then, as SIGKILL would: nothing is saved."""


def run(
    config: str, folder: Path, options: list[str], stop: bool = False, killed_in: int | None = None
) -> tuple[int, list[Any]]:
    """Exit status, and of each batch its content, its views and its loss.

    Args:
        config: from ``configs/``.
        folder: the run folder.
        options: more of the command line.
        stop: this process gets SIGTERM at the third batch.
        killed_in: the epoch at whose first batch the run is killed.
    """
    batches: list[Any] = []
    begin = SSLModule.on_train_batch_start

    def watch(self: Any, outputs: Any, batch: Any, index: int) -> None:
        batches.append(
            fingerprint({"batch": batch, "outputs": outputs, "epoch": self.current_epoch, "index": index})
        )

    def disturb(self: Any, *args: Any) -> None:
        begin(self, *args)
        if stop and len(batches) == STOP_AT - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.trainer.current_epoch == killed_in:
            raise Killed

    os.environ.pop("SSL_RUN_DIR", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSLModule, "on_train_batch_end", watch)
        patch.setattr(SSLModule, "on_train_batch_start", disturb)
        status = train.main(
            ["--config", config, *shrunk(config), *OPTIONS, "--run_dir", str(folder), *options]
        )
    return status, batches


def three_runs(config: str, folder: Path, options: list[str], hears: bool = True) -> dict[str, Any]:
    """What ``check`` compares; in a run of several processes each has its own."""
    whole, disturbed = folder / "whole", folder / "disturbed"
    results = [
        run(config, whole, options),
        run(config, disturbed, options, stop=hears),
        run(config, disturbed, options),
    ]
    return {"statuses": [status for status, _ in results], "batches": [batches for _, batches in results]}


def check(seen: dict[str, Any], folder: Path, stopped_after: int) -> None:
    """The resumed run is the undisturbed one: every batch, view and loss, and everything that is kept at the
    end.
    """
    assert seen["statuses"] == [0, 143, 0]
    whole, first, rest = seen["batches"]
    assert len(whole) == 2 * BATCHES and len(first) == stopped_after
    assert first + rest == whole
    one, two = (
        read_checkpoint(folder / name / "checkpoints" / "last.ckpt") for name in ("whole", "disturbed")
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert fingerprint(one[key]) == fingerprint(two[key]), key
    probe = [fingerprint(content["callbacks"].get("OnlineLinearProbe")) for content in (one, two)]
    assert probe[0] == probe[1]
    assert best(folder / "whole") == best(folder / "disturbed")
    assert curves(folder / "whole") == curves(folder / "disturbed")


def best(folder: Path) -> Any:
    """Step and weights of ``best.ckpt``."""
    content = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    return content["global_step"], fingerprint(content["state_dict"])


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged scalar but clock times, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def main(folder: Path, configs: list[str]) -> None:
    """In each run the other process gets the signal."""
    rank = int(os.environ["RANK"])
    stopping.MOST = 1  # a vote after each batch: the step of the stop does not depend on the clock
    for number, config in enumerate(configs):
        place = folder / config.replace("/", "_")
        options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "8"]
        seen = three_runs(config, place, options, hears=number % 2 == rank)
        torch.save(seen, place / f"seen.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
