"""The command line as a user meets it: a run from end to end, and one clear line for everything that cannot
work.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation_script
import train
from runtime.checkpoints import read_checkpoint
from runtime.command_line import SSLCommandLine
from runtime.messages import ROOT
from sslmodules import SSLModule

DIGITS = ["--config", str(ROOT / "configs" / "digits" / "simclr.yaml")]
QUICK = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.log_every_n_steps",
    "2",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs in this process must not inherit from each other, and write nothing outside the test's folder."""
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs; tests that change it work on a copy."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert (
        train.main(
            [
                *DIGITS,
                *QUICK,
                "--run_dir",
                str(run),
                "--trainer.max_epochs",
                "2",
                "--trainer.check_val_every_n_epoch",
                "1",
            ]
        )
        == 0
    )
    return run


def same_run(run: Path, *more: str) -> list[str]:
    return [
        *DIGITS,
        *QUICK,
        "--run_dir",
        str(run),
        "--trainer.max_epochs",
        "2",
        "--trainer.check_val_every_n_epoch",
        "1",
        *more,
    ]


# ---- what works --------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_in_its_folder(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()} | {p.name for p in (trained / "checkpoints").iterdir()}
    assert {"config.yaml", "environment.json", "results.json", "last.ckpt", "best.ckpt"} <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    environment = json.loads((trained / "environment.json").read_text())
    assert (
        environment["versions"]["torch"] == torch.__version__.split("+")[0]
        or environment["versions"]["torch"] in torch.__version__
    )
    assert environment["hardware"]["cpu_count"] == os.cpu_count() and environment["command"]
    report = json.loads((trained / "results.json").read_text())
    assert report["method"] == "SimCLR" and report["data"] == "Digits"
    assert set(report["results"]) == {"pretrained", "random_init", "raw_input"}
    for row in report["results"].values():
        assert 0.5 < row["linear_top1"] <= 1 and 0.5 < row["knn_top1"] <= 1 and 0.3 < row["fewshot_top1"] <= 1
    protocol = report["protocol"]
    assert (
        protocol["selection_split"] == "val"
        and protocol["reported_split"] == "test"
        and protocol["standardize"] is True
    )
    assert (
        protocol["knn_k"],
        protocol["knn_temperature"],
        protocol["fewshot_shots"],
        protocol["fewshot_draws"],
    ) == (
        20,
        0.07,
        5,
        10,
    )
    assert protocol["samples"] == {"bank": 1077, "val": 360, "test": 360}


