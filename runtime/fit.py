"""Checks, with two samples, that the method accepts the data."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from torch import Tensor, nn

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError, DataFileError
from runtime.optional import check_optional
from sslmodules import SSLModule
from sslmodules.networks.encoder import Encoder
from sslmodules.networks.timm_encoder import patch_layer


def check_interval(trainer: Trainer, data: SSLDataModule) -> None:
    """Raise ConfigError if the validation interval is longer than an epoch."""
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None:
        return
    batches = len(data.dataset("train")) // (data.batch_size * trainer.world_size)  # type: ignore[arg-type]
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if interval > batches:
        raise ConfigError(
            f"--trainer.val_check_interval {interval} is more than the {batches} batches of an epoch: give "
            f"{batches} or less, --trainer.check_val_every_n_epoch N to validate after whole epochs, or "
            "--trainer.check_val_every_n_epoch null to count batches over epochs"
        )


TRAINED = "the network is trained, so give data that matches it"


@torch.no_grad()
def check_fit(module: SSLModule, data: SSLDataModule, world_size: int) -> None:
    """Pass two samples through views and encoder, to find a mismatch before anything is written.

    Raises:
        ConfigError: too few samples for a batch, views that lack what the method reads, samples of another
            size than the encoder declares, or features that are not (B, num_features).
        Exception: whatever else ``embed`` raises, with its own traceback.
    """
    for thing in (module, module.encoder, data):
        check_optional(thing)
    data.check_batch_size(world_size)
    module.check_batch_size(data.batch_size * world_size)
    module.check_data(data)
    dataset = data.dataset("train")
    indices = list(range(min(2, len(dataset))))  # type: ignore[arg-type]
    batch = data.transform(dataset.__getitems__(indices), torch.Generator())  # type: ignore[attr-defined]
    module.check_batch(batch)
    check_samples(module, data, batch["input"])


@torch.no_grad()
def check_samples(module: SSLModule, data: SSLDataModule, x: Tensor | None = None) -> None:
    """Check that the encoder accepts samples ``x`` (B, ...) of the data.

    Args:
        module: the method.
        data: set up.
        x: None = two test samples, for a trained network, when only the data can still be changed.

    Raises:
        ConfigError, Exception: as for ``check_fit``.
    """
    name, is_trained = type(data).__name__, x is None
    if x is None:
        dataset = data.dataset("test")
        indices = list(range(min(2, len(dataset))))  # type: ignore[arg-type]
        raw = dataset.__getitems__(indices)["input"].to(module.device)  # type: ignore[attr-defined]
        x = data.transform({"input": raw}, None)["input"]
    given, needed = module.encoder.vocab_size, data.vocab_size
    if given is not None and needed is not None and given < needed:
        remedy = TRAINED if is_trained else f"give --model.encoder.vocab_size {needed}"
        raise ConfigError(f"the encoder knows {given} tokens, but {name} has {needed}: {remedy}")
    h = _embedded(module, x, name, is_trained)
    width = module.encoder.num_features
    if h.flatten(1).shape != (len(x), width):
        raise ConfigError(
            f"{type(module).__name__}.embed returned {tuple(h.shape)} for {len(x)} samples, expected "
            f"({len(x)}, {width})"
        )


def _embedded(module: SSLModule, x: Tensor, name: str, is_trained: bool) -> Tensor:
    """``module.embed(x)`` in eval mode.

    An exception is reported as a mismatch only if the encoder was called with the unchanged samples and
    declares another size; otherwise it is an error in the code.
    """
    encoder, shapes, was_training = module.feature_encoder, [], module.training

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes.append(getattr(inputs[0], "shape", None) if inputs else None)

    handle = encoder.register_forward_pre_hook(note)
    module.eval()
    try:
        return module.embed(x)
    except (ConfigError, DataFileError):
        raise
    except Exception as error:
        found = misfit(encoder, x) if shapes and shapes[-1] == x.shape else None
        if found:
            raise ConfigError(
                f"{type(encoder).__name__} does not accept samples of {name} of shape {tuple(x.shape[1:])}: "
                f"{found.declared}; {TRAINED if is_trained else found.remedy}"
            ) from error
        print(
            f"note: {type(module).__name__}.embed failed for {len(x)} samples of {name} of shape "
            f"{tuple(x.shape[1:])}, before {'evaluation' if is_trained else 'training'}",
            file=sys.stderr,
        )
        raise
    finally:
        handle.remove()
        module.train(was_training)


class Misfit(NamedTuple):
    """A declaration of the encoder that the samples do not match, and the option to give before training."""

    declared: str
    remedy: str


def misfit(encoder: Encoder, x: Tensor) -> Misfit | None:
    """The declaration of ``encoder`` that ``x`` (B, ...) does not match; None if all match."""
    channels, features = encoder.in_channels, encoder.in_features
    if channels is not None and x.ndim < 3:
        remedy = "choose an encoder for tokens, such as BertEncoder or GPTEncoder"
        return Misfit("they have no channels", remedy)
    if channels is not None and x.shape[1] != channels:
        return Misfit(f"its in_channels is {channels}", f"give --model.encoder.in_channels {x.shape[1]}")
    if features is not None and x[0].numel() != features:
        return Misfit(f"its in_features is {features}", f"give --model.encoder.in_features {x[0].numel()}")
    patches = patch_layer(encoder)
    if patches is not None and patches.strict_img_size and tuple(x.shape[2:]) != patches.img_size:
        remedy = f"give --model.encoder.image_size {x.shape[2]}, or any_size true"
        return Misfit(f"it accepts only {patches.img_size}", remedy)
    return None
