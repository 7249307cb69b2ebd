"""eval.py features: one file with features, labels and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.arrays import Digits
from runtime.checkpoints import load_module
from tests.commands.calls import evaluate, read_pixels

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_features_of_every_split(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("features", run, "features.npz") == 0
    out = capsys.readouterr().out
    assert "written: features.npz" in out and "1077 train, 360 val, 360 test" in out
    arrays = np.load("features.npz")
    n = 1077 + 360 + 360
    module, data = load_module(run / "checkpoints" / "last.ckpt"), Digits()
    assert (
        arrays["features"].shape == (n, module.encoder.num_features)
        and arrays["features"].dtype == np.float32
    )
    assert "files" not in arrays and arrays["class_names"].tolist() == list("0123456789")
    for split in ("train", "val", "test"):
        rows = arrays["split"] == split
        dataset: Any = data.dataset(split)  # type: ignore[arg-type]
        assert (arrays["labels"][rows] == dataset.labels).all() and (
            arrays["index"][rows] == np.arange(rows.sum())
        ).all()
        with torch.no_grad():
            first = module.embed(data.transform(dataset.__getitems__([0, 7]), None)["input"])
        np.testing.assert_allclose(arrays["features"][rows][[0, 7]], first, rtol=1e-4, atol=1e-5)


def test_features_of_a_folder_have_file_names(
    run: Path, digits: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (image, label) in enumerate(zip(*(part[:60] for part in digits), strict=True)):
        Path(f"images/class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"images/class{label}/{i:02}.png")
    data = ["--data", "ImageFolder", "--data.root", "images", "--data.image_size", 8, "--data.channels", 1]
    data += ["--data.mean", "[0.3064]", "--data.std", "[0.3767]", "--data.batch_size", 7]
    assert evaluate("features", run, "f.npz", *data) == 0
    arrays = np.load("f.npz")
    assert len(set(arrays["files"].tolist())) == len(arrays["features"]) == 60
    module, transform = load_module(run / "checkpoints" / "last.ckpt"), Digits().transform
    for row in (0, 30, 59):
        file = Path(str(arrays["files"][row]))
        assert (
            file.parent.name == f"class{arrays['class_names'][arrays['labels'][row]].removeprefix('class')}"
        )
        with torch.no_grad():
            h = module.embed(
                transform({"input": torch.from_numpy(read_pixels(file).copy())[None, None]}, None)["input"]
            )[0]
        np.testing.assert_allclose(arrays["features"][row], h, rtol=1e-4, atol=1e-5)

    unlabeled = [*data, "--data.labeled", "false"]
    assert evaluate("features", run, "f.npz", "--overwrite", *unlabeled) == 0
    assert "replaced: f.npz" in capsys.readouterr().out
    assert set(np.load("f.npz")["labels"]) == {-1}
