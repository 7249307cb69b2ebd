"""Invalid input of the commands after pre-training ends with one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.commands.calls import error_of

pytestmark = pytest.mark.usefixtures("clean_environment")

UNLABELED = ["--data", "ImageFolder", "--data.root", "images", "--data.labeled", "false"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["probe", "RUN", "--layers", "9"], "--layers 9: expected all, last4, or numbers from 1 to 3"),
        (
            ["probe", "RUN", "--probes", "kmeans"],
            "probes must be one of linear, knn, fewshot, clustering, retrieval, calibration, got 'kmeans'",
        ),
        (
            ["probe", "RUN", "--measures", "collapse"],
            "measures must be one of confusion, robustness, spectrum, got 'collapse'",
        ),
        (
            ["probe", "RUN", "--head", "deep"],
            "--head must be one of linear, mlp, attentive, got 'deep'",
        ),
        (
            ["probe", "RUN", "--head", "mlp", "--layers", "all"],
            "--head mlp does not use --probes, --measures or --layers: leave them out",
        ),
        (
            ["probe", "RUN", "--head", "mlp", "--protocol", "sgd"],
            "--head mlp and --protocol sgd are two probes: give one of them",
        ),
        (
            ["probe", "RUN", "--head", "mlp", *UNLABELED],
            "--head needs data with labels, but ImageFolder has none: give --data NAME",
        ),
        (
            ["labels", "RUN", *UNLABELED],
            "labels needs data with labels, but ImageFolder has none: give --data NAME",
        ),
        (
            ["export", "RUN", "out", "--format", "tar"],
            "--format must be one of safetensors, onnx, pt2, hf, got 'tar'",
        ),
        (
            ["compare", "images"],
            "images: contains no run (no folder with a config.yaml of train.py): expected run folders, or a "
            "pattern such as 'runs/*'",
        ),
        (
            ["compare", "RUN", "--device", "cpu"],
            "unrecognized arguments: --device cpu; see python eval.py compare --help",
        ),
        (
            ["probe", "RUN", "--data", "Tones"],
            "--data Tones (audio) does not fit a network that was trained on Digits (images): choose data of "
            "the same kind",
        ),
        (["probe", "RUN", "--data", "ImageFolder"], "--data.root must be given"),
        (["probe", "RUN", "--data.root"], "--data.root needs a value: give --data.root VALUE"),
        (
            ["probe", "images"],
            "images contains no checkpoints/last.ckpt: expected a run folder of train.py",
        ),
    ],
)
def test_one_line(words: list[str], line: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images").mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 10 * i).save(f"images/{i}.png")
    given = [str(run) if word == "RUN" else word for word in words]
    assert error_of(capsys, *given) == f"error: {line}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["images"]
