"""Schedule, groups, LARS, teacher calls, noise, checkpoints: what every method inherits."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from datamodules import Digits
from datamodules.errors import ConfigError, DataFileError
from runtime.checkpoints import build_module, load_module, read_checkpoint
from sslmodules import SimCLR, SSLModule
from sslmodules import methods as classes
from sslmodules.networks import ConvEncoder, ResNetEncoder, TimmEncoder
from sslmodules.networks.sharding import prepare_sharding
from sslmodules.optim import LARS, decay_groups, record_matrices, warmup_cosine
from tests.conftest import build, trainer_for


def test_methods_of_two_views_refuse_more_than_they_use() -> None:
    names = {"barlow_twins", "byol", "moco", "moco_v3", "nnclr", "simclr", "simsiam", "triplet"}
    modules = [build(f"configs/digits/{name}.yaml")[0] for name in sorted(names)]
    assert {type(m) for m in modules} == {method for method in classes().values() if method.two_views}
    for module in modules:
        with pytest.raises(ConfigError) as refused:
            module.check_batch({"input": torch.zeros(2, 1, 8, 8), "views": [torch.zeros(2, 1, 8, 8)] * 8})
        assert str(refused.value) == (
            f"{type(module).__name__} uses two views of each sample, got 8: set data.views to two, or take a "
            "method for more, such as FastSiam, VICReg, VISReg or SwAV"
        )


def test_warmup_cosine_closed_forms() -> None:
    factor = warmup_cosine(total=110, warmup=10, final=0.2)
    assert factor(0) == pytest.approx(0.1) and factor(9) == 1.0 and factor(10) == 1.0
    assert factor(60) == pytest.approx(0.6)  # half way: the mean of 1 and 0.2
    assert factor(110) == pytest.approx(0.2) and factor(1000) == pytest.approx(0.2)
    assert warmup_cosine(100, 0)(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_biases_and_norms_are_not_decayed() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    decayed, plain = decay_groups(net)
    assert decayed["params"] == [net[3].weight] and "weight_decay" not in decayed
    assert {id(p) for p in plain["params"]} == {
        id(net[i].__getattr__(n)) for i, n in ((0, "bias"), (1, "weight"), (1, "bias"), (3, "bias"))
    }
    assert plain["weight_decay"] == 0


def test_shards_keep_the_groups_of_the_whole_weights() -> None:
    """FSDP turns every parameter into a shard of one dimension before the optimizer is made: nothing would
    decay.
    """
    net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    record_matrices(net)
    net[0].weight = nn.Parameter(net[0].weight.detach().flatten()[:4])
    decayed, plain = decay_groups(net)
    assert decayed["params"] == [net[0].weight] and len(plain["params"]) == 3


@pytest.mark.parametrize(
    ("config", "options", "strategy", "message"),
    [
        (
            "byol",
            (),
            {"use_orig_params": True},
            "BYOL has a momentum copy, which cannot follow weights that FSDP shards",
        ),
        (
            "mae",
            ("--model.optimizer", "LARS", "--model.optimizer.lr", "0.1"),
            {"use_orig_params": True},
            "LARS needs whole layers",
        ),
        ("swav", (), {}, "SwAV writes to its weights, which FSDP shards: give --trainer.strategy ddp"),
        ("gan", (), {}, "GAN has several optimizers, which FSDP does not support: give --trainer.strategy"),
        ("mae", (), {"use_orig_params": False}, "FSDP needs use_orig_params: true"),
        ("mae", (), {"sharding_strategy": "NO_SHARD"}, "NO_SHARD splits nothing: give --trainer.strategy"),
        (
            "mae",
            (),
            {"sharding_strategy": "HYBRID_SHARD", "device_mesh": (2, 1)},
            "HYBRID_SHARD and one device for each copy of the weights averages no gradients: give --trainer",
        ),
        ("mae", (), {"sharding_strategy": "HYBRID_SHARD", "device_mesh": (1, 2)}, None),
        ("mae", (), {"state_dict_type": "sharded"}, "FSDP needs state_dict_type: full, because resuming"),
        ("mae", (), {"use_orig_params": True}, None),
    ],
)
def test_what_cannot_be_sharded(
    config: str, options: tuple[str, ...], strategy: dict[str, Any], message: str | None
) -> None:
    module, _ = build(f"configs/digits/{config}.yaml", *options)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        prepare_sharding(module, FSDPStrategy(**strategy))


def test_lars_against_the_formula() -> None:
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
    expected = [matrix.detach().clone(), bias.detach().clone()]
    momenta = [torch.zeros(3, 4), torch.zeros(4)]
    optimizer = LARS(
        [{"params": [matrix]}, {"params": [bias], "weight_decay": 0.0}],
        lr=0.5,
        momentum=0.9,
        weight_decay=0.1,
    )
    for _ in range(3):
        gradients = [torch.randn(3, 4), torch.randn(4)]
        matrix.grad, bias.grad = (g.clone() for g in gradients)
        optimizer.step()
        g = gradients[0] + 0.1 * expected[0]
        momenta[0] = 0.9 * momenta[0] + 0.001 * expected[0].norm() / g.norm() * g
        momenta[1] = 0.9 * momenta[1] + gradients[1]  # one dimension: neither decay nor trust ratio
        expected = [p - 0.5 * m for p, m in zip(expected, momenta, strict=True)]
        torch.testing.assert_close(matrix.detach(), expected[0])
        torch.testing.assert_close(bias.detach(), expected[1])


def test_lars_scales_without_weight_decay_and_survives_zeros() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), 1000.0)
    LARS([p], lr=1.0, momentum=0.0).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 1 - 0.001))  # |update| = trust * |p|
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], lr=1.0).step()
    assert zero.isfinite().all()
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        LARS([p], lr=-1)


class Counting(SSLModule):
    """Counts what the base class calls."""

    def __init__(self) -> None:
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), warmup_epochs=1)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.teacher_calls, self.noise = 0, []
        self.rates: list[float] = []

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        if self.training:
            self.noise.append(torch.rand(1).item())
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return {"loss": self.encoder(batch["input"]).square().mean()}

    def update_teacher(self) -> None:
        self.teacher_calls += 1


def test_teacher_moves_once_per_optimizer_step_and_warmup_counts_steps(tmp_path: Path) -> None:
    module = Counting()
    trainer = trainer_for(
        tmp_path, max_epochs=2, limit_train_batches=6, limit_val_batches=0, accumulate_grad_batches=3
    )
    trainer.fit(module, Digits(batch_size=16))
    assert trainer.global_step == 4 == module.teacher_calls
    # warm-up of one epoch = 2 optimizer steps, not 6 batches
    assert (
        module.rates[0] == pytest.approx(0.05)
        and module.rates[3] == pytest.approx(0.1)
        and module.rates[6] == pytest.approx(0.1)
    )


def test_noise_differs_between_steps_and_repeats_between_runs(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        module = Counting()
        torch.rand(7)  # whatever happened before must not matter
        trainer_for(tmp_path, max_epochs=2, limit_train_batches=3, limit_val_batches=0).fit(
            module, Digits(batch_size=16)
        )
        runs.append(module.noise)
    assert runs[0] == runs[1] and len(set(runs[0])) == 6


def test_accumulation_warns_where_the_loss_couples_the_batch(tmp_path: Path) -> None:
    module, data = build("configs/digits/simclr.yaml")
    with pytest.warns(UserWarning, match="accumulate_grad_batches=2 does not enlarge the batch"):
        trainer_for(tmp_path, max_steps=1, limit_val_batches=0, accumulate_grad_batches=2).fit(module, data)


def test_batch_of_one_is_refused(tmp_path: Path) -> None:
    module, data = build("configs/digits/simclr.yaml", "--data.batch_size", "1")
    with pytest.raises(
        ValueError, match="SimCLR compares the samples of a batch, so batch_size must be at least 2, got 1"
    ):
        trainer_for(tmp_path, max_steps=1).fit(module, data)


def test_a_module_built_in_python_saves_a_safe_checkpoint(tmp_path: Path) -> None:
    """Encoder and optimizer are objects: recorded is how they were built, or that this is unknown."""
    module = SimCLR(ConvEncoder(1), temperature=0.3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert module.hparams["temperature"] == 0.3
    assert module.hparams["encoder"]["class_path"] == "ConvEncoder"
    assert module.hparams["optimizer"] == {"unrecorded": "builtins.function"}
    trainer = trainer_for(tmp_path, max_steps=1, limit_val_batches=0)
    from datamodules import TwoViews, View

    with pytest.raises(
        ValueError, match=r"SimCLR needs 'views' in the batch, which has only input, label: set data.views"
    ):
        trainer.fit(module, Digits(batch_size=8))
    trainer = trainer_for(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, Digits(views=TwoViews(View(8), View(8)), batch_size=8))
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    content = read_checkpoint(tmp_path / "m.ckpt")
    rebuilt = build_module(content["hyper_parameters"])
    rebuilt.load_state_dict(content["state_dict"])
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(rebuilt.eval().embed(x), module.eval().embed(x))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(__file__).parent / "pwned",))


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "pickle", "list"])
def test_unusable_checkpoints_are_one_line_with_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    good = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "x": torch.zeros(1000)}, good)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:500])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "pickle":
        torch.save({"state_dict": {}, "evil": Evil()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    with pytest.raises(DataFileError, match=re_escape(str(path))) as caught:
        load_module(path)
    assert "\n" not in str(caught.value)
    assert not (Path(__file__).parent / "pwned").exists()
    if kind in ("empty", "truncated", "text"):
        assert str(good) in str(caught.value)  # what to use instead


def re_escape(text: str) -> str:
    import re

    return re.escape(text)


def test_a_checkpoint_that_names_a_foreign_class_is_refused() -> None:
    with pytest.raises(DataFileError, match=r"os\.system"):
        build_module({"_class_path": "os.system"})


def test_encoders_tell_the_width_they_give() -> None:
    x = torch.randn(2, 3, 32, 32)
    for encoder in (
        ConvEncoder(3),
        ResNetEncoder("resnet18", "cifar"),
        TimmEncoder("vit_tiny_patch16_224", 32, 8),
        TimmEncoder("mobilenetv3_small_050"),
    ):
        assert encoder.eval()(x).shape == (2, encoder.num_features)
    assert ResNetEncoder("resnet18", "cifar").forward_features(x).shape == (2, 512, 4, 4)
    assert ResNetEncoder("resnet18", in_channels=1)(x[:, :1]).shape == (2, 512)


def test_a_bare_timm_model_is_an_encoder() -> None:
    import timm

    net = timm.create_model("resnet10t", num_classes=0)
    module = SimCLR(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    module.losses({"views": views})["loss"].backward()
    assert module.embed(views[0]).shape == (4, net.num_features)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TimmEncoder("vit_tiny_pach16_224"), "vit_tiny_patch16_224"),
        (
            lambda: TimmEncoder("vit_tiny_patch16_224", 32, 7),
            "patch_size must be a divisor of image_size .32., got 7",
        ),
        (lambda: TimmEncoder("resnet10t", 32), "image_size is for ViTs, but .resnet10t."),
        (lambda: ResNetEncoder("resnet19"), "'resnet19'"),
        (lambda: ResNetEncoder(stem="tiny"), "'tiny'"),  # type: ignore[arg-type]
        (lambda: ConvEncoder(0), "in_channels must be at least 1, got 0"),
        (lambda: ConvEncoder(1, ()), "channels"),
    ],
)
def test_bad_knobs_of_encoders(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_gather_tells_where_the_local_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 2 in training; outside of it the rows are its own, whatever its rank is."""
    module, z = Counting(), torch.arange(6.0).view(3, 2)
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(world_size=2, global_rank=1))
    monkeypatch.setattr(module, "all_gather", lambda z, sync_grads: torch.stack([-z, z]))
    rows, offset = module.train().gather(z)
    assert torch.equal(rows, torch.cat([-z, z])) and offset == 3
    assert torch.equal(rows[offset : offset + len(z)], z)
    rows, offset = module.eval().gather(z)
    assert rows is z and offset == 0
