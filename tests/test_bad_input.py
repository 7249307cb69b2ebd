"""One clear line for everything that train.py refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from runtime.messages import ROOT
from tests.command_lines import DIGITS, QUICK, one_line_of

pytestmark = pytest.mark.usefixtures("clean_environment")


BAD = [
    (["--config", "nope.yaml"], "nope.yaml does not exist"),
    (["--config", "configs/digits/simclr.yml"], "did you mean 'configs/digits/simclr.yaml'"),
    (["--config", "{broken}"], r"line 2, column 5: broken YAML"),
    (
        ["--config", "{typo}"],
        r"model.temprature: SimCLR has no option 'temprature' \(did you mean 'temperature'\?\)",
    ),
    (["--config", "{top}"], r"unknown key 'trainr' \(did you mean 'trainer'\?\)"),
    (["--config", "{flat}"], "options of SimCLR go under init_args"),
    (["--config", "{list}"], "contains a list: expected keys"),
    (
        [*DIGITS, "--model", "SimCRL"],
        r"unknown method 'SimCRL' \(did you mean 'SimCLR'\?\); known: .*Inpainting, .*SimCLR",
    ),
    ([*DIGITS, "--data", "Digit"], r"unknown data set 'Digit' \(did you mean 'Digits'\?\); known: "),
    ([*DIGITS, "--model.temprature", "1"], r"no option 'temprature' \(did you mean 'temperature'\?\)"),
    ([*DIGITS, "--trainer.max_epoch", "3"], r"no option 'max_epoch' \(did you mean 'max_epochs'\?\)"),
    ([*DIGITS, "--data.batchsize", "3"], r"no option 'batchsize' \(did you mean 'batch_size'\?\)"),
    (
        [*DIGITS, "--model.encoder.in_chanels", "1"],
        r"ConvEncoder has no option 'in_chanels' \(did you mean 'in_channels'\?\)",
    ),
    ([*DIGITS, "--model.optimizer.lrr", "1"], r"AdamW has no option 'lrr' \(did you mean 'lr'\?\)"),
    ([*DIGITS, "--model.optimizer", "Adamw"], "unknown Optimizer class 'Adamw'"),
    ([*DIGITS, "--model.encoder", "vit_tiny_patch16_22"], r"did you mean 'vit_tiny_patch16_224'"),
    ([*DIGITS, "--trainer.callbacks+=FeatureProb"], r"did you mean 'FeatureProbe'"),
    ([*DIGITS, "--confg", "x"], r"unknown option --confg \(did you mean '--config'\?\)"),
    ([*DIGITS, "--run", "x"], r"unknown option --run \(did you mean '--run_dir'\?\)"),
    ([*DIGITS, "stray"], "unexpected 'stray'"),
    (["--model", "SimCLR"], "no data is chosen"),
    ([*DIGITS, "--model.temperature", "abc"], "model.temperature: expected float, got abc"),
    ([*DIGITS, "--data.batch_size", "1e3"], "data.batch_size: expected int, got 1000.0"),
    ([*DIGITS, "--trainer.precision", "17"], "trainer.precision: expected .*bf16-mixed.*, got 17"),
    ([*DIGITS, "--seed_everything", "x"], "seed_everything: expected bool, int, got x"),
    ([*DIGITS, "--model.temperature", "0"], "temperature must be positive, got 0"),
    ([*DIGITS, "--model.optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
    ([*DIGITS, "--trainer.max_epochs=-5"], "max_epochs.*-5"),
    ([*DIGITS, "--data.batch_size", "0"], "batch_size must be at least 1, got 0"),
    (
        [*DIGITS, "--data.batch_size", "1"],
        "SimCLR compares the samples of a batch, so batch_size must be at least 2, got 1",
    ),
    (
        [*DIGITS, "--data.batch_size", "5000"],
        "1077 training samples, fewer than one batch of 5000.*--data.batch_size 1077 or less",
    ),
    ([*DIGITS, "--data.views", "null"], "SimCLR needs 'views' in the batch"),
    (
        [*DIGITS, "--data", "CIFAR10", "--data.synthetic", "true"],
        r"^error: ConvEncoder does not accept samples of CIFAR10 of shape \(3, 32, 32\): its in_channels is "
        r"1; give --model.encoder.in_channels 3$",
    ),
    (
        [*DIGITS, "--data", "MNIST", "--data.root", "nowhere"],
        "MNIST: --data.root nowhere does not exist.*--data.download true.*configs/digits/",
    ),
    ([*DIGITS, "--data", "ImageFolder", "--data.root", "{empty}"], "no images in .*empty"),
    ([*DIGITS, "--trainer.accelerator", "gpu"], "--trainer.accelerator gpu: there is no GPU here"),
    (
        [*DIGITS, "--trainer.accelerator", "cpu", "--trainer.strategy", "fsdp"],
        "`fsdp` requires a GPU accelerator",
    ),
    ([*DIGITS, "--run_dir", "{file}"], "is a file: expected a folder"),
    ([*DIGITS, "--run_dir", "{foreign}"], "contains other files but no config.yaml"),
    ([*DIGITS, "--run_dir", "/proc/run"], "/proc/run cannot be created"),
    ([*DIGITS, "--model.optimizer", "os.system"], "'os.system' is outside"),
]


@pytest.mark.parametrize(
    ("args", "expected"), BAD, ids=[" ".join(a).replace(str(ROOT), "")[-60:] for a, _ in BAD]
)
def test_bad_input(
    args: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "gpu" in args and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    files = {
        "broken": "model: {class_path: SimCLR\ndata: [\n",
        "typo": "model: {class_path: SimCLR, init_args: {temprature: 0.1}}\n",
        "top": "trainr: {max_epochs: 1}\n",
        "flat": "model: {class_path: SimCLR, temperature: 0.1}\n",
        "list": "- a\n- b\n",
        "file": "x",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    filled = [re.sub(r"\{(\w+)\}", lambda m: str(tmp_path / m[1]), a) for a in args]
    own = [] if "--run_dir" in args else ["--run_dir", str(tmp_path / "run")]
    assert (
        train.main([*filled, *own, "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]) == 2
    )
    assert re.search(expected, one_line_of(capsys))
    assert sorted(tmp_path.rglob("*")) == before, "something was written for a run that cannot start"


def test_a_truncated_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        size = (16 + i % 2, 16)  # of different sizes: decoded as they are needed, not at the start
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i:02d}.jpg")
    data = (folder / "17.jpg").read_bytes()
    (folder / "17.jpg").write_bytes(data[: len(data) // 2])
    command = [
        *DIGITS,
        *QUICK,
        "--data",
        "ImageFolder",
        "--data.root",
        str(folder),
        "--data.image_size",
        "16",
        "--data.num_workers",
        "1",
    ]
    command += [
        "--model.encoder.in_channels",
        "3",
        "--data.batch_size",
        "4",
        "--trainer.max_epochs",
        "3",
        "--run_dir",
        "run",
    ]
    assert train.main([*command, "--trainer.num_sanity_val_steps", "0"]) == 2
    assert "17.jpg" in one_line_of(capsys)


def test_no_argument_is_linked_behind_the_users_back() -> None:
    """A linked argument would silently replace what the user gave. Giving every option of the model
    keeps each value.
    """
    from tests.conftest import parse

    given = {
        "temperature": "0.31",
        "projector_hidden": "17",
        "projector_out": "9",
        "projector_layers": "3",
        "final_lr_factor": "0.5",
    }
    cli = parse("configs/digits/simclr.yaml", *(x for k, v in given.items() for x in (f"--model.{k}", v)))
    assert {k: str(cli.config.model.init_args[k]) for k in given} == given


def test_changing_the_method_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*DIGITS, "--model", "Inpainting", "--model.encoder.in_channels", "2", "--run_dir", "run"]
    assert train.main(command) == 2  # the decoder is missing
    out = capsys.readouterr()
    assert "--model Inpainting replaces SimCLR" in out.out and "decoder" in out.err
