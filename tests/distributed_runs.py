"""Run by two gloo processes for tests/test_distributed_runs.py: ``python -m tests.distributed_runs
FOLDER``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from datamodules.images.module import ArrayDataset
from evaluation.callbacks import CollapseMetrics, FeatureProbe
from runtime.checkpoints import AtomicCheckpointIO
from runtime.main import evaluate_run
from runtime.signals import Preempted, receiver
from runtime.stopping import Preemption
from tests.conftest import build, trainer_for
from tests.distributed import gather_batch_norms
from tests.sharded_runs import OnCPU

#: Odd for two ranks and for every batch size used: of 101 training samples an epoch of 2 x 8 uses 96.
TRAIN, VAL = 101, 51


def digits(config: str, *options: str) -> tuple[Any, Any]:
    """A method in double precision with plain SGD, on few digits whose first pixel says which one it is."""
    sgd = [
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.lr",
        "0.05",
        "--model.warmup_epochs",
        "0",
    ]
    module, data = build(f"configs/digits/{config}.yaml", *sgd, *options)
    rng = np.random.default_rng(0)
    for split, n in (("train", TRAIN), ("bank", TRAIN), ("val", VAL)):
        images = rng.integers(0, 255, (n, 8, 8, 1), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(n)
        data._datasets[split] = ArrayDataset(images, np.arange(n) % 10)
    return module, data


class Samples(Callback):
    """The samples of each batch, by number."""

    def __init__(self) -> None:
        self.numbers: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pixels = trainer.datamodule.unstandardize(batch["input"])[:, 0, 0, 0]  # type: ignore[attr-defined]
        self.numbers.append((255 * pixels).round().int().tolist())


def train(folder: Path, batch_size: int, **options: Any) -> dict[str, Any]:
    """Two epochs with accumulated gradients: the samples seen, and the weights at the end."""
    module, data = digits("autoencoder", "--data.batch_size", str(batch_size), "--data.views", "null")
    if "strategy" in options:
        gather_batch_norms(module)
    samples = Samples()
    options = {
        "max_epochs": 2,
        "limit_val_batches": 0,
        "accumulate_grad_batches": 2,
        "callbacks": [samples],
        **options,
    }
    trainer_for(folder, precision="64-true", **options).fit(module, data)
    return {
        "samples": samples.numbers,
        "state": {k.replace(".norm.", "."): v for k, v in module.state_dict().items()},
    }


def validate(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Every number of a validation: losses, probes, health."""
    module, data = digits("autoencoder", "--data.batch_size", "4", "--data.views", "null")
    trainer = trainer_for(
        folder, precision="64-true", callbacks=[FeatureProbe(), CollapseMetrics()], **options
    )
    trainer.validate(module, data, verbose=False)
    return {k: v.clone() for k, v in trainer.callback_metrics.items()}


class ToldToEnd(Callback):
    """One rank gets a SIGTERM after the first step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def vit(
    folder: Path, sharded: bool, save: Path, resume: Path | None = None, told: bool = False
) -> dict[str, Any]:
    """Steps of MAE, a ViT, on whole digits; the weights at the end, gathered from the shards."""
    # with momentum: a sharded optimizer without any state is saved, and Lightning fails to read it
    momentum = ("--model.optimizer.momentum", "0.9")
    module, data = digits("mae", "--data.batch_size", "8", "--data.views.ratio", "0.5", *momentum)
    strategy = OnCPU(process_group_backend="gloo") if sharded else "ddp"
    trainer = trainer_for(
        folder,
        strategy=strategy,
        devices=2,
        max_steps=4,
        limit_val_batches=0,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*([ToldToEnd()] if told else []), Preemption(save)],
    )
    if told:
        with receiver.listening(), pytest.raises(Preempted):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data, ckpt_path=resume)
        trainer.save_checkpoint(save)
    if resume is not None:
        evaluate(trainer, module, data, save)
    own = sum(p.numel() for p in module.parameters())
    return {"own": own, "step": trainer.global_step}


def evaluate(trainer: Trainer, module: Any, data: Any, save: Path) -> None:
    """What ``train.py`` does at the end of a run."""
    results = save.with_name("results.json")
    run_folder = SimpleNamespace(last=save, path=save.parent, results=results)
    cli: Any = SimpleNamespace(trainer=trainer, model=module, datamodule=data, run_folder=run_folder)
    cli.hyper_parameters = {}
    evaluate_run(cli)


def main(folder: Path) -> None:
    two = {"strategy": "ddp", "devices": 2}
    results = {"train": train(folder, 8, **two), "validate": validate(folder, **two)}
    rank = torch.distributed.get_rank()
    torch.save(results, folder / f"runs.{rank}.pt")
    results = {
        "ddp": vit(folder, False, folder / "ddp.ckpt"),
        "fsdp": vit(folder, True, folder / "fsdp.ckpt"),
    }
    results["half"] = vit(folder, True, folder / "half.ckpt", told=True)
    results["resumed"] = vit(folder, True, folder / "resumed.ckpt", resume=folder / "half.ckpt")
    torch.save(results, folder / f"fsdp.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
