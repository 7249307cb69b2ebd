"""``--compile``: torch.compile for the encoder, in training steps."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from datamodules.errors import ConfigError
from runtime.optional import offers
from sslmodules.base import SSLModule
from sslmodules.networks.encoder import Encoder


def compile_encoder(encoder: Encoder) -> None:
    """Compile the encoder and its blocks in place, at their first batch; parameters keep their names.

    The blocks are compiled for methods that do not call the encoder as a whole, such as MAE. Each shape is
    compiled separately, so that earlier shapes, such as those of a validation, do not affect the result.
    """
    encoder.compile(dynamic=False)
    for block in encoder.block_list() if offers(encoder, "block_list") else ():
        block.compile(dynamic=False)


def leave_uncompiled(encoder: Encoder) -> None:
    """Undo ``compile_encoder``, for which torch has no public call."""
    for part in encoder.modules():
        part._compiled_call_impl = None


def _add_one(x: Tensor) -> Tensor:
    return x + 1


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError with torch's reason if compiling one addition fails."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as error:  # from torch or the machine; no other code is involved
        lines = str(error).split("\n")
        # torch 2.6 begins with a heading
        reason = lines[1 if lines[0].endswith(" raised:") else 0].rstrip(".")
        raise ConfigError(
            f"--compile true: torch.compile does not work here ({reason}): install what is missing, such "
            "as a C++ compiler, or train without --compile"
        ) from error


class CompileEncoder(Callback):
    """Compiles the encoder for training steps. Validation is not compiled: its features equal eval.py's.

    After training, or an exception, nothing is compiled, and torch.compile is as it was for other code.

    Raises:
        ConfigError: under FSDP, whose shards of the weights torch.compile takes for the weights.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ConfigError(
                "--compile true does not work with FSDP: train without --compile, or give "
                "--trainer.strategy ddp"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        compile_encoder(pl_module.encoder)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("default")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        leave_uncompiled(pl_module.encoder)  # for the evaluation

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        torch.compiler.set_stance("default")  # it may have happened in a validation
        assert isinstance(pl_module, SSLModule)
        leave_uncompiled(pl_module.encoder)