def test_tensorboard_holds_curves_pictures_and_hyper_parameters(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {
        "train/lr",
        "time/samples_per_s",
        "time/data_wait_share",
        "val/linear_top1",
        "val/knn_top1",
        "val/loss",
        "val/rankme",
    }
    assert (
        wanted | {"val/feature_std", "val/alignment", "val/uniformity", "val/collapsed", "test/linear_top1"}
        <= scalars
    )
    assert "views" in events.Tags()["images"]
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_a_finished_run_says_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "results.json").stat().st_mtime_ns
    assert train.main(same_run(trained)) == 0
    assert "is finished: 2 epochs, 8 steps" in capsys.readouterr().out
    assert (trained / "results.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_with_the_difference(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "config.yaml").read_text()
    assert train.main(same_run(trained, "--model.temperature", "0.7")) == 2
    error = one_line_of(capsys)
    assert "model.init_args.temperature: 0.2 there, 0.7 now" in error
    assert (trained / "config.yaml").read_text() == before


def test_what_the_result_does_not_depend_on_may_differ(trained: Path) -> None:
    assert train.main(same_run(trained, "--data.num_workers", "1")) == 0


def test_an_interrupted_run_resumes_to_the_same_end(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second epoch: exit status 130; the same command goes on from the first and ends at the
    same weights.
    """
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def interrupt(self: Any, *args: Any) -> None:
            if self.global_step == 6:
                raise KeyboardInterrupt

        patch.setattr(SSLModule, "on_train_batch_end", interrupt)
        assert train.main(same_run(run)) == 130
    assert "resumes it" in capsys.readouterr().out
    assert train.main(same_run(run)) == 0
    out = capsys.readouterr().out
    assert "resuming after epoch 1, step 4" in out
    first, second = (read_checkpoint(r / "checkpoints" / "last.ckpt") for r in (trained, run))
    assert first["global_step"] == second["global_step"] == 8
    assert all(torch.equal(first["state_dict"][k], second["state_dict"][k]) for k in first["state_dict"])
    assert len(json.loads((run / "environment.json").read_text())["restarts"]) == 1


def test_a_run_without_a_folder_gets_one_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *DIGITS,
        *QUICK,
        "--trainer.max_steps",
        "1",
        "--trainer.limit_val_batches",
        "0",
        "--evaluate",
        "false",
    ]
    assert train.main(command) == 0
    folders = list((tmp_path / "runs" / "digits-simclr").iterdir())
    assert len(folders) == 1 and re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folders[0].name)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]  # nothing beside the run folder


def test_the_saved_config_repeats_the_run_in_a_new_folder(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert train.main(["--config", str(trained / "config.yaml"), "--run_dir", str(again)]) == 0
    first, second = (json.loads((r / "results.json").read_text())["results"] for r in (trained, again))
    assert first == second


def test_a_short_run_is_short_on_the_terminal(tmp_path: Path) -> None:
    """The README's command in a process of its own: under 40 lines, with the table and where things are."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        "--trainer.max_epochs",
        "3",
        "--run_dir",
        str(tmp_path / "run"),
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "SSL_RUN_DIR")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert len([line for line in text.splitlines() if line.strip()]) < 40, text
    for expected in (
        "pretrained",
        "random_init",
        "raw_input",
        "run folder:",
        "tensorboard --logdir",
        "python eval.py",
        "linear",
        "5-shot",
    ):
        assert expected in done.stdout
    assert "Warning" not in text and "Tip" not in text and "litlogger" not in text, text


def test_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """`--trainer.strategy ddp --trainer.devices 2`: one run folder, one table, and the child's exit does not
    go unnoticed.
    """
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        *QUICK,
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
    ]
    command += [
        "--trainer.max_epochs",
        "1",
        "--data.batch_size",
        "128",
        "--trainer.check_val_every_n_epoch",
        "1",
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "SSL_RUN_DIR")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env={**env, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "runs" / "digits-simclr").iterdir())
    assert len(runs) == 1 and (runs[0] / "results.json").is_file() and done.stdout.count("run folder:") == 1


def test_unlabeled_jpegs_train_without_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    command = [
        *DIGITS,
        *QUICK,
        "--data",
        "ImageFolder",
        "--data.root",
        str(folder),
        "--data.image_size",
        "16",
    ]
    command += [
        "--model.encoder.in_channels",
        "3",
        "--data.batch_size",
        "8",
        "--trainer.max_epochs",
        "1",
        "--run_dir",
        "run",
    ]
    assert train.main([*command, "--trainer.check_val_every_n_epoch", "1"]) == 0
    out = capsys.readouterr()
    assert "no labels" in out.out + out.err
    report = json.loads(Path("run/results.json").read_text())
    assert report["results"] == {}
    assert Path("run/checkpoints/best.ckpt").is_file()  # chosen by the loss on held-out images


def test_a_timm_name_is_an_encoder(tmp_path: Path) -> None:
    command = [
        *DIGITS,
        *QUICK,
        "--model.encoder",
        "resnet10t",
        "--trainer.max_steps",
        "1",
        "--evaluate",
        "false",
        "--run_dir",
        "run",
    ]
    # three channels by default, digits have one
    assert (
        train.main(
            [*command, "--model.encoder.init_args.in_channels", "1", "--trainer.limit_val_batches", "0"]
        )
        == 0
    )
    options = read_checkpoint("run/checkpoints/last.ckpt")["hyper_parameters"]["encoder"]
    assert options["class_path"].endswith("TimmEncoder") and options["init_args"]["name"] == "resnet10t"


def test_help_is_complete_and_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['train.py', '--help']; import train; train.main(['--help']); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    for expected in (
        "SimCLR",
        "Inpainting",
        "Digits",
        "ImageFolder",
        "configs/digits/",
        "--run_dir",
        "usage:",
    ):
        assert expected in done.stdout
    assert "_TorchvisionImages" not in done.stdout


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([*DIGITS, "--print_config"])
    assert end.value.code in (0, None)
    out = capsys.readouterr().out
    assert not [e for e in ("temperature: 0.2", "batch_size: 256", "knn_k: 20") if e not in out]


