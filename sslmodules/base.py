"""The base class of all methods: training step, schedule, gathering across processes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from datamodules.base import Batch, SSLDataModule, data_of
from datamodules.checks import check_at_least, check_within
from datamodules.errors import ConfigError, DataFileError
from datamodules.seeding import mix_seed, run_seed
from runtime.lightning_internals import PlainHyperparameters, synchronizes_batch_norm, trainer_of
from runtime.optional import check_optional, optional
from sslmodules.networks.encoder import Encoder
from sslmodules.networks.equal_buffers import broadcast_once, keep_from_broadcast
from sslmodules.networks.pixel_tokens import PixelTokens
from sslmodules.networks.sharding import clip_norm, is_sharded, prepare_sharding, share_buffers
from sslmodules.networks.sync_batchnorm import check_convertible, keep_activations
from sslmodules.optim import decay_groups, factor_of_group, warmup_cosine


def seed_noise(device: torch.device, *numbers: int) -> None:
    """Seed the random state used by dropout and sampling: the CPU's and, for a module on a GPU, that GPU's.

    ``torch.manual_seed`` would also visit every kind of unused device: half a millisecond per step.
    """
    seed = mix_seed(run_seed(), *numbers)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def full_precision(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32, where half precision loses too much; keep other types."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Gathered(NamedTuple):
    """Rows of all ranks, and the index of this rank's first row."""

    rows: Tensor  # (W * B, ...)
    offset: int


