"""Two gloo processes run every config for three steps and write what they saw; ``replay`` repeats it in one
process.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from evaluation.callbacks import CollapseMetrics, FeatureProbe
from sslmodules import HuBERT
from tests.conftest import build, trainer_for

STEPS, PER_RANK = 3, 8


class GatheredBatchNorm(nn.Module):
    """Batch norm over the batches of all ranks, with gradients through the statistics; SyncBatchNorm needs a
    GPU.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, owner: list[Any]) -> None:
        super().__init__()
        self.norm, self.owner = norm, owner

    def forward(self, x: Tensor) -> Tensor:
        module = self.owner[0]
        if not self.training or module._trainer is None:
            return self.norm(x)
        everyone = module.all_gather(x, sync_grads=True).flatten(0, 1)
        return self.norm(everyone)[module.global_rank * len(x) :][: len(x)]


def gather_batch_norms(module: nn.Module) -> None:
    """Put a ``GatheredBatchNorm`` around every batch norm; the names of the state follow, the values stay."""
    owner = [module]

    def visit(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, GatheredBatchNorm(child, owner))
            else:
                visit(child)

    visit(module)


def groups_of(module: nn.Module) -> int:
    """With more than one, batch norm is not synchronized: each group has statistics of its own."""
    return getattr(module, "batch_norm_groups", 1)


class Keep(Callback):
    """Batches as they reach the method, gradients as they reach the optimizer."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = {n.replace(".norm.", "."): p for n, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({n: p.grad.detach().clone() for n, p in named.items()})


def options(folder: Path, keep: Keep) -> dict[str, Any]:
    # double precision: what remains is a difference of method, not of rounding
    return {
        "max_steps": STEPS,
        "limit_val_batches": 0,
        "callbacks": [keep],
        "precision": "64-true",
        "default_root_dir": str(folder),
    }


def prepare(config: str, folder: Path) -> None:
    """Build a method and its data, once for the two ranks and for the one process that repeats their steps:
    their weights are equal by being the same file.
    """
    module, data = build(config)
    # plain SGD: an adaptive optimizer turns rounding noise of unused directions into full steps
    module.optimizer, module.warmup_epochs = partial(torch.optim.SGD, lr=0.05), 0
    data.batch_size = PER_RANK
    if isinstance(module, HuBERT):
        module.find_clusters(data)  # now: where the batches are joined there is no data set
    for part in module.modules():  # two ranks cannot draw what one process draws
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]
    torch.save((module, data), folder / f"{file_name(config)}.prepared.pt")


def prepared(config: str, folder: Path) -> tuple[Any, Any]:
    """What ``prepare`` has built."""
    seed_everything(0, verbose=False)
    return torch.load(folder / f"{file_name(config)}.prepared.pt", weights_only=False)


def file_name(config: str) -> str:
    return config.replace("/", "_")


def record(config: str, folder: Path) -> None:
    """Write three steps of this rank to ``folder``."""
    module, data = prepared(config, folder)
    if groups_of(module) == 1:
        gather_batch_norms(module)
    keep, draws = Keep(), Draws(module)
    trainer = trainer_for(folder, **{**options(folder, keep), "strategy": "ddp", "devices": 2})
    trainer.fit(module, data)
    state = {k.replace(".norm.", "."): v for k, v in module.state_dict().items()}
    result = {"batches": keep.batches, "state": state, "draws": draws.kept}
    if trainer.global_rank == 0:  # both have the same, and there are hundreds of megabytes of them
        result["gradients"] = keep.gradients
    torch.save(result, folder / f"{file_name(config)}.{trainer.global_rank}.pt")


def main(folder: Path, configs: list[str]) -> None:
    for config in configs:
        record(config, folder)
        gc.collect()  # a trainer and its method refer to each other: gigabytes in the end
    metrics = validation_metrics(folder, strategy="ddp", devices=2)
    torch.save(metrics, folder / f"validation.{torch.distributed.get_rank()}.pt")


def validation_metrics(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Probe and health of an untrained encoder on the real digits: 51 and 1,077 samples, odd numbers for two
    ranks.
    """
    module, data = build("configs/digits/simclr.yaml", "--data.synthetic", "false", "--data.batch_size", "50")
    # few enough that one sample counted twice moves the accuracy by far more than rounding
    data._datasets["val"] = Subset(data.dataset("val"), range(51))
    callbacks = [FeatureProbe(), CollapseMetrics()]
    trainer = trainer_for(folder, callbacks=callbacks, **options)
    trainer.validate(module, data, verbose=False)
    return {k: v.clone() for k, v in trainer.callback_metrics.items()}


class Draws:
    """Stands in for a method's ``randn`` and ``rand``: keeps what is drawn, or hands out what two ranks have
    drawn.
    """

    def __init__(self, module: Any, played: list[list[Tensor]] | None = None) -> None:
        self.kept: list[Tensor] = []
        self.played = None if played is None else iter(zip(*played, strict=True))
        for name in ("randn", "rand"):
            setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, draw: Any) -> Any:
        def stand_in(*size: int) -> Tensor:
            if self.played is not None:
                return torch.cat(next(self.played))
            self.kept.append(draw(*size).double())
            return self.kept[-1]

        return stand_in


class Joined(LightningDataModule):
    """The batches of both ranks, one after the other in rank order, as one process would see them."""

    def __init__(self, ranks: list[dict[str, Any]]) -> None:
        super().__init__()
        self.ranks = ranks

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(STEPS), batch_size=None)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        step = int(batch)
        parts = [rank["batches"][step] for rank in self.ranks]
        joined: dict[str, Any] = {}
        for key, value in parts[0].items():
            if isinstance(value, list):
                joined[key] = [torch.cat([part[key][i] for part in parts]) for i in range(len(value))]
            else:
                joined[key] = torch.cat([part[key] for part in parts])
        return joined


def replay(config: str, ranks: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The same three steps in one process on the joined batches, from the weights that ``prepare`` has put
    into ``folder``.
    """
    module, _ = prepared(config, folder)
    keep = Keep()
    draws = [rank["draws"] for rank in ranks]
    if groups_of(module) > 1:  # the groups of both ranks; each rank's draws order its own samples
        module.batch_norm_groups *= len(ranks)
        draws = [[drawn + rank for drawn in played] for rank, played in enumerate(draws)]
    Draws(module, draws)
    trainer_for(folder, **options(folder, keep)).fit(module, Joined(ranks))
    return {"gradients": keep.gradients, "state": module.state_dict()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
