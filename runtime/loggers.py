"""Sends hyper-parameters and test results to the loggers, and lays out TensorBoard's charts."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from evaluation.attempts import Attempts
from evaluation.measures import measures
from runtime.event_files import put_before_now
from runtime.lightning_internals import hide_events_from


class TensorBoardLogger(loggers.TensorBoardLogger):
    """TensorBoard events in the run folder, without hparams.yaml, as the configuration is in config.yaml.

    Args:
        save_dir: a folder below the run folder; default: the run folder itself.
        name: a folder below it.
        version: a folder below that.
        **kwargs: options of Lightning's logger.
    """

    def __init__(
        self, save_dir: str = ".", name: str | None = "", version: int | str | None = "", **kwargs: Any
    ) -> None:
        super().__init__(save_dir, name=name, version=version, default_hp_metric=False, **kwargs)

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Hide what an earlier start logged for this step and later ones, which are logged again."""
        put_before_now(Path(self.log_dir))
        hide_events_from(self, step)

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class CSVLogger(loggers.CSVLogger):
    """Scalars in ``metrics.csv`` and hyper-parameters in ``hparams.yaml`` in the run folder.

    A resumed run continues the same file.

    Args:
        save_dir: a folder below the run folder; default: the run folder itself.
        name: a folder below it.
        version: a folder below that.
        **kwargs: options of Lightning's logger.
    """

    def __init__(
        self, save_dir: str = ".", name: str | None = "", version: int | str | None = "", **kwargs: Any
    ) -> None:
        super().__init__(save_dir, name=name, version=version, **kwargs)

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Keep what an earlier start logged before this step; the rest is logged again.

        Lightning deletes an existing file, so it is moved aside until its rows have been rewritten. If that
        is interrupted, the next start still finds all rows.
        """
        file = Path(self.log_dir) / "metrics.csv"
        aside = file.with_name(".metrics.csv.earlier")
        if file.is_file() and not aside.is_file():
            os.replace(file, aside)
        if not aside.is_file():
            return
        with aside.open(newline="", encoding="utf-8") as earlier:
            rows = [row for row in csv.DictReader(earlier) if int(row["step"]) < step]
        self.experiment.metrics = [{k: v for k, v in row.items() if v} for row in rows]
        self.save()
        aside.unlink()


def log_hyperparameters(given: list[loggers.Logger], parameters: dict[str, Any]) -> None:
    """Send hyper-parameters to every logger before training, except to TensorBoard.

    Its HParams tab gets them with the results; an earlier entry would show a run without results.
    """
    for logger in given:
        if parameters and not isinstance(logger, loggers.TensorBoardLogger):
            logger.log_hyperparams(parameters)


def log_results(
    given: list[loggers.Logger], parameters: dict[str, Any], report: dict[str, Any], step: int
) -> dict[str, str]:
    """Send the results on the test split to every logger, as scalars ``test/...``.

    TensorBoard also gets an entry in its HParams tab, which compares runs.

    Returns:
        The error of each logger that failed, by its name.
    """
    scores = {f"test/{k}": v for k, v in report["results"].get("pretrained", {}).items()}
    for name, measure in measures().items():
        if name in report:
            scores |= {f"test/{k}": v for k, v in measure.scalars(report[name]).items()}
    lines = baseline_lines(report["results"])
    attempts = Attempts()
    for logger in given:
        with attempts.of(type(logger).__name__):
            if isinstance(logger, loggers.TensorBoardLogger) and lines:
                logger.log_metrics(lines, step=0)  # a line from step 0 to the end
            logger.log_metrics(lines, step=step)
            if parameters and isinstance(logger, loggers.TensorBoardLogger):
                columns = {COLUMNS.get(name, name): value for name, value in parameters.items()}
                logger.log_hyperparams(columns, scores, step)  # logs the scores, too
            else:
                logger.log_metrics(scores, step=step)
            logger.save()
    return attempts.failed


#: Probes whose validation curves TensorBoard shows in one chart with the baselines.
CHARTED = ("linear_top1", "knn_top1")
#: TensorBoard's Custom Scalars tab, in this order: titles, and tags as regular expressions with an open end.
CHARTS = {
    "linear probe: top-1 on val, baselines on test": ["val/linear_top1", "test_baselines/linear_top1/"],
    "kNN: top-1 on val, baselines on test": ["val/knn_top1", "test_baselines/knn_top1/"],
    "loss: train and val": ["train/loss$", "val/loss$"],
    "RankMe: 1 = collapsed": ["val/rankme"],
    "spread of features: 0 = collapsed": ["val/feature_std"],
    "alignment, uniformity: lower = closer views, more even": ["val/alignment", "val/uniformity"],
}


def show_charts(given: list[loggers.Logger], logged: set[str]) -> None:
    """Lay out TensorBoard's Custom Scalars tab before training: probes beside baselines, loss, collapse.

    Args:
        given: the run's loggers.
        logged: metrics that the run will log; charts of others are left out.
    """
    charts = {
        title: ["Multiline", tags]
        for title, tags in CHARTS.items()
        if any(tag.rstrip("$") in logged for tag in tags)
    }
    for logger in given:
        if isinstance(logger, loggers.TensorBoardLogger):
            logger.experiment.add_custom_scalars({"overview": charts})


def baseline_lines(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Test accuracies of the baselines in a report, as ``test_baselines/linear_top1/random_init``."""
    return {
        f"test_baselines/{name}/{encoder}": row[name]
        for encoder, row in results.items()
        if encoder != "pretrained"
        for name in CHARTED
        if name in row
    }


#: The most important options for comparing runs, which come first; and their names in TensorBoard's HParams
#: tab, which sorts names, capital letters first.
COLUMNS = {
    "model": "Method",
    "model/optimizer/lr": "Learning rate",
    "data/batch_size": "Batch size",
    "trainer/max_epochs": "Epochs",
    "seed_everything": "Seed",
    "data": "Data",
}


def hyper_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Method, data and training limits as a flat mapping: ``{"model": "SimCLR", "model/temperature": 0.2}``.

    Args:
        config: the resolved configuration, plain values.
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "class_path":  # `model: SimCLR`, `model/encoder: ConvEncoder`
                    flat[prefix.replace("init_args/", "")] = value.rsplit(".", 1)[-1]
                else:
                    walk(value, f"{prefix}/{key}" if prefix else str(key))
        elif isinstance(node, (int, float, str, bool)):
            flat[prefix.replace("init_args/", "")] = node

    walk({k: config[k] for k in ("model", "data", "seed_everything")}, "")
    limits = ("max_epochs", "max_steps", "precision")
    flat |= {f"trainer/{k}": v for k, v in config["trainer"].items() if k in limits}
    return {**{name: flat[name] for name in COLUMNS if name in flat}, **flat}
