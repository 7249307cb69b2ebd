"""Each script of benchmarks/ runs to its end on something small. No time is tested: the figures are for
people.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from lightning import Callback
from PIL import Image

from benchmarks import gpu, profile_step
from benchmarks.digits import several_views
from benchmarks.parts.pages import write_between_marks
from runtime.messages import ROOT

#: script -> its arguments, and a line that it prints only at its end; {} is a folder of its own, DATA one of
#: real data.
SMALL = {
    "audio.py": ("--clips 16 --rounds 3", "batched / one go"),
    "cifar10.py": (
        "--data {}/images --methods simclr --batch 16 --epochs 1 --lr 0.06 --device cpu --runs {}/runs "
        "--results {}/r",
        '"knn10"',
    ),
    "cifar10_gate.py": (
        "--data {}/images --images 20 --encoder conv --batch 10 --epochs 1 --supervised_epochs 1 --workers 0 "
        "--device cpu --runs {}/runs --results {}/r",
        '"variant": "bare, torchvision"',
    ),
    "cifar10_kmeans.py": (
        "--data {}/images --runs {}/runs --centroids 8 --patches 500 --images 50",
        "test accuracy",
    ),
    "collapse.py": (
        "--families contrastive --epochs 2 --page {}/page.md --results {}/r",
        "| contrastive | simclr | `--model.optimizer.init_args.lr 1.0` |",
    ),
    "cifar10_lightly.py": (
        "--data {}/images --encoder conv --batch 16 --epochs 1 --device cpu --workers 0 --results {}/r",
        "linear",
    ),
    "denoising_mnist.py": ("--root DATA --run {}/run", " dB"),
    "digits.py": ("--methods lejepa --views 4 --seeds 0 --json {}/r", "| lejepa |"),
    "files.py": ("{}/images --images 50 --rounds 1 --workers 0 --draws 1", "load average after"),
    "emp_ssl_bag.py": ("--seeds 0 --epochs 1 --patches 2", "bag of 2 patches"),
    "gan_25_gaussians.py": ("--losses hinge --steps 20 --samples 500", "hinge"),
    "gan_mnist.py": ("{}/run --data_root DATA --samples 500 --epochs 1", "each digit between"),
    "molecules.py": (
        "{}/run --probe {}/molecules.csv --label alcohol --samples 20",
        "| drawn from GPT | 20 |",
    ),
    "listing.py": ("--files 50001 --folders 7 --rounds 1", "| after a file was added |"),
    "large_evaluation.py": ("--samples 2000 --width 16 --classes 10", "linear probe and kNN"),
    "gpu.py": ("--data {}/images --items gate --minutes 1", "items are recorded"),
    "peers.py": ("--device cpu --rounds 1 --images 64 --batch 32 --workers 0 --matrix 64", "ours / lightly"),
    "probe.py": ("--rounds 1 --n 500 --dim 16", "kNN"),
    "profile_step.py": ("--device cpu --batch 16 --steps 8", "backward"),
    "resilience.py": ("--kills 1", "curves equal 1 of 1"),
    "same_time.py": (
        "--data {}/images --methods vicreg ibot pixels --views 3 --encoder vit --images 32 --batch 16 "
        "--seconds 0.05 --runs {}/runs --results {}/r",
        "| ibot, 3 views | 0 |",
    ),
    "save.py": ("--folder {} --models resnet18 --rounds 1", "resnet18"),
    "shards.py": ("--folder {} --images 256 --size 32 --workers 0 --rounds 1", "shards"),
    "text.py": ("--turns 2 --rounds 1 --batch 8 --length 16 --repeats 1", "MaskedTokens / collator"),
    "text_memory.py": (
        "--mib 1 --bases 0.1 --tokenizers characters",
        "DNA of 0.1 million bases with a GFF: ",
    ),
    "train.py": ("--rounds 1 --images 64 --batch 32 --channels 8 8 --skip-peers", "data share of ours"),
    "vae_mnist.py": ("--root DATA --run {}/run --samples 2", "-ELBO"),
    "views.py": ("--sizes 32 --rounds 1", "kornia"),
}
#: What --run of a script needs: trained for two steps on MNIST, or on the molecules below.
TRAINED = {
    "denoising_mnist.py": "mnist/autoencoder",
    "gan_mnist.py": "mnist/gan",
    "molecules.py": "molecules/gpt",
    "vae_mnist.py": "mnist/vae",
}


@pytest.mark.parametrize("script", SMALL)
def test_a_script_finds_the_project_in_a_clone(script: str) -> None:
    """The clone is put on the path before anything of the project is imported."""
    text = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
    project = r"^(?:from|import) (?:benchmarks|datamodules|evaluation|runtime|sslmodules|train)\b"
    first = re.search(project, text, flags=re.MULTILINE)
    assert first is None or "sys.path.insert(0, " in text[: first.start()]


def test_more_views_take_fewer_epochs_for_as_many_encoded_views() -> None:
    config = ROOT / "configs" / "digits" / "lejepa.yaml"
    view = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"]["views"]["init_args"][
        "view1"
    ]
    crops = {"global_view1": view, "global_view2": view, "local_view": view, "num_local": 0, "num_global": 8}
    assert several_views(config, 8) == {
        "data": {"init_args": {"views": {"class_path": "MultiCrop", "init_args": crops}}},
        "trainer": {"max_epochs": 10},
    }


def test_a_config_without_two_views_has_no_recipe_for_more() -> None:
    with pytest.raises(SystemExit) as caught:
        several_views(ROOT / "configs" / "digits" / "dino.yaml", 4)
    assert str(caught.value) == "--views: expected a config with view1, such as lejepa, got dino"


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], Any]) -> str:
    """What is printed with the status of bad arguments."""
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_script_is_tried() -> None:
    assert set(SMALL) == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


def molecules(folder: Path) -> Path:
    """A table of 200 chains of carbon, a fifth of them alcohols."""
    ends = {"O": 1, "N": 0, "F": 0, "Cl": 0, "Br": 0}
    rows = [f"{'C' * length}{end},{label}" for length in range(1, 41) for end, label in ends.items()]
    table = folder / "molecules.csv"
    table.write_text("\n".join(["smiles,alcohol", *rows]))
    return table


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("SSL_RUN_DIR", None)
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )


def write_images(root: Path, suffix: str = "jpg") -> None:
    """Random images of two classes: 64 to train on, 16 to test."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 32), ("test", 8)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(folder / f"{i}.{suffix}")