class SSLModule(PlainHyperparameters, LightningModule, ABC):
    """A self-supervised method. Subclasses implement ``losses``, and ``embed`` if it is not ``encoder(x)``.
    Args:
        optimizer: builds the optimizer from parameter groups. Required: a default would leak its settings
            into a YAML that names another class. Its learning rate is the peak rate and is not scaled. Its
            weight decay does not apply to biases and normalization parameters (all with fewer than two
            dimensions).
        warmup_epochs: linear warm-up of the learning rate from 0, in epochs (counted in optimizer steps).
        final_lr_factor: the cosine decay ends at this fraction of the peak; 1 keeps the rate constant after
            warm-up.

    Raises:
        ValueError: an option is out of range, or the optimizer rejects its settings.
    """

    encoder: Encoder
    #: The loss compares the samples of a batch: it needs at least two, and accumulating gradients does not
    #: add to them.
    couples_batch: bool = False
    #: The loss is computed from labels.
    reads_labels: bool = False
    #: The metric that selects the checkpoint to evaluate, ``best.ckpt``, and whether the highest ("max") or
    #: the lowest ("min") value is best; None = the final weights are evaluated.
    best_metric: tuple[str, Literal["min", "max"]] | None = None
    #: What ``losses`` reads from the batch besides ``input``; the DataModule's ``views`` must add it.
    batch_keys: tuple[str, ...] = ()
    #: ``losses`` reads two views: more are refused, because they would be made for nothing.
    two_views: bool = False
    #: Metrics that are logged in hooks, or in training only, such as ``val/perplexity``.
    extra_metrics: tuple[str, ...] = ()
    #: The loss, or the term ``masked_word_loss``, is in nats per predicted token: the report compares it with
    #: tables of frequencies.
    predicts_tokens: bool = False
    #: Converts images to tokens, if the loss is over the values of images one after the other.
    pixels: PixelTokens | None
    #: Names of buffers that are equal on all ranks, such as a queue of gathered keys: DDP need not send them.
    equal_buffers: tuple[str, ...] = ()
    #: It also writes to its weights itself, such as prototypes that it normalizes.
    writes_weights: bool = False
    #: Minimum number of frames in a clip for ``continue_clip``.
    shortest_clip: int = 1

    def __init__(
        self, optimizer: OptimizerCallable, warmup_epochs: float = 0.0, final_lr_factor: float = 0.0
    ) -> None:
        super().__init__()
        check_at_least(0, warmup_epochs=warmup_epochs)
        check_within(0, 1, final_lr_factor=final_lr_factor)
        try:  # fail here on a bad learning rate, not after the data is loaded
            optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:  # not a number, or out of range
            joint = "." if isinstance(error, ConfigError) else ": "  # optimizer.lr must be ...
            raise ConfigError(f"optimizer{joint}{error}") from None
        self.save_hyperparameters()
        self.optimizer, self.warmup_epochs, self.final_lr_factor = optimizer, warmup_epochs, final_lr_factor
        self.total_steps = 0  # optimizer steps of the run, set when the optimizer is configured
        self.pixels = None

    # ---- implemented by a method ---------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; ``"loss"`` is minimized, the others are logged."""

    @property
    def feature_encoder(self) -> Encoder:
        """The network behind ``embed``; differs from ``encoder`` if a teacher is evaluated."""
        return self.encoder

    def embed(self, x: Tensor) -> Tensor:
        """The features that probes use: a batch's ``input`` to h of shape (B, encoder.num_features)."""
        return self.feature_encoder(x)

    def averaged_over(self, batch: Batch) -> dict[str, float]:
        """Number of values that terms of ``losses(batch)`` are means over, by name; default: of samples.

        Means over a split are weighted by it, so that they do not depend on the batch size.
        """
        return {}

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms computed from the means of other terms, such as a perplexity.

        Args:
            means: the terms of a batch, or their means over a split.
        """
        return {}

    def update_teacher(self) -> None:
        """Called once after every optimizer step, regardless of gradient accumulation."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: every trainable parameter in exactly one.

        A group with ``"constant_lr": True`` keeps the optimizer's learning rate: no warm-up, no decay. In a
        group with ``"lr_scale"``, the learning rate is multiplied by it at every step.
        """
        return decay_groups(self)

    # ---- optional methods: override those that a method supports, with these signatures --------------------

    @optional
    def classify(self, x: Tensor) -> Tensor:
        """``input`` -> scores (B, K) of the classes that the method was trained on."""
        raise NotImplementedError

    @optional
    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) images in units of ``input``: a prediction of the hidden parts, or of everything."""
        raise NotImplementedError

    @optional
    def sample(self, n: int) -> Tensor:
        """(n, C, H, W) new images in units of ``input``.

        Add ``temperature: float = 1.0`` if sampling has a temperature.
        """
        raise NotImplementedError

    @optional
    def interpolate(self, x: Tensor, steps: int) -> Tensor:
        """Images (B, C, H, W) -> (B, steps, C, H, W): from each to the next, from the last to the first."""
        raise NotImplementedError

    @optional
    def complete(
        self, x: Tensor, keep: float = 0.5, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """``input`` (B, ...) with everything after its first part, a share ``keep``, sampled."""
        raise NotImplementedError

    @optional
    def extend(
        self, tokens: Tensor, length: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """(B, t) tokens -> (B, t + length): the following tokens, sampled one by one."""
        raise NotImplementedError

    @optional
    def fill(self, batch: Batch) -> Tensor:
        """(B, 1, M, T) log-mel in units of ``input``, with the hidden patches predicted."""
        raise NotImplementedError

    @optional
    def continue_clip(self, x: Tensor, steps: int) -> Tensor:
        """(B, 1, M, T) log-mel without padding, in units of ``input`` -> (B, 1, M, T + steps)."""
        raise NotImplementedError

    @optional
    def to_transformers(self) -> Any:
        """Network and heads as a ``PreTrainedModel`` of the ``transformers`` library, in eval mode.

        If not overridden, the encoder's is exported.
        """
        raise NotImplementedError

    # ---- helpers for methods -------------------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """Number of processes of the run; 1 without a Trainer."""
        trainer = trainer_of(self)
        return 1 if trainer is None else trainer.world_size

    def gather(self, z: Tensor) -> Gathered:
        """(B, ...) of all ranks as (W * B, ...), in rank order, with gradients; index of the first local row.

        Outside training: ``z`` itself and 0, because validation batches differ in size between ranks. The
        backward pass sums over ranks; with DDP's mean over ranks, the gradient of a loss over the gathered
        batch equals that of one process with the joined batch.
        """
        if not self.training or self.world_size == 1:
            return Gathered(z, 0)
        gathered = self.all_gather(z, sync_grads=True)
        assert isinstance(gathered, Tensor)
        if gathered.requires_grad:  # gloo permutes the values of a gradient with other strides
            gathered.register_hook(lambda gradient: gradient.contiguous())
        return Gathered(gathered.flatten(0, 1), self.global_rank * len(z))

    def progress(self) -> float:
        """Share of the run's optimizer steps already done, in [0, 1], for schedules; 0 without a Trainer."""
        return min(1.0, self.global_step / self.total_steps) if self.total_steps else 0.0

    def randn(self, *size: int) -> Tensor:
        """Standard normal noise on the module's device, one row per sample. Methods must draw all noise here.

        It is seeded at every step by (seed, rank, epoch, step). With a single place for noise, a test can
        give one process the draws of two.
        """
        return torch.randn(*size, device=self.device)

    def rand(self, *size: int) -> Tensor:
        """Like ``randn``, but uniform in [0, 1)."""
        return torch.rand(*size, device=self.device)

    # ---- Lightning -----------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def check_batch_size(self, global_batch: int) -> None:
        """Raise ValueError if a batch of this size leaves the method nothing to compare."""
        if self.couples_batch and global_batch < 2:
            raise ConfigError(
                f"{type(self).__name__} compares the samples of a batch, so batch_size must be at least 2, "
                f"got {global_batch}"
            )

    def check_data(self, data: SSLDataModule) -> None:
        """Raise ConfigError for data that the method would misinterpret."""

    def check_batch(self, batch: Batch) -> None:
        """Raise ValueError for a batch without the keys that ``losses`` uses."""
        if missing := [key for key in self.batch_keys if key not in batch]:
            raise ConfigError(
                f"{type(self).__name__} needs {missing[0]!r} in the batch, which has only "
                f"{', '.join(batch)}: set data.views "
                "to a class that adds it (views: TwoViews or a preset such as SimCLRViews; mask: "
                "RandomBlock, CenterHole; corrupted: GaussianNoise, for text MaskedTokens)"
            )
        if "views" in self.batch_keys and len(batch["views"]) < 2:
            raise ConfigError(
                f"{type(self).__name__} needs two views of each sample, got {len(batch['views'])}: set "
                "data.views"
            )
        if self.two_views and len(batch["views"]) > 2:
            raise ConfigError(
                f"{type(self).__name__} uses two views of each sample, got {len(batch['views'])}: set "
                "data.views to two, or take a method for more, such as FastSiam, VICReg, VISReg or SwAV"
            )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **given: Any
    ) -> Any:
        """Like ``load_module``, for a checkpoint of this class.

        Args:
            checkpoint_path: the checkpoint.
            map_location: device of the module; default: the CPU.
            given: see ``load_module``.
        Raises:
            DataFileError: the file cannot be used, or contains another method.
        """
        from runtime.checkpoints import load_module  # which imports this file

        module = load_module(checkpoint_path, **given)
        if not isinstance(module, cls):
            raise DataFileError(f"{checkpoint_path} contains {type(module).__name__}, not {cls.__name__}")
        return module.to(map_location or "cpu")

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Called by torch's conversion to synchronized batch norm, for every network it replaces."""
        super().add_module(name, module)
        keep_activations(module)

    def setup(self, stage: str) -> None:
        check_optional(self)
        check_optional(self.encoder)
        if stage != "fit":
            return
        prepare_sharding(self, self.trainer.strategy)
        keep_from_broadcast(self)
        if synchronizes_batch_norm(self.trainer):
            check_convertible(self)
        if (data := data_of(self.trainer)) is not None:
            self.check_batch_size(data.batch_size * self.trainer.world_size)
            self.check_data(data)
        if self.couples_batch and self.trainer.accumulate_grad_batches > 1:
            rank_zero_warn(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches} does not enlarge the batch "
                f"in which {type(self).__name__} compares samples: its loss still sees one batch at a time"
            )

    def on_train_start(self) -> None:
        if self.world_size > 1:
            broadcast_once(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Seed the model's noise (dropout, sampling) from the step only, so that a resumed run repeats it.
        seed_noise(self.device, self.global_rank, self.trainer.current_epoch, batch_idx, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_batch(batch)
        terms = self.losses(batch)
        # `self.log` costs about half a millisecond per call: one call, and only on steps that are written
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logged = {k: v.detach() for k, v in terms.items()}
            self.log_dict({f"train/{k}": v for k, v in (logged | self.derived(logged)).items()})
        return terms["loss"]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Features of the batch for the probes; on the ``val`` loader also the loss on held-out data."""
        if dataloader_idx == 0:
            seed_noise(self.device, self.global_rank, batch_idx, 2)
            terms, counts = self.losses(batch), self.averaged_over(batch)
            for name in terms.keys() - self.derived(terms).keys():
                # as a float: Lightning would truncate the mean of integers over processes
                n: Any = float(counts.get(name, len(batch["input"])))
                self.log(f"val/{name}", terms[name], batch_size=n, sync_dist=True, add_dataloader_idx=False)
        return {"features": self.embed(batch["input"]).flatten(1).float()}

    def on_validation_start(self) -> None:
        share_buffers(self.trainer)

    def on_validation_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        means = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
        if means:
            self.log_dict({f"val/{k}": v for k, v in self.derived(means).items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seed"] = run_seed()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_teacher()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if is_sharded(self.trainer) and gradient_clip_val and gradient_clip_algorithm != "value":
            clip_norm(self.trainer, optimizer, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        factor = self.schedule()
        factors = [factor_of_group(group, factor) for group in optimizer.param_groups]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"},
        }

    def schedule(self) -> Callable[[int], float]:
        """Learning-rate factor at each optimizer step; also sets the run length that ``progress`` uses."""
        self.trainer.fit_loop.setup_data()  # otherwise the number of batches is not known yet
        self.total_steps = total = int(self.trainer.estimated_stepping_batches)
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return warmup_cosine(total, round(self.warmup_epochs * per_epoch), self.final_lr_factor)
