"""What a step costs on several GPUs: bytes that DDP sends, host waits."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from datamodules import Digits
from datamodules.errors import ConfigError
from evaluation.callbacks import CollapseMetrics, FeatureProbe, gather_in_order
from runtime import callbacks
from runtime.callbacks import FiniteLoss
from runtime.command_line import SSLCommandLine
from runtime.messages import ROOT
from sslmodules.networks import MomentumCopy
from sslmodules.networks.equal_buffers import broadcast_once, keep_from_broadcast
from sslmodules.optim import LARS, clip_each
from tests.conftest import CONFIGS, EMBEDDED, VARIANTS, batch_of, build, trainer_for

#: Bytes of a step's broadcast that are neither statistics of batch norms nor worth a declaration, such as
#: the token numbers of transformers' BertModel and the frequencies of its Conformer.
SMALL_CHANGE = 16384
#: In the default suite each method once, and the queues.
QUICK = [*(c for c in CONFIGS if c.split("/")[1] in EMBEDDED), "swav-queue", "moco-groups"]
#: A step of each kind, where tracing all of them takes half a minute.
KINDS = ["swav-queue", "moco-groups", "configs/text/bert.yaml"]
KINDS += [f"configs/digits/{name}.yaml" for name in ("simclr", "dino", "gan", "mae")]


def or_slow(quick: list[str]) -> list[Any]:
    """All settings, with those that are not ``quick`` in the slow suite."""
    return [c if c in quick else pytest.param(c, marks=pytest.mark.slow) for c in (*CONFIGS, *VARIANTS)]


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


@pytest.mark.parametrize("config", or_slow(QUICK))
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


# ---- launches ----------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts the operations, each of which is at least a launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "unbind" not in str(func) and "detach" not in str(func)
        return func(*args, **(kwargs or {}))


def launches(n: int, step: Callable[[nn.Module], None]) -> int:
    """Of ``step`` on ``n`` layers with gradients."""
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    with Launches() as counted:
        step(network)
    return counted.count


def with_lars(network: nn.Module) -> None:
    optimizer = LARS(network.parameters(), lr=0.1, weight_decay=0.1)
    for p in network.parameters():
        optimizer.state[p]["momentum"] = p.detach()
    optimizer.step()


@pytest.mark.parametrize(
    "step",
    [
        with_lars,
        lambda network: clip_each(network.parameters(), 1.0),
        lambda network: MomentumCopy.update(SimpleNamespace(net=network), network, 0.9),  # type: ignore[arg-type]
    ],
    ids=["LARS", "clipping", "momentum copy"],
)
def test_launches_do_not_grow_with_the_number_of_layers(step: Callable[[nn.Module], None]) -> None:
    assert launches(3, step) == launches(30, step) > 0


# ---- waits -------------------------------------------------------------------------------------------------

CUDA = torch.device("cuda", 0)

#: Steps in which the host waits for the device once: the number of masked words is a shape.
WAITS = {"BERT": 1}


class Waits(TorchDispatchMode):
    """Notes where the host of a CUDA device waits for it: it reads a number, or it copies from or to pageable
    memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def note(self) -> None:
        ours = [f for f in traceback.extract_stack() if "/site-packages/" not in f.filename]
        self.found.append(f"{ours[-3].filename}:{ours[-3].lineno} {ours[-3].line}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        on_cuda = any(isinstance(a, Tensor) and a.device == CUDA for a in args)
        if name == "_local_scalar_dense" and on_cuda:
            self.note()
            return {torch.bool: True, torch.float32: 1.0}.get(args[0].dtype, 1)
        if name == "_local_scalar_dense":  # a number drawn on the CPU, such as mixup's
            return 0.5
        if name == "nonzero" and on_cuda:
            self.note()
            return torch.empty(3, args[0].ndim, dtype=torch.long, device=args[0].device)
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            freely = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            if source.device.type != out.device.type and not freely:
                self.note()
        return out


def on_device(value: Any) -> Any:
    """The same in the memory of a device that need not exist: shapes and types, no values."""
    return tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device=CUDA), value)