def test_a_table_goes_between_the_marks_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n")
    write_between_marks(page, "x", "new")
    assert page.read_text() == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    message = refused(capsys, lambda: write_between_marks(page, "y", "new"))
    lines = "<!-- y: begin --> and <!-- y: end -->"
    assert message == f"error: {page} has no lines {lines}: put them where the table belongs\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_script_runs_to_its_end(script: str, tmp_path: Path) -> None:
    arguments, line = SMALL[script]
    if "DATA" in arguments:
        if "SSL_DATA" not in os.environ:
            pytest.skip("needs real data: SSL_DATA=DIR")
        arguments = arguments.replace("DATA", os.environ["SSL_DATA"])
    if script in TRAINED:
        root = str(molecules(tmp_path)) if script == "molecules.py" else os.environ["SSL_DATA"]
        options = [
            "--data.root",
            root,
            "--run_dir",
            str(tmp_path / "run"),
            "--evaluate",
            "false",
        ]
        options += [
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            "2",
            "--trainer.limit_val_batches",
            "0",
        ]
        done = run(
            tmp_path,
            str(ROOT / "train.py"),
            "--config",
            str(ROOT / f"configs/{TRAINED[script]}.yaml"),
            *options,
        )
        assert done.returncode == 0, done.stderr
    write_images(tmp_path / "images")
    (tmp_path / "page.md").write_text("<!-- collapse: begin -->\n<!-- collapse: end -->\n")
    done = run(tmp_path, str(ROOT / "benchmarks" / script), *arguments.replace("{}", str(tmp_path)).split())
    if done.returncode == 3:
        pytest.skip(done.stderr.strip() or done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert line in done.stdout, done.stdout


def test_a_profile_of_compiled_steps_trains_with_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(options: list[str], callback: object, make_data: object, compiled: bool) -> SimpleNamespace:
        return SimpleNamespace(log_every_n_steps=compiled)

    monkeypatch.setattr(profile_step, "fit", fit)
    for given, compiled in (([], False), (["--compile"], True)):
        monkeypatch.setattr(sys, "argv", ["profile_step.py", "--device", "cpu", "--batch", "2", *given])
        assert profile_step.run(profile_step.parse_arguments(), Callback()) == compiled


@pytest.mark.slow
def test_tests_that_are_cut_off_have_listed_their_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A test hangs on a machine that is lent for minutes: gpu.py gets the names of those that failed."""
    file = tmp_path / "test_two.py"
    file.write_text(
        "import time\ndef test_good(): pass\ndef test_bad(): assert 0\ndef test_hangs(): time.sleep(600)\n"
    )
    monkeypatch.setattr(gpu, "ENDING", 15)
    monkeypatch.setitem(gpu.ITEMS, "kernels", gpu.Item(1, f"pytest -n 3 -v {file}"))
    status, output = gpu.run("kernels", tmp_path, 40)
    assert status == 124
    assert re.search(r"\nFAILED \S+::test_bad\n", output), output
