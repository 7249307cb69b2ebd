"""All loggers of a run get everything, continue when it is resumed, and write only into its folder."""

from __future__ import annotations

import csv
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from PIL import Image
from pytest import approx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import train
from datamodules import Digits
from datamodules.samplers import interleaved
from runtime.checkpoints import load_module
from runtime.loggers import CSVLogger, TensorBoardLogger, hyper_parameters, log_results, show_charts
from runtime.messages import ROOT
from tests.loggers import WandbLike, charts
from tests.resume import Killed

RUN = [
    *("--config", str(ROOT / "configs" / "digits" / "simclr.yaml"), "--run_dir", "run"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_train_batches", "2", "--trainer.log_every_n_steps", "1"),
    *("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1"),
]
SEVERAL = [
    "--trainer.logger",
    "[{class_path: tests.loggers.WandbLike}, {class_path: CSVLogger}, {class_path: TensorBoardLogger}]",
    *("--trust_config_classes", "tests"),
]
SCALARS = {
    *("train/loss", "train/lr", "time/samples_per_s", "val/loss", "val/linear_top1", "val/knn_top1"),
    *("val/rankme", "test/linear_top1", "test/knn_top1", "test/fewshot_top1", "train/grad_norm"),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)
    WandbLike.made.clear()
    yield
    WandbLike.made.clear()


def killed_in_epoch(epoch: int, patch: pytest.MonkeyPatch) -> None:
    from sslmodules.base import SSLModule

    begin = SSLModule.on_train_batch_start

    def kill(self: Any, batch: Any, index: int) -> None:
        if self.trainer.current_epoch == epoch and index == 1:
            raise Killed
        begin(self, batch, index)

    patch.setattr(SSLModule, "on_train_batch_start", kill)


def rows(file: str) -> list[dict[str, str]]:
    """Logged values in order, without clock times."""
    with open(file, newline="", encoding="utf-8") as opened:
        found = [{k: v for k, v in row.items() if v and "time/" not in k} for row in csv.DictReader(opened)]
    return sorted(found, key=lambda row: (int(row["step"]), sorted(row)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbLike]:
    """A run with three loggers at once."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_RUN_DIR", raising=False)
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert train.main([*RUN, *SEVERAL, "--run_dir", str(folder)]) == 0
    return folder, WandbLike.made.pop()


def test_every_logger_gets_all_scalars(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, fake = undisturbed
    table = rows(str(folder / "metrics.csv"))
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= SCALARS
    assert fake.scalars.keys() == tags
    assert {name for row in table for name in row} == {t for t in tags if "time/" not in t} | {"step"}
    for tag in SCALARS - {"time/samples_per_s"}:
        curve = fake.scalars[tag]
        assert [(int(row["step"]), float(row[tag])) for row in table if tag in row] == curve
        shown = events.Scalars(tag)
        assert [event.step for event in shown] == [step for step, _ in curve]
        assert [event.value for event in shown] == pytest.approx([value for _, value in curve])


def test_every_logger_gets_the_hyper_parameters(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, fake = undisturbed
    expected = hyper_parameters(yaml.safe_load((folder / "config.yaml").read_text()))
    assert expected["model"] == "SimCLR" and expected["model/temperature"] == 0.2
    assert expected["trainer/max_epochs"] == 3 and expected["seed_everything"] == 0
    assert fake.hyper_parameters == [expected]
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == expected
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    columns = HParamsPluginData.FromString(content).session_start_info.hparams
    first = ["Batch size", "Data", "Epochs", "Learning rate", "Method", "Seed"]
    assert sorted(columns)[:6] == first and columns["Method"].string_value == "SimCLR"
    assert len(columns) == len(expected)


def test_pictures_reach_every_logger_that_takes_them(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, fake = undisturbed
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = ["views", "features", "confusion", "neighbors"]
    assert events.Tags()["images"] == tags
    shown = [(t, event.step, event.width, event.height) for t in tags for event in events.Images(t)]
    assert [(key, step, *image.size) for _, key, step, [image], _ in fake.media] == shown
    at_the_end = [("image", tag, 5) for tag in tags[1:]]
    assert [media[:3] for media in fake.media] == [("image", "views", s) for s in (1, 3, 5)] + at_the_end


def test_baselines_are_lines_in_the_chart_of_the_probe(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, fake = undisturbed
    events = EventAccumulator(str(folder))
    events.Reload()
    rows = json.loads((folder / "results.json").read_text())["results"]
    for encoder in ("random_init", "raw_input"):
        for probe in ("linear_top1", "knn_top1"):
            tag, value = f"test_baselines/{probe}/{encoder}", rows[encoder][probe]
            assert [(e.step, e.value) for e in events.Scalars(tag)] == [
                (0, approx(value)),
                (6, approx(value)),
            ]
            assert fake.scalars[tag] == [(6, value)]


LOSS = {"loss: train and val": ["train/loss$", "val/loss$"]}


def test_custom_scalars_begin_with_probes_loss_and_collapse(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, _ = undisturbed
    probes = {
        f"{title}: top-1 on val, baselines on test": [f"val/{name}", f"test_baselines/{name}/"]
        for title, name in (("linear probe", "linear_top1"), ("kNN", "knn_top1"))
    }
    collapse = {
        "RankMe: 1 = collapsed": ["val/rankme"],
        "spread of features: 0 = collapsed": ["val/feature_std"],
        "alignment, uniformity: lower = closer views, more even": ["val/alignment", "val/uniformity"],
    }
    found = charts(folder)
    assert found == {"overview": probes | LOSS | collapse}
    assert list(found["overview"]) == [*probes, *LOSS, *collapse]
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    patterns = [pattern for row in found["overview"].values() for pattern in row]
    assert all(any(re.match(pattern, tag) for tag in tags) for pattern in patterns)


def test_charts_of_what_is_not_logged_are_left_out(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path))
    show_charts([logger], {"train/loss", "val/loss"})
    logger.save()
    assert charts(tmp_path) == {"overview": LOSS}


def test_the_projector_has_val_with_classes_and_images(undisturbed: tuple[Path, WandbLike]) -> None:
    folder, _ = undisturbed
    told = (folder / "projector_config.pbtxt").read_text()
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert f'"00005/val/{name}"' in told
    points = (folder / "00005" / "val" / "tensors.tsv").read_text().splitlines()
    classes = (folder / "00005" / "val" / "metadata.tsv").read_text().splitlines()
    dataset: Any = Digits().dataset("val")
    assert len(points) == len(classes) == 360
    assert classes == [str(dataset.labels[i]) for i in interleaved(dataset)]
    module = load_module(folder / "checkpoints" / "best.ckpt")
    x = Digits().transform(dataset.__getitems__(interleaved(dataset)[:3].tolist()), None)["input"]
    with torch.no_grad():
        expected = module.embed(x)
    shown = torch.tensor([[float(v) for v in row.split("\t")] for row in points[:3]])
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)
    with Image.open(folder / "00005" / "val" / "sprite.png") as sprite:
        assert sprite.size == (19 * 8, 19 * 8)


def test_loggers_go_on_where_a_killed_run_was(
    undisturbed: tuple[Path, WandbLike], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = undisturbed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in_epoch(1, patch)
        train.main([*RUN, *SEVERAL])
    assert train.main([*RUN, *SEVERAL]) == 0
    assert rows("run/metrics.csv") == rows(str(folder / "metrics.csv"))
    first, second = WandbLike.made
    assert first.hyper_parameters == second.hyper_parameters == whole.hyper_parameters
    for tag, curve in whole.scalars.items():
        if not tag.startswith("time/"):  # another start is another run there: both together are the curve
            assert [x for x in first.scalars.get(tag, []) if x[0] < 2] + second.scalars[tag] == curve


def test_what_was_moved_aside_is_found_again(undisturbed: tuple[Path, WandbLike]) -> None:
    """Killed while it goes on: before the rows are written anew, or in the middle of that."""
    folder, _ = undisturbed
    for leftover in (None, "step,train/loss\n0,"):
        shutil.rmtree("log", ignore_errors=True)
        Path("log").mkdir()
        shutil.copy(folder / "metrics.csv", "log/.metrics.csv.earlier")
        if leftover:
            Path("log/metrics.csv").write_text(leftover)
        CSVLogger("log").resume_at(4)
        expected = [row for row in rows(str(folder / "metrics.csv")) if int(row["step"]) < 4]
        assert rows("log/metrics.csv") == expected and len(expected) > 4
        assert [path.name for path in Path("log").iterdir()] == ["metrics.csv"]


def test_tensorboard_is_named_only_where_it_has_something_to_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*RUN, "--trainer.max_steps", "1", "--evaluate", "false"]
    for logger, lines in (("null", 1), ("CSVLogger", 0), ("false", 0)):
        shutil.rmtree("run", ignore_errors=True)
        assert train.main([*command, "--trainer.logger", logger]) == 0
        out = capsys.readouterr().out
        assert out.count("TensorBoard:  tensorboard --logdir run\n") == lines
        assert out.endswith("evaluate:     python eval.py run\n")


@pytest.mark.skipif(
    "enable_autolog_hparams" not in inspect.signature(Trainer).parameters, reason="an option of lightning 2.6"
)
def test_hyper_parameters_can_be_left_out() -> None:
    options = ["--trainer.max_steps", "1", "--evaluate", "false", "--trainer.enable_autolog_hparams", "false"]
    assert train.main([*RUN, *SEVERAL, *options]) == 0
    assert WandbLike.made[0].hyper_parameters == []


# ---- what is written stays in the run folder ---------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert train.main([*RUN, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=/tmp"], "logger: save_dir", "/tmp"),
        (
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=../other"],
            "logger: save_dir",
            "../other",
        ),
        (
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=s3://b/x"],
            "logger: save_dir",
            "s3://b/x",
        ),
        (["--trainer.logger=CSVLogger", "--trainer.logger.version=../x"], "logger: version", "../x"),
        (["--trainer.logger=TensorBoardLogger", "--trainer.logger.name=/x"], "logger: name", "/x"),
        (
            ["--trainer.logger=MLFlowLogger", "--trainer.logger.tracking_uri=file:/x"],
            "logger: tracking_uri",
            "file:/x",
        ),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=.."],
            "callbacks: dirpath",
            "..",
        ),
        (
            ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=../../a"],
            "callbacks: filename",
            "../../a",
        ),
        (
            ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.dirpath=/x"],
            "profiler: dirpath",
            "/x",
        ),
    ],
)
def test_folders_elsewhere_are_refused(
    options: list[str], key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *options) == (
        f"error: trainer.{key} {value!r} is outside of the run folder run, which keeps all files of a run: "
        "leave it out, or give a folder below it"
    )
    assert not Path("run").exists()


def test_another_root_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--trainer.default_root_dir", "elsewhere") == (
        "error: trainer.default_root_dir elsewhere: a run writes to its run folder only; give --run_dir"
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--trainer.callbacks.filename=best"], "best"),
        (["--trainer.callbacks.filename=previous", "--trainer.callbacks.dirpath=checkpoints"], "previous"),
        (["--trainer.callbacks.save_last=true"], "last"),
    ],
)
def test_the_runs_own_checkpoints_are_not_replaced(
    options: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "--trainer.callbacks+=ModelCheckpoint", *options) == (
        f"error: trainer.callbacks: ModelCheckpoint would replace the run's own checkpoints/{name}.ckpt: "
        "give another filename or dirpath, and no save_last"
    )


def test_folders_are_below_the_run_folder() -> None:
    """Those of checkpoints, loggers and profilers; an absolute one, too."""
    checkpoint = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=mine"]
    checkpoint += ["--trainer.callbacks.save_last=true"]  # not the run's own there
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={Path('run/logs').resolve()}"]
    profiler = ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.filename=times"]
    profiler += ["--trainer.profiler.dirpath=."]
    options = [*checkpoint, *logger, *profiler, "--trainer.max_epochs", "1", "--evaluate", "false"]
    assert train.main([*RUN, *options]) == 0
    for file in ("mine/last.ckpt", "mine/epoch=0-step=2.ckpt", "logs/metrics.csv", "fit-times.txt"):
        assert Path("run", file).is_file()
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_lightnings_csv_logger_deletes_no_earlier_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    options += ["--trainer.logger.version=mine", "--evaluate", "false"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in_epoch(1, patch)
        train.main([*RUN, *options])
    file = Path("run/logs/lightning_logs/mine/metrics.csv")
    before = file.read_text()
    assert refused(capsys, *options) == (
        f"error: trainer.logger: lightning.pytorch.loggers.csv_logs.CSVLogger would delete {file}: give no "
        "version, or use the project's CSVLogger, which continues its file"
    )
    assert file.read_text() == before


def test_results_are_one_point_at_the_last_step(tmp_path: Path) -> None:
    """Not a line from step 0, whose value nobody measured."""
    logger = TensorBoardLogger(str(tmp_path))
    report = {"results": {"pretrained": {"linear_top1": 0.5}}}
    assert log_results([logger], {"model": "SimCLR"}, report, step=7) == {}
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("test/linear_top1")] == [(7, 0.5)]


def test_what_runs_are_compared_by_comes_first() -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "lr": 0.1}}
    config = {
        "model": {"class_path": "SimCLR", "init_args": {"temperature": 0.2, "optimizer": optimizer}},
        "data": {"class_path": "Digits", "init_args": {"bank_size": 9, "batch_size": 64}},
        "seed_everything": 3,
        "trainer": {"max_epochs": 5, "precision": None},
    }
    assert list(hyper_parameters(config).items())[:6] == [
        ("model", "SimCLR"),
        ("model/optimizer/lr", 0.1),
        ("data/batch_size", 64),
        ("trainer/max_epochs", 5),
        ("seed_everything", 3),
        ("data", "Digits"),
    ]
