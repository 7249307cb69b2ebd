"""The base DataModule: batches, resumable sampling, and views computed on the device."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from datamodules.checks import check_at_least
from datamodules.errors import ConfigError, DataFileError
from datamodules.listing import difference
from datamodules.samplers import EpochSampler, ShardSampler, interleaved, labels_of
from datamodules.seeding import mix_seed, run_seed
from datamodules.splits import Split
from datamodules.transforms.base import BatchTransform, apply_views
from runtime.lightning_internals import PlainHyperparameters
from runtime.optional import check_optional, optional


class Batch(TypedDict, total=False):
    """The one batch of the project. Train and validation batches hold the same keys; a key that nobody adds
    is absent.

    Shapes: B batch, C channels, H height, W width, N patches, T time or tokens, F frequencies.
    """

    input: Tensor  # CLEAN sample: (B, C, H, W) float standardized; (B, 1, F, T) log-mel; (B, T) int64 tokens
    label: Tensor  # (B,) int64, -1 = unknown; only probes read it
    views: list[Tensor]  # each (B, C, h, w), standardized; global views first
    mask: Tensor  # bool, True = hidden: (B, 1, H, W) pixels or (B, N) patches
    corrupted: Tensor  # damaged ``input``: (B, C, H, W) standardized; (B, T) int64 tokens with some replaced
    target: Tensor  # (B, T) int64, -100 where there is no loss
    segment: Tensor  # (B, T) int64, 0 or 1
    is_next: Tensor  # (B,) int64


def keep_batch(batch: Any) -> Any:
    """``collate_fn`` for data sets whose ``__getitems__`` returns a whole batch."""
    return batch


def ignore_foreign_signals(worker: int) -> None:
    """For a data-loading worker: of all that sends signals only the process that started it may end it.

    SLURM and a terminal signal every process of a run. A worker that ended of it would end the run, which
    wants to finish its batch and save. torch's own handler dies of a stranger's SIGTERM.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this thread, and of those that it starts

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Fetch(Dataset):
    """The same data set; an error in the code also says which samples were asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self.dataset.__getitems__(indices)  # type: ignore[attr-defined]
        except (ConfigError, DataFileError):  # complete as they are
            raise
        except Exception as error:
            shown = ", ".join(map(str, indices[:5])) + (
                f", ... ({len(indices)} in all)" if len(indices) > 5 else ""
            )
            error.args = (f"{error} (while fetching samples {shown})", *error.args[1:])
            raise


class LateLoader(DataLoader):
    """Reads nothing before its first batch is asked for.

    Lightning makes the iterator before it has read the checkpoint and set the epoch. Workers would begin
    with samples of the first epoch.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()


def raw_input(x: Tensor) -> Tensor:
    """The standardized input itself, (B, ...) as a vector; images averaged down to at most 32 pixels a
    side.
    """
    if x.ndim == 4 and max(x.shape[-2:]) > 32:
        x = F.adaptive_avg_pool2d(x, 32)
    return x.flatten(1)


