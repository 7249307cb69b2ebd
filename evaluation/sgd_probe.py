"""The linear probe by SGD on random crops, as reported in papers on images, with a head per learning rate.

All heads are trained together, with one pass of the frozen encoder per step, as in DINOv2 (Oquab et al. 2023,
https://arxiv.org/abs/2304.07193, appendix B.3): SGD with momentum 0.9, no weight decay, a cosine to 0, random
resized crops and flips. The best one on ``val`` is evaluated on ``test``.

Differs from DINOv2: features are the method's ``embed``, not a choice of layers; learning rates go up to 50,
not 0.1, because features without a final layer norm need them (MoCo, He et al. 2020: 30 for ResNet-50); ten
epochs (DINOv2's 12,500 steps of 1,024 on ImageNet), but at least 2,000 steps.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Batch, SSLDataModule
from datamodules.errors import ConfigError
from datamodules.images.folder import FolderDataset
from datamodules.images.module import ImageDataModule
from datamodules.transforms.views import View, Views
from evaluation.accuracy import accuracies
from evaluation.features import Means, extract_features
from evaluation.kept import origin_of
from evaluation.team import Team
from runtime.files import temporary_beside, whole_file
from runtime.peers import leave_together
from sslmodules.base import SSLModule

RATES = tuple(digit * 10.0**power for power in range(-4, 2) for digit in (1, 2, 5))
"""Learning rates for a batch of 256, from 0.0001 to 50."""

EPOCHS, FEWEST_STEPS, SAVES = 10, 2000, 10

PROTOCOL = {
    "features": "embed, frozen, in eval mode",
    "views": "random resized crop (scale 0.08 to 1) and flip in training; the clean input for val and test",
    "optimizer": "SGD, momentum 0.9, no weight decay, cosine to 0 over all steps",
    "rates": "each times the batch of a step / 256; a head for each, chosen on val",
}


class RandomCrops(Views):
    """One view of each image: a random resized crop, flipped or not."""

    def __init__(self, size: int) -> None:
        super().__init__(View(size, interpolation="bicubic"))


class SGDProbe(LightningModule):
    """Linear heads on a frozen encoder, one for each of ``RATES``.

    The encoder is not part of this module, so it is neither saved nor synchronized between processes.

    Args:
        module: with trained weights.
        data: images with labels, set up.
        means: the precision of the encoder; heads are in float32.
        file: checkpoint from which a killed training continues; written ten times, at the end of epochs.
        seed: seed of the heads' initial weights, which are the same for all rates.
    """

    def __init__(self, module: SSLModule, data: ImageDataModule, means: Means, file: Path, seed: int) -> None:
        super().__init__()
        self.frozen, self.data, self.means, self.file = [module.eval()], data, means, file
        width, self.num_classes = module.encoder.num_features, data.num_classes or 0
        generator = torch.Generator().manual_seed(seed)
        first = nn.Linear(width, self.num_classes)
        nn.init.normal_(first.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(first.bias)
        self.heads = nn.ModuleList(copy.deepcopy(first) for _ in RATES)
        self.origin = {
            **origin_of(module, data),
            "rates": list(RATES),
            "least": [EPOCHS, FEWEST_STEPS],
        }

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.views = RandomCrops(self.data.image_shape[1])

    def train_dataloader(self) -> DataLoader:
        """The labeled training samples without ``val``; crops of files are taken from the full images."""
        bank: Dataset = copy.copy(self.data.dataset("bank"))
        if isinstance(bank, FolderDataset):
            bank.crops = self.data.view_crops("train")
        return self.data.training_loader(bank)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        return self.data.on_after_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The sum of the heads' losses; each head's gradient is that of its own loss."""
        label = batch["label"]
        with torch.no_grad(), self.means.autocast(self.device):
            h = self.frozen[0].embed(batch["views"][0]).flatten(1)
        known = (label >= 0).sum().clamp(min=1)
        losses = [
            F.cross_entropy(head(h.float()), label, ignore_index=-1, reduction="sum") for head in self.heads
        ]
        return torch.stack(losses).sum() / known

    def configure_optimizers(self) -> Any:
        scale = self.data.batch_size * self.trainer.world_size / 256
        groups = [
            {"params": head.parameters(), "lr": rate * scale}
            for head, rate in zip(self.heads, RATES, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        cosine = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        epochs = self.trainer.max_epochs or 1
        if (self.current_epoch + 1) % math.ceil(epochs / SAVES):
            return
        temporary = temporary_beside(self.file)
        self.trainer.save_checkpoint(temporary, weights_only=False)
        if self.trainer.is_global_zero:
            with temporary.open("rb") as written, whole_file(self.file) as file:
                shutil.copyfileobj(written, file)
            temporary.unlink()
            print(f"SGD probe: epoch {self.current_epoch + 1} of {epochs}", flush=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["origin"] = self.origin

    def begun(self) -> Path | None:
        """The checkpoint, if it belongs to this training."""
        try:
            content = torch.load(self.file, map_location="cpu", weights_only=True)
            return self.file if content["origin"] == self.origin else None
        except Exception:  # missing, damaged or something else: start again
            return None


def train_and_count(
    module: SSLModule, data: ImageDataModule, device: torch.device, means: Means, file: Path, seed: int
) -> dict[str, Any] | None:
    """Train the heads, choose one on ``val`` and evaluate it on ``test``; called by all processes of the run.

    Returns:
        ``top1``, ``macro`` and for many classes ``top5`` on ``test``, ``lr`` (for a batch of 256),
        ``val_top1`` by rate, ``protocol``, and ``weights``, their checksum; None on ranks other than 0.
    """
    seed_everything(seed, verbose=False)
    data.setup("test")
    probe = SGDProbe(module, data, means, file, seed)
    trainer = _trainer_on(device)
    trainer.fit_loop.max_epochs = _epochs(data, trainer.world_size)
    trainer.fit(probe, ckpt_path=probe.begun())
    device = trainer.strategy.root_device
    means = means._replace(team=Team(trainer.world_size > 1))
    module.to(device)
    of_splits = [extract_features({"": module.embed}, data, s, device, means) for s in ("val", "test")]
    leave_together(trainer.world_size)
    if not trainer.is_global_zero:
        return None
    val, test = (found[""] for found in of_splits)
    scores = [_accuracies(head.to(device), *val)["top1"] for head in probe.heads]
    best = max(range(len(RATES)), key=scores.__getitem__)  # the smallest rate among equals
    return {
        **_accuracies(probe.heads[best], *test),
        "lr": RATES[best],
        "val_top1": {str(rate): score for rate, score in zip(RATES, scores, strict=True)},
        "protocol": {
            **PROTOCOL,
            "batch": data.batch_size * trainer.world_size,
            "epochs": trainer.max_epochs,
            "steps": trainer.global_step,
            "seed": seed,
        },
        "weights": probe.origin["weights"],
    }


def check_data(data: SSLDataModule) -> ImageDataModule:
    """Raise ConfigError unless the data is images with labels."""
    if not isinstance(data, ImageDataModule) or data.num_classes is None:
        raise ConfigError(
            f"--protocol sgd trains on random crops of labeled images, which {type(data).__name__} does "
            "not have: leave it out"
        )
    return data


def _epochs(data: SSLDataModule, world_size: int) -> int:
    count = len(data.dataset("bank"))  # type: ignore[arg-type]
    data.check_whole_batch(count, world_size, "labeled training samples")
    return max(EPOCHS, math.ceil(FEWEST_STEPS / (count // (data.batch_size * world_size))))


def _trainer_on(device: torch.device) -> Trainer:
    """A Trainer on all GPUs of this machine, or on those for which torchrun or srun started a process."""
    devices = os.environ.get("LOCAL_WORLD_SIZE")
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    if "SLURM_STEP_ID" in os.environ and "SLURM_NTASKS_PER_NODE" in os.environ:
        devices, nodes = os.environ["SLURM_NTASKS_PER_NODE"], os.environ["SLURM_NNODES"]
    on_gpu = device.type == "cuda"
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=int(devices) if devices else "auto" if on_gpu else 1,
        num_nodes=int(nodes),
        max_epochs=EPOCHS,  # see ``_epochs``: the number of processes is known only then
        logger=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _accuracies(head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        scores = [head(part.to(labels.device).float()) for part in features.split(4096)]
        return accuracies(torch.cat(scores), labels)
