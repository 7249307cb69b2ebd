"""eval.py neighbors: a picture of test images beside the training images that are most similar to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import Digits
from datamodules.samplers import interleaved
from evaluation.probes.knn import nearest_samples
from runtime.checkpoints import load_module
from tests.commands.calls import error_of, evaluate, read_pixels

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_the_most_similar_images_beside_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("neighbors", run, "n.png", "--count", 3) == 0
    assert capsys.readouterr().out == "written: n.png\n"
    picture = read_pixels(Path("n.png"))
    module, data = load_module(run / "checkpoints" / "last.ckpt"), Digits()
    test, bank = (
        data.dataset(split).__getitems__(list(range(n)))  # type: ignore[attr-defined]
        for split, n in (("test", 360), ("bank", 1077))
    )
    rows = interleaved(data.dataset("test"))[:3].tolist()
    with torch.no_grad():
        queries, features = (module.embed(data.transform(b, None)["input"]) for b in (test, bank))
    unit = [torch.nn.functional.normalize(h, dim=1) for h in (queries[rows], features)]
    places = (unit[0] @ unit[1].T).topk(8).indices
    top, left = picture.shape[0] - 3 * 66 - 2, picture.shape[1] - 9 * 66 - 2
    for i, row in enumerate(rows):
        shown = [test["input"][row], *bank["input"][places[i]]]
        for j, image in enumerate(shown):
            y, x = top + 2 + i * 66, left + 2 + j * 66
            expected = np.kron(image[0].numpy(), np.ones((8, 8), np.uint8))
            assert (picture[y : y + 64, x : x + 64, 0] == expected).all()
    assert "exists: give --overwrite" in error_of(capsys, "neighbors", run, "n.png")
    assert error_of(capsys, "neighbors", run, "m.png", "--count", 0) == (
        "error: --count must be at least 1, got 0\n"
    )


def test_nearest_samples_by_hand() -> None:
    bank = torch.tensor([[1.0, 0], [0, 9], [1, 1]])
    query: Any = torch.tensor([[5.0, 1], [0.1, 0.2]])
    assert nearest_samples(query, bank, 2).tolist() == [[0, 2], [2, 1]]