class SSLDataModule(PlainHyperparameters, LightningDataModule, ABC):
    """Clean samples from data sets, views from a module on the device.

    A subclass gives ``dataset(split)``, whose ``__getitems__(indices)`` returns ``{"input": ..., "label":
    (B,)}`` in the smallest form (uint8 images, int16 audio, token ids), and the two steps ``decode`` and
    ``standardize``. Workers read and crop only; ``on_after_batch_transfer`` does the rest on the device.

    Args:
        views: makes views or masks of a decoded batch and adds them as keys; None adds nothing.
        batch_size: samples per rank and step.
        num_workers: processes that read data; 0 is right for data in memory.
        bank_size: at most so many labeled training samples are the probes' bank at validation.
        synthetic: random samples of the data set's shape instead of its files: for tests and dry runs, never
            for numbers.

    Attributes:
        num_classes: number of classes, or None for unlabeled data: then no probe runs.
        class_names: one name per class; empty for unlabeled data.
        vocab_size: how many tokens there are, where ``input`` is tokens.
        pad_id: the token that fills up short samples; None where there is none.
        characters_per_token: mean over the validation split, for bits per character; None where that has no
            meaning.
        max_unreadable: damaged files that may be passed over.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    vocab_size: int | None = None
    pad_id: int | None = None
    characters_per_token: float | None = None
    max_unreadable: int = 0

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

    # ---- given by a subclass -------------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, split: Split) -> Dataset:
        """The samples of a split: train (what is pre-trained on), bank (labeled train split), val (held out
        of TRAIN data, for every choice) or test (reported, never chosen on).
        """

    def decode(self, raw: Tensor) -> Tensor:
        """From the form in which samples travel to the one that ``views`` takes. Images: uint8 to float in
        [0, 1].
        """
        return raw

    def standardize(self, decoded: Tensor) -> Tensor:
        """From decoded samples to what a network sees: zero mean and unit variance over the training
        split.
        """
        return decoded

    def unstandardize(self, x: Tensor) -> Tensor:
        """Back from what a network sees to decoded samples, for pictures."""
        return x

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Cheap features that are probed beside the encoder: by name, a function of ``input``, (B, ...) ->
        (B, D). The first line of its docstring goes into the report.
        """
        return {"raw_input": raw_input}

    def input_format(self) -> dict[str, Any]:
        """What decides how a sample looks to a network, by the option that sets it: when a trained network is
        evaluated on other data of the same kind, that data is given these values.
        """
        return {}

    def fingerprint(self) -> dict[str, Any] | None:
        """What tells whether the files are those that a run began with, cheap and without reading contents:
        ``count`` and ``digest``. None where nothing can be added to them.
        """
        return None

    def remarks(self) -> list[str]:
        """Lines to be said before training about what is odd with the data."""
        return []

    def class_counts(self, split: Split = "bank") -> dict[str, int]:
        """Samples of each class in ``split``; empty without labels."""
        labels = labels_of(self.dataset(split))
        if labels is None:
            return {}
        names = self.class_names or range(self.num_classes or 0)
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        return {str(name): int(count) for name, count in zip(names, counts, strict=True)}

    def unreadable_files(self) -> list[str]:
        """Files of the training split that were passed over so far."""
        return []

    def save(self, folder: Path) -> None:
        """Write what a run folder should keep of the data beside the configuration, such as a tokenizer."""

    # ---- what data may offer -------------------------------------------------------------------------------

    @optional
    def files(self, split: Split) -> list[str]:
        """One path for each sample of ``split``, in the order of ``dataset(split)``."""
        raise NotImplementedError

    @optional
    def to_text(self, tokens: Tensor) -> str:
        """Token ids (T,) as text."""
        raise NotImplementedError

    # ---- batches -------------------------------------------------------------------------------------------

    def transform(self, batch: dict[str, Any], generator: torch.Generator | None) -> Batch:
        """Decode and standardize ``input``; with a generator, add what ``views`` makes of it (new dict, same
        device).
        """
        decoded = self.decode(batch["input"])
        out: dict[str, Any] = {**batch, "input": self.standardize(decoded)}
        if self.views is not None and generator is not None:
            out.update(apply_views(self.views, decoded, generator))
            if "views" in out:
                out["views"] = [self.standardize(view) for view in out["views"]]
            if "corrupted" in out:
                out["corrupted"] = self.standardize(out["corrupted"])
        return out  # type: ignore[return-value]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        """Views on the device, drawn from (seed, rank, epoch, batch index): a resumed run sees what it would
        have seen.

        Every DDP rank has the same global random state after ``seed_everything``, hence the rank among the
        seeds.
        """
        trainer = self.trainer
        if trainer is None:
            return self.transform(batch, None)
        generator = None
        if trainer.training:
            # not `batches_done`: while the last batch of an epoch is on its way, that is of the next epoch
            index = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            generator = self._generator(batch, trainer.current_epoch + 1, index)
        elif dataloader_idx == 0 and (trainer.validating or trainer.sanity_checking):
            # the same views at every validation, so that a curve moves with the model and not with the draw
            loop = (
                trainer.validate_loop
                if trainer.state.fn == "validate"
                else trainer.fit_loop.epoch_loop.val_loop
            )
            generator = self._generator(batch, 0, loop.batch_progress.current.ready)
        # the precision plugin has seen the raw batch only; with `bf16-true` or `64-true` the views must
        # follow the weights
        return trainer.precision_plugin.convert_input(self.transform(batch, generator))

    def _generator(self, batch: dict[str, Any], epoch: int, index: int) -> torch.Generator:
        rank = self.trainer.global_rank  # type: ignore[union-attr]
        return torch.Generator(batch["input"].device).manual_seed(mix_seed(run_seed(), rank, epoch, index))

    def batches_done(self) -> int:
        """Batches that the epoch which now begins has behind it: 0, unless a run is resumed inside of it."""
        if self.trainer is None or not self.trainer.training:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return 0 if progress.is_last_batch else progress.current.ready

    # ---- loaders -------------------------------------------------------------------------------------------

    def check_batch_size(self, world_size: int) -> None:
        """ConfigError if the training split does not fill one batch of ``world_size`` processes, or one of
        them is left without a validation sample.
        """
        n, each = len(self.dataset("train")), self.batch_size * world_size  # type: ignore[arg-type]
        if n < each:
            raise ConfigError(
                f"{type(self).__name__} has {n} training samples, fewer than one batch of {each} "
                f"(batch_size {self.batch_size} "
                f"x {world_size} processes): give --data.batch_size {max(1, n // world_size)} or less"
            )

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
        dataset = self.dataset("train")
        sampler = EpochSampler(dataset, self.batch_size, run_seed(), *self._place(), self)
        return self._loader(dataset, sampler, drop_last=True)

    def val_dataloader(self) -> list[DataLoader]:
        """[val, bank]: bank is the clean labeled train split (at most ``bank_size`` of it, a fixed choice).

        Both come in the fixed order of ``interleaved``: a limited validation, or a callback that looks at the
        first samples only, sees all classes.
        """
        bank = self.dataset("bank")
        n = len(bank)  # type: ignore[arg-type]
        if n > self.bank_size:
            bank = Subset(bank, np.sort(np.random.default_rng(0).permutation(n)[: self.bank_size]).tolist())
        return [
            self._loader(d, ShardSampler(d, *self._place(), interleaved(d)), drop_last=False)
            for d in (self.dataset("val"), bank)
        ]

    def _place(self) -> tuple[int, int]:
        """Rank of this process and the number of processes, of the Trainer or of a loop of one's own."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        started = distributed.is_available() and distributed.is_initialized()
        return (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)

    def eval_dataloader(self, dataset: Dataset) -> DataLoader:
        """All samples of ``dataset`` once and in order, in this process."""
        return self._loader(dataset, ShardSampler(dataset, 0, 1), drop_last=False)

    def _loader(self, dataset: Dataset, sampler: DistributedSampler, drop_last: bool) -> DataLoader:
        return LateLoader(
            Fetch(dataset),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=keep_batch,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=ignore_foreign_signals,
            # its own: the default would draw from, and so move, the global random state
            generator=torch.Generator(),
        )

    # ---- resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        world_size = self.trainer.world_size if self.trainer else 1
        return {"batch_size": self.batch_size, "world_size": world_size, "files": self.fingerprint()}

    def changed_files(self, state: dict[str, Any]) -> str:
        """How the files differ from those of the run that ``state`` is of, in words; "" if they do not."""
        return difference(self.hparams.get("root"), state.get("files"), self.fingerprint())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = SSLDataModule.state_dict(self)
        if changed := self.changed_files(state):
            raise ConfigError(
                f"{changed}: splits and the order of samples would change inside the run. Restore the files, "
                "or start a new run"
            )
        if any(state[key] != now[key] for key in ("batch_size", "world_size")):
            raise ConfigError(
                f"the checkpoint was written with batch_size {state['batch_size']} on "
                f"{state['world_size']} processes, now "
                f"it is {now['batch_size']} on {now['world_size']}: the order of samples would change "
                "inside the run. "
                "Resume with the same numbers, or start a new run"
            )


def data_of(trainer: Trainer) -> SSLDataModule | None:
    """The DataModule of a run; None where the Trainer was given loaders, or a DataModule of another kind."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SSLDataModule) else None
