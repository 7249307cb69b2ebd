"""What a step costs on several GPUs: bytes that DDP sends, host waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sslmodules.networks.equal_buffers import broadcast_once, keep_from_broadcast
from tests.conftest import CONFIGS, VARIANTS, build, trainer_for

#: Bytes of a step's broadcast that are neither statistics of batch norms nor worth a declaration, such as
#: the token numbers of transformers' BertModel.
SMALL_CHANGE = 4096


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=30))
    yield
    distributed.destroy_process_group()


def sent(module: nn.Module) -> int:
    """Bytes that DDP broadcasts before each step: what its ``_sync_buffers`` is given."""
    wrapped = DistributedDataParallel(module)
    wrapped._assign_modules_buffers()
    return sum(buffer.nbytes for buffer in wrapped.modules_buffers)


@pytest.mark.parametrize("config", [*CONFIGS, *VARIANTS])
def test_ddp_sends_statistics_of_batch_norms_and_next_to_nothing_else(config: str, group: None) -> None:
    module, _ = build(config)
    statistics = sum(
        buffer.nbytes
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for buffer in part.buffers()
    )
    keep_from_broadcast(module)
    assert sent(module) <= statistics + SMALL_CHANGE


def test_a_run_declares_its_equal_buffers_before_ddp_wraps_the_method(group: None, tmp_path: Path) -> None:
    module, data = build("configs/digits/moco.yaml")
    assert sum(buffer.nbytes for buffer in module.buffers()) > 512 * 128 * 4
    trainer = trainer_for(tmp_path, strategy="ddp", max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    assert module._ddp_params_and_buffers_to_ignore == ["queue", "queue_filled"]


class Broadcasts:
    """Stands in for ``torch.distributed.broadcast``: keeps the number of values of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        monkeypatch.setattr(distributed, "broadcast", self)

    def __call__(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        self.sizes.append(tensor.numel())
        tensor += 1  # what rank 0 has


def test_equal_buffers_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = build("swav-queue")
    sent = Broadcasts(monkeypatch)
    broadcast_once(module)
    assert sent.sizes == [module.queue.numel()] and (module.queue == 1).all()


def test_a_gan_sends_all_statistics_in_one_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = build("configs/digits/gan.yaml")
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d)]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    sent = Broadcasts(monkeypatch)
    module.share_statistics()
    assert sent.sizes == [2 * sum(norm.num_features for norm in norms)]
    for norm, (mean, var) in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean + 1) and torch.equal(norm.running_var, var + 1)
