"""Callbacks measure correctly, count every sample once, and do not affect training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from datamodules import Digits, GaussianNoise, RandomBlock, TwoViews, View
from datamodules.images.module import ArrayDataset
from evaluation.accuracy import top1
from evaluation.callbacks import CollapseMetrics, FeatureProbe, OnlineLinearProbe
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import fit_linear_probe
from evaluation.samples import ImageGrid, columns_of_patches
from runtime.callbacks import Throughput
from sslmodules import SimCLR
from sslmodules.networks import ConvEncoder
from tests.conftest import build, trainer_for


def views() -> TwoViews:
    return TwoViews(View(8, flip_p=0.0), View(8, flip_p=0.0))


def simclr(seed: int = 0) -> SimCLR:
    torch.manual_seed(seed)
    return SimCLR(ConvEncoder(1, (8, 16)), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))


def features(module: Any, data: Digits, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = data.dataset(split).__getitems__(list(range(len(data.dataset(split)))))  # type: ignore[attr-defined, arg-type]
    with torch.no_grad():
        return module.eval().embed(data.transform(rows, None)["input"]), rows["label"]


def test_probe_equals_the_pure_functions_on_the_frozen_encoder(tmp_path: Path) -> None:
    module, data = (
        simclr(),
        Digits(views=views(), batch_size=100),
    )  # 360 and 1,077 samples: uneven last batches
    trainer = trainer_for(tmp_path, max_epochs=1, callbacks=[FeatureProbe(l2=1e-3, knn_k=7)])
    trainer.fit(module, data)
    (val, val_labels), (bank, bank_labels) = features(module, data, "val"), features(module, data, "bank")
    assert len(val) == 360 and len(bank) == 1077
    linear = top1(fit_linear_probe(bank, bank_labels, 10, l2=1e-3).predict(val), val_labels)
    knn = top1(knn_predict(val, bank, bank_labels, 10, k=7), val_labels)
    assert trainer.callback_metrics["val/linear_top1"].item() == pytest.approx(linear, abs=1.5 / 360)
    assert trainer.callback_metrics["val/knn_top1"].item() == pytest.approx(knn, abs=1e-6)


class SomeLabels(Digits):
    """Half of the labels are unknown."""

    def _load(self, split: Any) -> Any:
        splits = super()._load(split)
        for dataset in {id(d): d for d in splits.values()}.values():
            dataset.labels = dataset.labels.copy()
            dataset.labels[::2] = -1
        return splits


def test_unknown_labels_are_left_out(tmp_path: Path) -> None:
    probe = FeatureProbe()
    seen: list[int] = []
    collect = probe._collect

    def counting(trainer: Any, index: int) -> Any:
        h, labels = collect(trainer, index)
        seen.append(len(labels))
        assert (labels >= 0).all()
        return h, labels

    probe._collect = counting  # type: ignore[method-assign]
    trainer_for(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[probe]).fit(
        simclr(), SomeLabels(views=views())
    )
    assert seen == [180, 538]


class NoLabels(Digits):
    num_classes = None

    def _load(self, split: Any) -> Any:
        return {k: ArrayDataset(d.images, d.labels * 0 - 1) for k, d in super()._load(split).items()}


def test_without_labels_there_is_no_probe_and_no_crash(tmp_path: Path) -> None:
    callbacks = [FeatureProbe(), OnlineLinearProbe(), CollapseMetrics()]
    trainer = trainer_for(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=callbacks)
    trainer.fit(simclr(), NoLabels(views=views()))
    assert "val/linear_top1" not in trainer.callback_metrics and "val/rankme" in trainer.callback_metrics


def trained_with(folder: Path, callbacks: list[Any], **options: Any) -> dict[str, torch.Tensor]:
    module = simclr()
    trainer_for(folder, max_epochs=2, limit_train_batches=3, callbacks=callbacks, **options).fit(
        module, Digits(views=views(), batch_size=32)
    )
    return module.state_dict()


@pytest.mark.parametrize("clip", [None, 0.1], ids=["free", "clipped"])
def test_callbacks_leave_the_training_as_it_is(clip: float | None, tmp_path: Path) -> None:
    """Weights and batch statistics after six steps are the same bits with all callbacks and with none; under
    clipping too, where a probe inside the clipped norm would shrink the backbone's gradient.
    """
    everything = [FeatureProbe(), OnlineLinearProbe(), CollapseMetrics(), ImageGrid(), Throughput()]
    logger = TensorBoardLogger(str(tmp_path), name="log")
    alone = trained_with(tmp_path, [], gradient_clip_val=clip)
    watched = trained_with(tmp_path, everything, gradient_clip_val=clip, logger=logger)
    assert all(torch.equal(alone[k], watched[k]) for k in alone)


def test_online_probe_learns_and_is_restored(tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: str | None = None) -> tuple[Any, OnlineLinearProbe]:
        probe = OnlineLinearProbe(lr=0.01)
        trainer = trainer_for(tmp_path, max_epochs=epochs, limit_val_batches=0, callbacks=[probe])
        trainer.fit(simclr(), Digits(views=views(), batch_size=64), ckpt_path=checkpoint)
        return trainer, probe

    trainer, whole = fit(3)
    assert trainer.callback_metrics["train/online_top1"] > 0.7
    short, _ = fit(2)
    short.save_checkpoint(tmp_path / "two.ckpt")
    # the schedule's length differs between the runs, but not the probe's state at the start of the third
    # epoch
    _, resumed = fit(3, str(tmp_path / "two.ckpt"))
    assert resumed.restored is not None
    assert (
        resumed.optimizer.state_dict()["state"][0]["step"] == whole.optimizer.state_dict()["state"][0]["step"]
    )


class Collapsed(nn.Module):
    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight * 1e-6 + 1


def test_a_collapse_is_announced_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SimCLR(Collapsed(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-9))
    logger = TensorBoardLogger(str(tmp_path), name="log")
    trainer = trainer_for(
        tmp_path, max_epochs=2, limit_train_batches=1, callbacks=[CollapseMetrics()], logger=logger
    )
    with pytest.warns(
        UserWarning,
        match="the representation has collapsed at step 1: all samples have nearly the same direction",
    ) as seen:
        trainer.fit(module, Digits(views=views()))
    assert len([w for w in seen if "collapsed" in str(w.message)]) == 1
    assert trainer.callback_metrics["val/collapsed"] == 1
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert any("warning" in tag for tag in events.Tags()["tensors"])


def test_a_healthy_representation_is_not_called_collapsed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    trainer = trainer_for(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=[CollapseMetrics()])
    trainer.fit(simclr(), Digits(views=views()))
    assert trainer.callback_metrics["val/collapsed"] == 0
    assert not [w for w in recwarn if "collapsed" in str(w.message)]
    assert 1 < trainer.callback_metrics["val/rankme"] <= 16
    assert trainer.callback_metrics["val/alignment"] > 0 > trainer.callback_metrics["val/uniformity"]


def pictures(
    folder: Path, module: Any, data: Any, epochs: int = 1
) -> dict[str, list[tuple[int, int, bytes]]]:
    """What a run writes to TensorBoard: by tag, (width, height, PNG) at every validation."""
    logger = TensorBoardLogger(str(folder), name="log")
    callbacks = [ImageGrid(num_samples=5)]
    trainer = trainer_for(
        folder, max_epochs=epochs, limit_train_batches=1, callbacks=callbacks, logger=logger
    )
    trainer.fit(module, data)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {
        tag: [(i.width, i.height, i.encoded_image_string) for i in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def test_pictures_show_views_and_reconstructions(tmp_path: Path) -> None:
    for module, data, tag, columns in (
        (simclr(), Digits(views=views(), batch_size=64), "views", 3),
        (
            build("configs/digits/inpainting.yaml")[0],
            Digits(views=RandomBlock(), batch_size=64),
            "reconstruction",
            4,
        ),
        (
            build("configs/digits/autoencoder.yaml")[0],
            Digits(views=GaussianNoise(), batch_size=64),
            "reconstruction",
            3,
        ),
        (build("configs/digits/autoencoder.yaml")[0], Digits(batch_size=64), "reconstruction", 2),
    ):
        shown = pictures(tmp_path / f"{tag}-{columns}", module, data)
        assert list(shown) == [tag]
        # 8 pixels enlarged to 64, 2 between; a line of titles, and the names of the classes
        assert shown[tag][0][:2] == (columns * 66 + 2 + 13, 5 * 66 + 2 + 15)


@pytest.mark.parametrize("method", ["ibot", "i_jepa", pytest.param("simdinov2", marks=pytest.mark.slow)])
def test_pictures_show_hidden_patches(method: str, tmp_path: Path) -> None:
    module, data = build(f"configs/digits/{method}.yaml")
    shown = pictures(tmp_path, module, data)
    assert sorted(shown) == ["attention", "hidden_patches", "views"]
    columns = 3 if method == "i_jepa" else 4
    assert shown["hidden_patches"][0][0] == columns * 66 + 2 + 13  # and the names of the classes


def test_hidden_patches_are_gray_in_their_view() -> None:
    """Patches of 2x2 pixels, three in a row: of the first sample one is hidden in each view."""
    data = SimpleNamespace(standardize=lambda x: x - 1)  # gray becomes -0.5
    views = [torch.full((2, 1, 4, 6), float(i)) for i in (1, 2)]
    mask = torch.zeros(2, 2, 6, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 5] = True
    shown = columns_of_patches(data, 2, {"mask": mask}, views)
    assert list(shown) == ["view 1", "view 1, hidden", "view 2", "view 2, hidden"]
    first, second = (view.clone() for view in views)
    first[0, :, :2, 2:4] = second[0, :, 2:, 4:] = -0.5
    for column, expected in zip(shown.values(), (views[0], first, views[1], second), strict=True):
        assert torch.equal(column, expected)
    blocks = {"context": torch.tensor([[0], [5]]), "targets": torch.tensor([[[1, 2]], [[3, 4]]])}
    shown = columns_of_patches(data, 2, blocks, views[:1])
    assert list(shown) == ["view 1", "context", "targets"]
    left = [(column == 1).sum((1, 2, 3)).tolist() for column in shown.values()]
    assert left == [[24, 24], [4, 4], [8, 8]]
    assert (shown["context"][0, 0, :2, :2] == 1).all() and (shown["targets"][1, 0, 2:, :4] == 1).all()
    assert columns_of_patches(data, 2, {"mask": mask[:, :1, None], **blocks}, views) == {}  # of pixels: MAE's
    assert columns_of_patches(data, 2, {"mask": mask}, []) == {}


class Generator(SimCLR):
    """A method that samples and interpolates."""

    def sample(self, n: int) -> torch.Tensor:
        return self.randn(n, 1, 8, 8)

    def interpolate(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        share = torch.linspace(0, 1, steps).view(-1, 1, 1, 1)
        return torch.lerp(x[:, None], x.roll(-1, 0)[:, None], share)


def test_pictures_show_samples_of_the_same_noise_and_interpolations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Generator(ConvEncoder(1, (8, 16)), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    shown = pictures(tmp_path, module, Digits(views=views(), batch_size=64), epochs=2)
    assert sorted(shown) == ["interpolations", "samples", "views"]
    for tag in ("samples", "interpolations"):
        assert [picture[:2] for picture in shown[tag]] == [(5 * 66 + 2, 5 * 66 + 2)] * 2
        assert shown[tag][0] == shown[tag][1]


def test_the_attention_that_is_shown_is_of_the_network_that_gives_the_features(tmp_path: Path) -> None:
    """DINO evaluates its teacher: with the student's patches set to zero, its pictures are as they were."""
    shown = []
    for harm in (None, "encoder", "teacher"):
        options = "--model.encoder ViTEncoder --model.encoder.image_size 8 --model.encoder.patch_size 2"
        options += " --model.encoder.width 24"
        options += (
            " --model.encoder.depth 1 --model.encoder.heads 2 --model.momentum 1 --model.optimizer.lr 0"
        )
        module, _ = build("configs/digits/dino.yaml", *options.split())
        if harm:
            encoder = module.encoder if harm == "encoder" else module.teacher.net[0]
            torch.nn.init.zeros_(encoder.blocks[0].attn.qkv.weight)
        shown.append(
            pictures(tmp_path / str(harm), module, Digits(views=views(), batch_size=64))["attention"]
        )
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FeatureProbe(knn_k=0), "knn_k must be at least 1, got 0"),
        (lambda: FeatureProbe(l2=0.0), "l2 must be positive, got 0"),
        (lambda: FeatureProbe(knn_temperature=-1.0), "knn_temperature must be positive, got -1"),
        (lambda: OnlineLinearProbe(lr=0), "lr must be positive, got 0"),
        (lambda: CollapseMetrics(max_samples=1), "max_samples must be at least 2, got 1"),
        (lambda: ImageGrid(num_samples=0), "num_samples must be at least 1, got 0"),
    ],
)
def test_bad_knobs(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
