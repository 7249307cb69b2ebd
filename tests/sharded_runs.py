"""Run by two gloo processes for tests/test_sharded_runs.py: ``python -m tests.sharded_runs FOLDER``.

Each config trains with DDP, with FSDP, and with FSDP of parts of the network; with the callbacks of a run.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.utils.data import Subset

from evaluation.callbacks import CollapseMetrics, FeatureProbe, OnlineLinearProbe
from evaluation.samples import Continuations, ImageGrid, Spectrograms
from runtime.callbacks import FiniteLoss
from runtime.checkpoints import AtomicCheckpointIO
from tests.conftest import build, trainer_for
from tests.loggers import WandbLike

#: All weights are one part, as with ``--trainer.strategy fsdp``.
DIGITS = ("simclr", "mae", "nnclr", "finetune", "vae", "gpt", "inpainting")
WHOLE = [f"configs/digits/{name}.yaml" for name in DIGITS]
WHOLE += ["configs/text/bert.yaml", "configs/tones/audio_mae.yaml"]
#: Several parts, each whole only during its own forward pass.
PARTS = ["configs/digits/simclr.yaml", "configs/digits/mae.yaml"]
OTHERS = {"parts": PARTS, "uneven": PARTS, "half": PARTS[:1], "offload": PARTS[:1], "hybrid": PARTS[:1]}


class OnCPU(FSDPStrategy):
    """Lightning refuses its own FSDP without a GPU; torch shards on the CPU as well, if it is named."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision,
            **self.kwargs,
        )


class Hybrid(OnCPU):
    """Lightning makes device meshes for GPUs."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        self.kwargs["device_mesh"] = init_device_mesh("cpu", (1, 2))
        return super()._setup_model(model)


class Double(FSDPPrecision):
    """``64-true``, which FSDP lacks: what remains is a difference of method, not of rounding."""

    def __init__(self) -> None:
        super().__init__("32-true")
        self._desired_input_dtype = torch.float64

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.double()


def strategy(name: str) -> dict[str, Any]:
    if name == "ddp":
        return {"strategy": "ddp", "precision": "64-true"}
    policy = None if name == "whole" else partial(size_based_auto_wrap_policy, min_num_params=2000)
    options: dict[str, Any] = {"process_group_backend": "gloo", "auto_wrap_policy": policy}
    if name == "offload":
        options |= {"cpu_offload": True}
    if name == "hybrid":  # one copy of the weights for both processes
        return {"strategy": Hybrid(precision_plugin=Double(), sharding_strategy="HYBRID_SHARD", **options)}
    if name == "half":
        half = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return {"strategy": OnCPU(mixed_precision=half, **options)}
    return {"strategy": OnCPU(precision_plugin=Double(), **options)}


def file_of(folder: Path, config: str, name: str, suffix: str) -> Path:
    return folder / f"{config.replace('/', '_')}.{name}.{suffix}"


def train(folder: Path, config: str, name: str) -> dict[str, Any]:
    """Two epochs of two steps with the callbacks of a run, clipped gradients, a checkpoint at the end.

    ``uneven`` is ``parts`` with a validation in which one rank has a sample, and so a batch, more; in
    ``half`` they compute in bfloat16.
    """
    sgd = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.01"]
    sgd += ["--model.optimizer.momentum", "0.9", "--model.warmup_epochs", "0"]
    module, data = build(config, *sgd)
    if name == "uneven":  # 17 and 16 samples: two batches and one
        data._datasets["val"] = Subset(data.dataset("val"), range(33))
    logger = WandbLike(str(folder))
    callbacks = [FeatureProbe(), CollapseMetrics(), OnlineLinearProbe(), ImageGrid(), Continuations()]
    trainer = trainer_for(
        folder,
        **strategy(name),
        devices=2,
        max_epochs=2,
        limit_train_batches=2,
        gradient_clip_val=1.0,
        logger=logger,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, Spectrograms(), FiniteLoss()],
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(file_of(folder, config, name, "ckpt"))
    scalars = {key: [value for _, value in values] for key, values in logger.scalars.items()}
    return {"scalars": scalars, "media": [[*entry[:3]] for entry in logger.media]}


def main(folder: Path) -> None:
    for config in WHOLE:
        more = [name for name, configs in OTHERS.items() if config in configs]
        for name in ("ddp", "whole", *more):
            results = train(folder, config, name)
            torch.save(results, file_of(folder, config, name, f"{os.environ['RANK']}.pt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
