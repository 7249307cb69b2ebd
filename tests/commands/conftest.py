"""An inpainting run on digits, and images for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train
from datamodules.images.arrays import Digits
from runtime.messages import ROOT
from sslmodules import Inpainting
from tests.conftest import made_once

QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "2",
]


def train_run(folder: Path) -> None:
    command = [
        "--config",
        str(ROOT / "configs" / "digits" / "inpainting.yaml"),
        *QUICK,
        "--run_dir",
        str(folder),
    ]
    assert train.main([*command, "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2"]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting run of two epochs: what it predicts is poor, and that does not matter here."""
    folder = tmp_path_factory.mktemp("runs") / "inpainting"
    shutil.copytree(made_once(tmp_path_factory, "inpainting", train_run), folder)
    return folder


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The test split: (360, 8, 8) uint8 and labels."""
    dataset: Any = Digits().dataset("test")
    return dataset.images[..., 0], dataset.labels


@pytest.fixture
def photos(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> Path:
    """A folder with five digits as images of the run's own size, one of them of another format."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(digits[0][:5]):
        Image.fromarray(image).save(folder / f"{i}.{'bmp' if i == 4 else 'png'}")
    return folder


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with ``sample``, while the test lasts: the run's decoder fed with noise."""

    def sample(self: Inpainting, n: int) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return self.decoder(self.encoder.forward_features(self.randn(n, 2, 8, 8)))  # type: ignore[operator]

    monkeypatch.setattr(Inpainting, "sample", sample, raising=False)
