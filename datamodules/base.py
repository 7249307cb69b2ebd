"""The base DataModule: batches, resumable sampling, and views computed on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError
from datamodules.listing import difference
from datamodules.loading import Fetch, LateLoader, ignore_foreign_signals
from datamodules.samplers import EpochSampler, ShardSampler, equal_batches, interleaved, labels_of
from datamodules.seeding import mix_seed, run_seed
from datamodules.splits import Split
from datamodules.transforms.base import BatchTransform, apply_views
from runtime.lightning_internals import PlainHyperparameters
from runtime.optional import check_optional, optional


class Batch(TypedDict, total=False):
    """The batch that every method receives. Train and validation batches have the same keys; unused keys are
    absent.

    Shapes: B batch, C channels, H height, W width, N patches, T time or tokens, F frequencies.
    """

    input: Tensor  # CLEAN sample: (B, C, H, W) float standardized; (B, 1, F, T) log-mel; (B, T) int64 tokens
    label: Tensor  # (B,) int64, -1 = unknown; only probes use it
    views: list[Tensor]  # each (B, C, h, w), standardized; global views first
    mask: Tensor  # bool, True = hidden: (B, 1, H, W) pixels, or (B, 2, N) patches of the global views
    context: Tensor  # (B, K) int64, visible patches, numbered row by row
    targets: Tensor  # (B, M, L) int64, patches to predict, in M blocks
    corrupted: Tensor  # damaged ``input``: (B, C, H, W) standardized; (B, T) int64 tokens with some replaced
    target: Tensor  # (B, T) int64, -100 where there is no loss
    segment: Tensor  # (B, T) int64, 0 or 1
    is_next: Tensor  # (B,) int64


def keep_batch(batch: Any) -> Any:
    """``collate_fn`` for data sets whose ``__getitems__`` returns a whole batch."""
    return batch


def raw_input(x: Tensor) -> Tensor:
    """The standardized input itself as a vector; images are averaged down to at most 32 pixels a side."""
    if x.ndim == 4 and max(x.shape[-2:]) > 32:
        x = F.adaptive_avg_pool2d(x, 32)
    return x.flatten(1)


Padding = int | Literal["frames"] | None


class SSLDataModule(PlainHyperparameters, LightningDataModule, ABC):
    """Base class of data sets: clean samples from files, views made on the device.

    A subclass implements ``dataset(split)``, whose ``__getitems__(indices)`` returns ``{"input": ...,
    "label": (B,)}`` in the most compact form (uint8 images, int16 audio, token ids), and the two steps
    ``decode`` and ``standardize``. Workers only read and crop; ``on_after_batch_transfer`` does the rest on
    the device.

    Args:
        views: transform that adds views or masks of a decoded batch under new keys; None adds nothing.
        batch_size: samples per rank and step.
        num_workers: number of data-loading processes; use 0 for data in memory.
        bank_size: maximum number of labeled training samples that the validation probes are fitted on.
        synthetic: use random samples of the data set's shape instead of its files; for tests and dry runs.

    Attributes:
        num_classes: number of classes, or None for unlabeled data, for which no probe runs.
        class_names: one name per class; empty for unlabeled data.
        vocab_size: number of tokens, if ``input`` holds tokens.
        pad_id: id of the padding token; None if no token is padding.
        padding: how short samples are filled up: ``pad_id``, ``"frames"`` for audio (``valid_frames`` counts
            the others), or None if they are not.
        characters_per_token: mean over the validation split, for bits per character; None if not applicable.
        max_unreadable: number of damaged files to tolerate.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    vocab_size: int | None = None
    pad_id: int | None = None
    characters_per_token: float | None = None
    max_unreadable: int = 0

    @property
    def padding(self) -> Padding:
        return self.pad_id

    def __init__(
        self,
        views: BatchTransform | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        bank_size: int = 20_000,
        synthetic: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, bank_size=bank_size)
        check_at_least(0, num_workers=num_workers)
        self.save_hyperparameters()
        self.views = views
        self.batch_size, self.num_workers, self.bank_size, self.synthetic = (
            batch_size,
            num_workers,
            bank_size,
            synthetic,
        )

    # ---- implemented by a subclass -------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, split: Split) -> Dataset:
        """The samples of a split.

        The splits are train (for pre-training), bank (labeled training samples for probes), val (held out of
        TRAIN, for all choices) and test (reported, never used for a choice).
        """

    def decode(self, raw: Tensor) -> Tensor:
        """Convert samples as loaded to the form that ``views`` takes. Images: uint8 to float in [0, 1]."""
        return raw

    def standardize(self, decoded: Tensor) -> Tensor:
        """Convert decoded samples to network input: zero mean and unit variance over the training split."""
        return decoded

    def unstandardize(self, x: Tensor) -> Tensor:
        """Convert network input back to decoded samples, for display."""
        return x

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Cheap features to probe beside the encoder: functions of ``input``, (B, ...) -> (B, D), by name.

        The first paragraph of each function's docstring goes into the report.
        """
        return {"raw_input": raw_input}

    def input_format(self) -> dict[str, Any]:
        """Options that determine the form of ``input``, such as the image size.

        Other data of the same kind gets these values when a trained network is evaluated on it.
        """
        return {}

    def fingerprint(self) -> dict[str, Any] | None:
        """``count`` and ``digest`` of the files, to detect changes since a run began; None if not applicable.

        Cheap: file contents are not read.
        """
        return None

    def remarks(self) -> list[str]:
        """Lines to print before training about unusual properties of the data."""
        return []

    def class_counts(self, split: Split = "bank") -> dict[str, int]:
        """Number of samples per class in ``split``; empty without labels."""
        labels = labels_of(self.dataset(split))
        if labels is None:
            return {}
        names = self.class_names or range(self.num_classes or 0)
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        return {str(name): int(count) for name, count in zip(names, counts, strict=True)}

    def unreadable_files(self) -> list[str]:
        """Files of the training split skipped so far."""
        return []

    def save(self, folder: Path) -> None:
        """Write the data's files to a run folder, such as a tokenizer (not the configuration)."""

    # ---- optional methods ----------------------------------------------------------------------------------

    @optional
    def files(self, split: Split) -> list[str]:
        """One path per sample of ``split``, in the order of ``dataset(split)``."""
        raise NotImplementedError

    @optional
    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as text."""
        raise NotImplementedError

    # ---- batches -------------------------------------------------------------------------------------------

    def transform(self, batch: dict[str, Any], generator: torch.Generator | None) -> Batch:
        """Decode and standardize ``input``, and with a generator add the keys of ``views``; a new dict."""
        decoded = self.decode(batch["input"])
        out: dict[str, Any] = {**batch, "input": self.standardize(decoded)}
        crops = out.pop("crops", None)
        if self.views is not None and generator is not None:
            out.update(apply_views(self.views, decoded, generator, crops, self._standardized))
        return out  # type: ignore[return-value]

    def _standardized(self, added: dict[str, Any]) -> dict[str, Any]:
        """What ``views`` adds, with its images standardized."""
        if "views" in added:
            added["views"] = [self.standardize(view) for view in added["views"]]
        if "corrupted" in added:
            added["corrupted"] = self.standardize(added["corrupted"])
        return added

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        """Make views on the device, seeded by (seed, rank, epoch, batch index): a resumed run repeats them.

        After ``seed_everything`` every DDP rank has the same global random state, so the rank is part of the
        seed.
        """
        trainer = self.trainer
        if trainer is None:
            return self.transform(batch, None)
        generator = None
        if trainer.training:
            # not `batches_done`: while the last batch of an epoch is in flight, it already belongs to the
            # next epoch
            index = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            generator = self._generator(batch, trainer.current_epoch + 1, index)
        elif dataloader_idx == 0 and (trainer.validating or trainer.sanity_checking):
            # the same views in every validation, so that curves reflect the model and not the random draw
            loop = (
                trainer.validate_loop
                if trainer.state.fn == "validate"
                else trainer.fit_loop.epoch_loop.val_loop
            )
            generator = self._generator(batch, 0, loop.batch_progress.current.ready)
        # the precision plugin has converted only the raw batch; with `bf16-true` or `64-true` the views must
        # match the dtype of the weights
        return trainer.precision_plugin.convert_input(self.transform(batch, generator))

    def _generator(self, batch: dict[str, Any], epoch: int, index: int) -> torch.Generator:
        rank = self.trainer.global_rank  # type: ignore[union-attr]
        return torch.Generator(batch["input"].device).manual_seed(mix_seed(run_seed(), rank, epoch, index))

    def batches_done(self) -> int:
        """Batches already done in the epoch about to start: 0 unless a run is resumed within it."""
        if self.trainer is None or not self.trainer.training:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return 0 if progress.is_last_batch else progress.current.ready

    # ---- loaders -------------------------------------------------------------------------------------------

    def check_whole_batch(self, count: int, world_size: int, what: str = "training samples") -> None:
        """Raise ConfigError if ``count`` samples (``what``, in words) are less than one batch per process."""
        each = self.batch_size * world_size
        if count < each:
            raise ConfigError(
                f"{type(self).__name__} has {count} {what}, fewer than one batch of {each} (batch_size "
                f"{self.batch_size} x {world_size} processes): give --data.batch_size "
                f"{max(1, count // world_size)} or less"
            )

    def check_batch_size(self, world_size: int) -> None:
        """Raise ConfigError if a process would get no full training batch or no validation sample."""
        self.check_whole_batch(len(self.dataset("train")), world_size)  # type: ignore[arg-type]
        for split in ("val", "bank") if world_size > 1 else ():
            if (n := len(self.dataset(split))) < world_size:  # type: ignore[arg-type]
                raise ConfigError(
                    f"{type(self).__name__} has {n} samples in the split {split}, fewer than the "
                    f"{world_size} processes: give --trainer.devices {n} or less, or more data"
                )

    def setup(self, stage: str) -> None:
        check_optional(self)
        if stage == "fit" and self.trainer is not None:
            self.check_batch_size(self.trainer.world_size)
            if self.trainer.global_rank == 0:
                for line in self.remarks():
                    rank_zero_info(line)

    def train_dataloader(self) -> DataLoader:
        return self.training_loader(self.dataset("train"))

    def training_loader(self, dataset: Dataset) -> DataLoader:
        """Full batches of this rank's samples of ``dataset``, in a new order in each epoch."""
        sampler = EpochSampler(dataset, self.batch_size, run_seed(), *self._place(), self)
        return self._loader(dataset, sampler, training=True)

    def val_dataloader(self) -> list[DataLoader]:
        """[val, bank]; bank is a fixed choice of at most ``bank_size`` clean labeled training samples.

        Both use the fixed order of ``interleaved``, so a limited validation, or a callback that uses only the
        first samples, sees all classes.
        """
        bank = self.dataset("bank")
        n = len(bank)  # type: ignore[arg-type]
        if n > self.bank_size:
            bank = Subset(bank, np.sort(np.random.default_rng(0).permutation(n)[: self.bank_size]).tolist())
        return [
            self._loader(d, ShardSampler(d, *self._place(), interleaved(d)), training=False)
            for d in (self.dataset("val"), bank)
        ]

    def _place(self) -> tuple[int, int]:
        """Rank of this process and number of processes, with or without a Trainer."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        started = distributed.is_available() and distributed.is_initialized()
        return (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)

    def eval_dataloader(self, dataset: Dataset) -> DataLoader:
        """All samples of ``dataset`` once and in order, in this process."""
        return self._loader(dataset, ShardSampler(dataset, 0, 1), training=False)

    def _loader(self, dataset: Dataset, sampler: DistributedSampler, training: bool) -> DataLoader:
        batch_size = self.batch_size
        if not training and self.trainer is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            n: int = len(dataset)  # type: ignore[arg-type]
            batch_size = equal_batches(n, sampler.num_replicas, batch_size)
        return LateLoader(
            Fetch(dataset),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=keep_batch,
            drop_last=training,
            pin_memory=torch.cuda.is_available(),
            # validation workers end with the validation; otherwise a process would keep three sets of workers
            persistent_workers=training and self.num_workers > 0,
            worker_init_fn=ignore_foreign_signals,
            # own generator: the default would draw from, and so change, the global random state
            generator=torch.Generator(),
        )

    # ---- resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        world_size = self.trainer.world_size if self.trainer else 1
        return {"batch_size": self.batch_size, "world_size": world_size, "files": self.fingerprint()}

    def changed_files(self, state: dict[str, Any]) -> str:
        """How the files differ from those of the run that ``state`` comes from; "" if they do not."""
        return difference(self.hparams.get("root"), state.get("files"), self.fingerprint())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = SSLDataModule.state_dict(self)
        if changed := self.changed_files(state):
            raise ConfigError(
                f"{changed}: splits and the order of samples would change within the run. Restore the files, "
                "or start a new run"
            )
        if any(state[key] != now[key] for key in ("batch_size", "world_size")):
            raise ConfigError(
                f"the checkpoint was written with batch_size {state['batch_size']} on "
                f"{state['world_size']} processes, now it is {now['batch_size']} on {now['world_size']}: the "
                "order of samples would change within the run. Resume with the same numbers, or start a new "
                "run"
            )


def check_padding(padding: Padding, data: SSLDataModule) -> None:
    """Raise ConfigError unless ``padding``, the option of a method, is that of the data."""
    if padding == data.padding:
        return
    if data.padding is None:
        what, wrong = "has no padding", "samples are treated as padding"
    elif data.padding == "frames":
        what, wrong = "fills up short clips with frames", "padding is treated as sound"
    else:
        what, wrong = f"pads short samples with token {data.padding}", "padding is treated as text"
    raise ConfigError(
        f"{type(data).__name__} {what}, but padding is {padding}: give --model.padding "
        f"{'null' if data.padding is None else data.padding}, otherwise {wrong}"
    )


def data_of(trainer: Trainer) -> SSLDataModule | None:
    """The DataModule of a run; None if the Trainer was given loaders or another kind of DataModule."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SSLDataModule) else None