def fake_cuda() -> bool:
    """Can this torch move tensors to a device that is not there? torch 2.6 looks for a driver."""
    real = torch.ones(1)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            real.to(CUDA)
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not fake_cuda(), reason="this torch has no CUDA device of fake tensors without a driver")
@pytest.mark.parametrize("config", or_slow(KINDS))
def test_no_host_wait_in_the_step(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views, losses, the finite check, optimizer and teacher on a CUDA device of fake tensors, which has no
    values to wait for. Not the backward, which a device that is not there cannot run.
    """
    module, data = build(config)
    if any(isinstance(part, nn.RNNBase) for part in module.modules()):
        pytest.skip("recurrent networks are cuDNN's, which looks for a device")
    if getattr(module, "loss", None) == "wgan_gp":
        pytest.skip("its penalty runs a backward pass, which looks for a device")
    module.train()
    module.losses(batch_of(data))  # what is computed once, such as statistics of sounds
    raw = data.dataset("train").__getitems__(list(range(16)))  # type: ignore[attr-defined]
    on_cpu = torch.Generator()
    monkeypatch.setattr(torch, "Generator", lambda *_: on_cpu)
    monkeypatch.setattr(callbacks, "_to_host", lambda values: (values.to("cpu", non_blocking=True), None))
    monkeypatch.setattr(FiniteLoss, "_look_at_pending", lambda *_: None)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            module.to(CUDA)
            if data.views is not None:
                data.views.to(CUDA)
            optimizer = module.optimizer(module.parameter_groups())
            data.transform(on_device(raw), torch.Generator())  # copies constants, which then stay there
            with Waits() as waits:
                step(module, optimizer, data.transform(on_device(raw), torch.Generator()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    places = set(waits.found)
    assert len(places) == WAITS.get(type(module).__name__, 0), places


def step(module: Any, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        loss = module.losses(batch)["loss"]
    trainer: Any = SimpleNamespace(
        global_step=0, current_epoch=0, precision_plugin=None, optimizers=[optimizer], strategy=None
    )
    check = FiniteLoss()
    check.on_before_backward(trainer, module, loss)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.empty_like(p)
    check.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    module.update_teacher()


# ---- what processes send each other at a validation --------------------------------------------------------


def test_a_validation_sends_numbers_and_decomposes_the_features_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lightning pickles what it broadcasts: a tensor of GPU 0 is unpickled on GPU 0 in every process."""
    sent: list[Any] = []
    decompositions: list[Any] = []

    def broadcast(self: Any, obj: Any, src: int = 0) -> Any:
        sent.append(obj)
        return obj

    def svdvals(x: Tensor) -> Tensor:
        decompositions.append(x.shape)
        return real(x)

    real = torch.linalg.svdvals
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    module, data = build("configs/digits/simclr.yaml")
    watching = [FeatureProbe(), CollapseMetrics()]
    trainer = trainer_for(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=watching)
    trainer.fit(module, data)
    assert len(decompositions) == 1
    values = [sent_value for sent_value in tree_leaves(sent) if not isinstance(sent_value, bool)]
    assert values and all(isinstance(v, (int, float, str, type(None))) for v in values), values


def rows_on(rank: int, monkeypatch: pytest.MonkeyPatch) -> Tensor | None:
    """What rank 0 or 1 of two gets, which have the rows 0, 2, 4 and 1, 3."""
    local = [torch.tensor([[0.0], [2], [4]]), torch.tensor([[1.0], [3]])]

    def gather(tensor: Tensor, parts: list[Tensor] | None = None, dst: int = -1) -> None:
        assert dst == 0 and len(tensor) == 3
        for part, mine in zip(parts or [], local, strict=parts is not None):
            part.zero_()[: len(mine)] = mine

    monkeypatch.setattr(distributed, "gather", gather)
    counts = SimpleNamespace(all_gather=lambda _: torch.tensor([3, 2]))
    trainer: Any = SimpleNamespace(world_size=2, strategy=counts, is_global_zero=rank == 0)
    return gather_in_order(local[rank], trainer)


def test_features_go_to_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_on(0, monkeypatch).flatten().tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert rows_on(1, monkeypatch) is None


def test_workers_of_a_validation_end_with_it() -> None:
    data = Digits(num_workers=2)
    assert data.train_dataloader().persistent_workers
    assert [loader.persistent_workers for loader in data.val_dataloader()] == [False, False]
    assert not data.eval_dataloader(data.dataset("test")).persistent_workers


def test_the_loss_is_told_as_it_was_before_the_scaler(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.1)
    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), global_step=0, current_epoch=0, loggers=[]
    )
    trainer.optimizers, trainer.strategy = [optimizer], None
    check = FiniteLoss(checkpoint=tmp_path / "last.ckpt", max_skipped=1)
    check.on_before_backward(trainer, nn.Linear(1, 1), scaler.scale(torch.tensor(0.5)))  # type: ignore[arg-type]
    p.grad = torch.tensor([float("inf")])
    with pytest.raises(ConfigError) as stopped:
        check.on_before_optimizer_step(trainer, nn.Linear(1, 1), optimizer)  # type: ignore[arg-type]
    assert str(stopped.value).startswith(
        "the loss is finite (0.5) but its gradient is not in 1 steps in a row"
    )


@pytest.mark.parametrize(("accelerator", "synchronized"), [("cpu", False), ("auto", True)])
def test_batch_norm_is_synchronized_where_the_run_has_gpus(
    accelerator: str, synchronized: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine with GPUs, of which a run on CPUs uses none."""
    asked: dict[str, Any] = {}

    def stop(**options: Any) -> None:
        asked.update(options)
        raise TypeError("enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("runtime.command_line.Trainer", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="enough"):
        SSLCommandLine(
            ["--config", str(ROOT / "configs/digits/simclr.yaml"), "--trainer.accelerator", accelerator]
        )
    assert asked["sync_batchnorm"] is synchronized