def test_eval_rebuilds_from_the_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as at the end of training: same features, same random encoder, same draws."""
    output = tmp_path / "r.json"
    assert evaluation_script.main([str(trained), "--output", str(output), "--device", "cpu"]) == 0
    ours, theirs = (json.loads(p.read_text())["results"] for p in (output, trained / "results.json"))
    assert ours == theirs
    assert "pretrained" in capsys.readouterr().out
    best = trained / "checkpoints" / "best.ckpt"
    assert (
        evaluation_script.main([str(best), "--probes", "knn", "--output", str(output), "--device", "cpu"])
        == 0
    )
    assert set(json.loads(output.read_text())["results"]["pretrained"]) == {"knn_top1", "knn_macro"}


def test_eval_takes_other_data(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "other.json"
    command = [
        str(trained),
        "--data",
        "MNIST",
        "--data.synthetic",
        "true",
        "--data.batch_size",
        "64",
        "--output",
        str(output),
    ]
    assert evaluation_script.main([*command, "--probes", "knn,fewshot", "--device", "cpu"]) == 0
    report = json.loads(output.read_text())
    assert (
        report["data"] == "MNIST" and report["results"]["raw_input"]["knn_top1"] > 0.2
    )  # synthetic classes can be told apart


def test_random_baseline_is_the_network_before_training(tmp_path: Path) -> None:
    from runtime.checkpoints import initial_module

    cli = SSLCommandLine([*DIGITS, *QUICK, "--run_dir", "r", "--seed_everything", "3"])
    rebuilt = initial_module({"hyper_parameters": dict(cli.model.hparams), "seed": 3})
    for (name, a), (_, b) in zip(cli.model.named_parameters(), rebuilt.named_parameters(), strict=True):
        assert torch.equal(a, b), name


# ---- what cannot work: one line that names the value, what was expected, and what to do --------------------


def one_line_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    lines = [line for line in error.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    assert "Traceback" not in error and "Namespace(" not in error and len(error) < 700
    return lines[0]


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
    (["--config", "{list}"], "holds a list: expected keys"),
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
        r"^error: ConvEncoder does not take samples of CIFAR10 of shape \(3, 32, 32\): its in_channels is 1; "
        r"give --model.encoder.in_channels 3$",
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
    ([*DIGITS, "--run_dir", "{foreign}"], "holds other files and no config.yaml"),
    ([*DIGITS, "--run_dir", "/proc/run"], "/proc/run cannot be made"),
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


@pytest.mark.parametrize("damage", ["empty", "truncated", "pickle", "weights-only", "other-method"])
def test_a_checkpoint_that_cannot_be_resumed(
    damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last = run / "checkpoints" / "last.ckpt"
    (run / "checkpoints" / "previous.ckpt").unlink()
    content = read_checkpoint(last)
    if damage == "empty":
        last.write_bytes(b"")
    elif damage == "truncated":
        last.write_bytes(last.read_bytes()[:2000])
    elif damage == "pickle":
        torch.save({**content, "evil": Path("x")}, last)
    elif damage == "weights-only":
        content.pop("optimizer_states")
        torch.save(content, last)
    else:
        content["hyper_parameters"]["_class_path"] = "sslmodules.inpainting.Inpainting"
        torch.save(content, last)
    (run / "results.json").unlink()
    damaged = last.read_bytes()
    assert train.main(same_run(run)) == 2
    assert str(last) in one_line_of(capsys)
    assert last.read_bytes() == damaged  # evidence is not overwritten
    if damage in ("empty", "truncated", "pickle"):
        assert evaluation_script.main([str(run)]) == 2
        assert str(last) in one_line_of(capsys)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nowhere"], "nowhere does not exist: expected a run folder, a checkpoint, or one of the commands"),
        (["."], r"holds no checkpoints/last.ckpt"),
        (["{run}", "--probes", "linaer"], "probes must be one of linear, knn, fewshot, got 'linaer'"),
        (["{run}", "--data", "MNITS"], r"unknown data set 'MNITS' \(did you mean 'MNIST'\?\)"),
        (["{run}", "--data.rot", "x"], r"Digits has no option 'rot' \(did you mean 'root'\?\)"),
        (["{run}", "--data", "MNIST", "--data.root", "nowhere"], "MNIST: --data.root nowhere does not exist"),
        (["{run}", "--output", "no/such/folder/r.json"], "the folder no/such/folder does not exist"),
        (["{run}", "--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
    ],
)
def test_bad_input_of_eval(
    args: list[str], expected: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation_script.main([a.replace("{run}", str(trained)) for a in args]) == 2
    assert re.search(expected, one_line_of(capsys))


def test_no_argument_is_linked_behind_the_users_back() -> None:
    """A linked argument would replace what the user gave without a word. Giving every option of the model
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
