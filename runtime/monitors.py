"""Checks, before the first step, that monitored metrics will be logged."""

from __future__ import annotations

import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from evaluation.callbacks import MetricsCallback
from runtime.discovery import PACKAGES
from runtime.messages import did_you_mean
from sslmodules import SSLModule

#: Hooks in which a method could log its own metrics.
HOOKS = {
    "train": ("training_step", "on_train_batch_end", "on_train_epoch_end"),
    "val": ("validation_step", "on_validation_batch_end", "on_validation_epoch_end"),
}


def check_monitors(callbacks: list[Callback], module: SSLModule, data: SSLDataModule) -> None:
    """Raise ConfigError for a callback that monitors a metric that the run does not log.

    A user's callbacks and hooks may log anything: if there are any, an unknown name is accepted, and
    Lightning reports a missing metric when it reads it.
    """
    asked = {
        callback.monitor: type(callback).__name__
        for callback in callbacks
        if isinstance(callback, ModelCheckpoint) or (isinstance(callback, EarlyStopping) and callback.strict)
        if callback.monitor not in (None, "epoch", "step")
    }
    known = declared(callbacks, module, data)
    if asked.keys() <= known:
        return
    known |= {f"{stage}/{term}" for stage in ("train", "val") for term in _terms(module, data)}
    for monitor, name in asked.items():
        if monitor not in known and not _may_be_logged(monitor, callbacks, module):
            raise ConfigError(
                f"trainer.callbacks: {name} monitors {monitor!r}, which this run does not log"
                f"{did_you_mean(monitor, known)}; known: {', '.join(sorted(known))}"
            )


def declared(callbacks: list[Callback], module: SSLModule, data: SSLDataModule) -> set[str]:
    """Names of the metrics that callbacks and method declare, without the terms of the loss."""
    known = {"train/loss", "val/loss", *module.extra_metrics}
    for callback in callbacks:
        if isinstance(callback, MetricsCallback):
            known |= set(callback.metrics(data))
    return known


@torch.no_grad()
def _terms(module: SSLModule, data: SSLDataModule) -> list[str]:
    """Names of the terms of the method's loss, found with two samples in eval mode."""
    dataset = data.dataset("train")
    rows = dataset.__getitems__(list(range(min(2, len(dataset)))))  # type: ignore[attr-defined, arg-type]
    batch = data.transform(rows, torch.Generator())
    was_training = module.training
    module.eval()
    with torch.random.fork_rng(devices=[]):
        terms = module.losses(batch)
    module.train(was_training)
    return list(terms)


def _may_be_logged(monitor: str, callbacks: list[Callback], module: SSLModule) -> bool:
    """Whether some code may log this metric without declaring it."""
    packages = {type(callback).__module__.partition(".")[0] for callback in callbacks}
    if packages - {*PACKAGES, "lightning"}:
        return True
    hooks = HOOKS.get(monitor.partition("/")[0], ())
    own = any(getattr(type(module), hook) is not getattr(SSLModule, hook) for hook in hooks)
    return own and not module.extra_metrics
