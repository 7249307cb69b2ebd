"""Healthy runs and runs that collapse side by side: the curves and the table of docs/collapse.md.

    python benchmarks/collapse.py [--families contrastive covariance ...] [--page docs/collapse.md]

For each family of methods, trains a config for Digits as it is, and again with one change that should make
the features collapse. Each run adds a line to ``--results``; runs that are there are not repeated. With
``--page``, draws loss, RankMe and spread of the features of both as ``images/collapse_FAMILY.png`` beside the
page, and writes the values at the end of all runs between the page's marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.cifar10 import origin
from benchmarks.parts.pages import write_between_marks
from benchmarks.parts.training import fit, silence
from evaluation.curves import draw_lines
from runtime.messages import ROOT


class Family(NamedTuple):
    """A method, the metric that shows its collapse, and the option or missing part that should cause it."""

    method: str
    sign: str
    option: str = ""
    without: str = ""

    def change(self) -> str:
        return f"`{self.option}`" if self.option else f"without the {self.without}"


FAMILIES = {
    "contrastive": Family("simclr", "uniformity", option="--model.optimizer.init_args.lr 1.0"),
    "predictor": Family("simsiam", "z_spread", without="predictor"),
    "teacher": Family("dino", "mean_entropy", option="--model.center_momentum 1.0"),
    "covariance": Family("vicreg", "variance", option="--model.variance_weight 0.0"),
    "clustering": Family("swav", "code_entropy", option="--model.epsilon 1.0"),
    "coding rate": Family("simdino", "expansion", option="--model.rate_weight 0.0"),
    "generative": Family("vae", "active_latents", option="--model.beta 50.0"),
}
CURVES = {"loss": "loss on val", "rankme": "RankMe", "feature_std": "spread"}
COLUMNS = {**CURVES, "linear_top1": "linear on val", "collapsed": "alarm"}

Values = dict[str, list[list[float]]]
"""[step, value] at each validation, by the name of the metric."""


class Recorder(Callback):
    """Keeps the metrics of each validation; replaces a part of the method by the identity if it is named."""

    def __init__(self, sign: str, without: str) -> None:
        self.without = without
        self.values: Values = {name: [] for name in (*COLUMNS, sign)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.without:
            setattr(pl_module, self.without, nn.Identity())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for name, points in self.values.items():
            points.append([trainer.global_step, float(trainer.callback_metrics[f"val/{name}"])])


def train(family: Family, changed: bool, epochs: int) -> Values:
    """What a run logs at its validations."""
    options = ["--config", str(ROOT / "configs" / "digits" / f"{family.method}.yaml")]
    options += family.option.split() if changed else []
    options += ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", "2"]
    options += ["--trainer.enable_progress_bar", "false", "--disable_callbacks", "ImageGrid"]
    recorder = Recorder(family.sign, family.without if changed else "")
    fit(options, recorder)
    return recorder.values


def draw(sign: str, runs: dict[str, Values], file: Path) -> None:
    """A panel for each of ``CURVES`` and the method's own sign, with a line for each run."""
    panels = []
    for name, title in {**CURVES, sign: sign}.items():
        lines = {run: [(step, value) for step, value in values[name]] for run, values in runs.items()}
        panels.append((f"{title}, by step", lines))
    file.parent.mkdir(exist_ok=True)
    draw_lines(panels).quantize(16).save(file, optimize=True)


def table(lines: list[dict[str, Any]]) -> str:
    """The values at the end of each run."""
    columns = ["family", "method", "run", *COLUMNS.values(), "its own sign"]
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for line in lines:
        sign = FAMILIES[line["family"]].sign
        cells = [line["family"], line["method"], line["run"]]
        cells += [f"{line['values'][name][-1][1]:.3g}" for name in COLUMNS]
        cells.append(f"`{sign}` {line['values'][sign][-1][1]:.3g}")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "collapse.jsonl")
    parser.add_argument("--page", type=Path, help="write the table here and the pictures beside it")
    args = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    known = args.results.read_text(encoding="utf-8").splitlines() if args.results.is_file() else []
    lines: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in map(json.loads, known):
        lines[line["family"], line["run"], line["epochs"]] = line
    chosen = []
    for name in args.families:
        family, runs = FAMILIES[name], {}
        for run in ("healthy", family.change()):
            key = (name, run, args.epochs)
            if key not in lines:
                values = train(family, run != "healthy", args.epochs)
                described = {"family": name, "method": family.method, "run": run, "epochs": args.epochs}
                lines[key] = {**described, "values": values, **origin("collapse.py")}
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[key]) + "\n")
            chosen.append(lines[key])
            runs[run.replace("`", "")] = lines[key]["values"]
        if args.page:
            draw(family.sign, runs, args.page.parent / "images" / f"collapse_{name.replace(' ', '_')}.png")
    print(table(chosen))
    if args.page:
        write_between_marks(args.page, "collapse", table(chosen))


if __name__ == "__main__":
    main()
