"""One run from end to end: what it leaves, how it is resumed and evaluated, and what its folder refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as evaluation_script
import train
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from sslmodules import SSLModule
from tests.command_lines import DIGITS, QUICK, one_line_of

pytestmark = pytest.mark.usefixtures("clean_environment")


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


def test_the_saved_config_repeats_the_run_in_a_new_folder(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert train.main(["--config", str(trained / "config.yaml"), "--run_dir", str(again)]) == 0
    first, second = (json.loads((r / "results.json").read_text())["results"] for r in (trained, again))
    assert first == second


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


# ---- what cannot work --------------------------------------------------------------------------------------


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
        (["."], r"contains no checkpoints/last.ckpt"),
        (["{run}", "--probes", "linaer"], "probes must be one of linear, knn, fewshot, .*, got 'linaer'"),
        (["{run}", "--data", "MNITS"], r"unknown data set 'MNITS' \(did you mean 'MNIST'\?\)"),
        (["{run}", "--data.rot", "x"], r"Digits has no option 'rot' \(did you mean 'root'\?\)"),
        (["{run}", "--data", "MNIST", "--data.root", "nowhere"], "MNIST: --data.root nowhere does not exist"),
        (["{run}", "--output", "no/such/folder/r.json"], "the folder no/such/folder does not exist"),
        (["{run}", "--device", "tpu"], "^error: --device must be one of auto, cpu, cuda, got 'tpu'$"),
        (
            ["{run}", "--device", "cuda"],
            "^error: --device cuda: there is no GPU here, or torch cannot use it: ",
        ),
    ],
)
def test_bad_input_of_eval(
    args: list[str],
    expected: str,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert evaluation_script.main([a.replace("{run}", str(trained)) for a in args]) == 2
    assert re.search(expected, one_line_of(capsys))
