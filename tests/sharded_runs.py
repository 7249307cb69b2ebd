"""Run by two gloo processes for tests/test_sharded_runs.py: ``python -m tests.sharded_runs FOLDER CONFIG...``.

Each config trains with DDP, with FSDP, and with FSDP of parts of the network, with the callbacks of every run.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from evaluation.callbacks import CollapseMetrics, FeatureProbe, OnlineLinearProbe
from evaluation.samples import Continuations, ImageGrid, Spectrograms
from runtime.callbacks import FiniteLoss
from runtime.checkpoints import AtomicCheckpointIO
from tests.conftest import build, trainer_for
from tests.loggers import WandbLike

STRATEGIES = ("ddp", "whole", "parts")


class OnCPU(FSDPStrategy):
    """Lightning refuses its own FSDP without a GPU; torch shards on the CPU as well, if it is named."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )


def strategy(name: str) -> Any:
    if name == "ddp":
        return "ddp"
    policy = partial(size_based_auto_wrap_policy, min_num_params=2000) if name == "parts" else None
    return OnCPU(process_group_backend="gloo", auto_wrap_policy=policy)


def train(folder: Path, config: str, name: str) -> dict[str, Any]:
    """Two epochs of two steps with the callbacks of every run, the last of them a checkpoint."""
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.01"]
    sgd += ["--model.optimizer.momentum", "0.9", "--model.warmup_epochs", "0"]
    module, data = build(config, *sgd)
    logger = WandbLike(str(folder))
    callbacks = [FeatureProbe(), CollapseMetrics(), OnlineLinearProbe(), ImageGrid(), Continuations()]
    trainer = trainer_for(
        folder,
        strategy=strategy(name),
        devices=2,
        max_epochs=2,
        limit_train_batches=2,
        logger=logger,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, Spectrograms(), FiniteLoss()],
    )
    trainer.fit(module, data)
    saved = folder / f"{config.replace('/', '_')}.{name}.ckpt"
    trainer.save_checkpoint(saved)
    return {"scalars": logger.scalars, "media": [entry[:3] for entry in logger.media]}


def main(folder: Path, names: list[str], configs: list[str]) -> None:
    rank = int(os.environ["RANK"])
    for config in configs:
        for name in names:
            try:
                results = train(folder, config, name)
            except Exception as error:
                traceback.print_exc()
                results = {"error": f"{type(error).__name__}: {error}"}
            print("DONE", config, name, results.get("error", ""), flush=True)
            torch.save(results, folder / f"{config.replace('/', '_')}.{name}.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])
