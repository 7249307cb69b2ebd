"""CIFAR-10 with a ResNet-18, the field's benchmark: accuracy, speed and memory of a list of methods, in
slices of time.

    python benchmarks/cifar10.py --data DIR --methods simclr byol moco --batch 512 --epochs 200 --minutes 9
    python benchmarks/cifar10.py --table [--readme README.md]

Each method runs as ``python train.py --config configs/cifar10/<method>.yaml`` would, in its own run folder
below ``--runs``. When the minutes are over it stops after an epoch, with a checkpoint; the same command goes
on from there, and evaluates what is finished. A finished run appends one line to ``--results``; the table is
made from those lines and from nothing else.

Data: a folder with ``cifar-10-batches-py`` is CIFAR-10. So is one with ``train/<class>/*.png`` and
``test/<class>/*.png`` whose training pixels have CIFAR-10's mean and standard deviation to seven digits
(or with files of another format without loss). One with ``*.jpg`` files is a copy kept as JPEG and is called
CIFAR-10-JPEG everywhere: its numbers are not CIFAR-10's. Each may be a tar archive.

Protocol, of the last epoch's weights, features of ``embed``:

- knn10: cosine similarity, k 10, equal votes, bank = all 50,000 training images, test split, as the open
  record has it. knn200: k 200, T 0.1, the same bank; lightly's settings, whose published numbers are the
  MAXIMUM over epochs of this figure. knn20: k 20, T 0.07 (DINO's), bank = the 45,000 images
  that were trained on.
- linear, 5-shot, and the baselines of an untrained encoder and of raw pixels: as ``eval.py`` (L2 chosen on
  5,000 held-out training images).
- images/s and seconds per epoch: medians over the epochs, without validation and checkpoints. views: time of
  the views of one batch, alone, as a share of a step. wait: share of the time in which the host waits for
  data. memory: the most that torch held.

The learning rate of a config belongs to batch 512 and is scaled linearly for ``--batch``, unless ``--lr`` is
given.

Exit status: 0 all asked runs are finished, 75 the minutes are over and some are not, 1 some failed, 2 bad
arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.cifar10_images import NEIGHBORS, find_data
from benchmarks.parts.cifar10_table import table
from benchmarks.parts.pages import write_between_marks
from benchmarks.parts.rounds import device_name, refuse, synchronize
from datamodules.base import SSLDataModule
from evaluation.accuracy import top1
from evaluation.features import extract_features
from evaluation.probes.knn import knn_predict
from evaluation.report import evaluate
from runtime.checkpoints import initial_module, load_module, read_checkpoint
from runtime.command_line import SSLCommandLine
from runtime.environment import describe_environment
from runtime.framework_messages import silence_framework
from runtime.signals import Preempted, StopRequest
from runtime.stopping import Preemption

ROOT = Path(__file__).resolve().parents[1]
CONFIG_BATCH = 512
KEYS = ("data", "method", "batch", "epochs", "seed", "compile", "lr")  # of a run; no lr: the config's
UNFINISHED = 75
RUNS = ROOT / "runs" / "cifar10-benchmark"
VALIDATE_EVERY = 50  # epochs
SAVE_EVERY = 30.0  # seconds of training


class Meter(Callback):
    """Seconds of every epoch's training, and the most memory; kept in the checkpoint, so that slices of a run
    add up.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.seconds: list[float] = []
        self.memory = 0
        self.mark = 0.0
        self.saved = 0.0  # seconds of training in the last checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "memory": self.memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.memory = list(state_dict["seconds"]), state_dict["memory"]
        self.saved = sum(self.seconds)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # validation of an epoch comes before its end: it is not training
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.mark == 0.0:
            return
        synchronize(pl_module.device)
        if pl_module.device.type == "cuda":
            self.memory = max(self.memory, torch.cuda.max_memory_allocated(pl_module.device))
        now = time.monotonic()
        self.seconds.append(now - self.mark)
        self.mark = 0.0
        # an epoch more, with its checkpoint and perhaps a validation, must fit
        late = now + 2 * self.seconds[-1] + 5 > self.deadline
        done = trainer.current_epoch + 1
        if late and done < trainer.max_epochs:
            # trainer.should_stop would end the run for good
            leaving = next(c for c in trainer.callbacks if isinstance(c, Preemption))
            leaving.request = StopRequest.END
        # an epoch of most methods takes seconds, and so would a checkpoint after each
        due = late or sum(self.seconds) - self.saved > SAVE_EVERY or done == trainer.max_epochs
        if due:
            self.saved = sum(self.seconds)
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and saver.filename == "last":
                saver._every_n_epochs = 1 if due else done + 1


def command_line(
    args: argparse.Namespace, method: str, seed: int, folder: Path, data: list[str]
) -> SSLCommandLine:
    """Method, data and Trainer as ``train.py`` builds them."""
    config = ROOT / "configs" / "cifar10" / f"{method}.yaml"
    options = ["--config", str(config), *data, "--run_dir", str(folder), "--seed_everything", str(seed)]
    options += ["--data.batch_size", str(args.batch), "--trainer.max_epochs", str(args.epochs)]
    options += ["--trainer.accelerator", args.device, "--trainer.devices", "1"]
    options += ["--trainer.enable_progress_bar", "false"]
    options += ["--trainer.check_val_every_n_epoch", str(min(VALIDATE_EVERY, args.epochs))]
    options += ["--trainer.benchmark", "true", "--compile", str(args.compile).lower()]
    if args.lr is not None or args.batch != CONFIG_BATCH:
        lr = args.lr or configured_lr(config) * args.batch / CONFIG_BATCH
        options += ["--model.optimizer.init_args.lr", repr(lr)]
    os.environ.pop("SSL_RUN_DIR", None)  # set by each run for its own processes
    return SSLCommandLine(options)


def configured_lr(config: Path) -> float:
    import yaml

    return float(yaml.safe_load(config.read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"])


def run(
    args: argparse.Namespace, method: str, seed: int, name: str, data: list[str], deadline: float
) -> dict[str, Any] | None:
    """Train until finished or the deadline; the line of results if finished."""
    chosen = {} if args.lr is None else {"lr": args.lr}
    ending = "".join(f"-{key}{value}" for key, value in chosen.items())
    folder = args.runs / f"{name.lower()}-{method}-b{args.batch}-e{args.epochs}-s{seed}{ending}"
    cli = command_line(args, method, seed, folder, data)
    trainer, module, datamodule = cli.trainer, cli.model, cli.datamodule
    resume = cli.run_folder.inspect(cli.plain_config, cli.method_name)
    cli.run_folder.create(cli.plain_config, resume is not None)
    meter = Meter(deadline)
    trainer.callbacks.insert(0, meter)
    done = 0 if resume is None else cli.run_folder.progress()[0]
    print(
        f"{method}: {name}, batch {args.batch}, seed {seed}, epoch {done} of {args.epochs}, {folder}",
        flush=True,
    )
    if done < args.epochs:
        with suppress(Preempted):
            trainer.fit(module, datamodule, ckpt_path=resume)
        cli.run_folder.content = read_checkpoint(cli.run_folder.last)
        done = cli.run_folder.progress()[0]
    if done < args.epochs:
        print(f"{method}: stopped after epoch {done} of {args.epochs}; the same command goes on", flush=True)
        return None
    row = {
        "data": name,
        "method": method,
        "batch": args.batch,
        "epochs": args.epochs,
        "seed": seed,
        "precision": str(cli.config.trainer.precision),
        "compile": args.compile,
        **chosen,
    }
    return {**row, **measured(cli, meter, args.batch, seed), **origin("cifar10.py")}


def measured(cli: SSLCommandLine, meter: Meter, batch: int, seed: int) -> dict[str, Any]:
    """Accuracies, speed and memory of a finished run."""
    datamodule, device = cli.datamodule, cli.trainer.strategy.root_device
    checkpoint = read_checkpoint(cli.run_folder.last)
    meter.load_state_dict(next(v for k, v in checkpoint["callbacks"].items() if k.startswith("Meter")))
    trained = load_module(cli.run_folder.last)
    datamodule.trainer = None
    report = evaluate(
        trained, initial_module(checkpoint), datamodule, str(cli.run_folder.last), device=device, seed=seed
    )
    results = report["results"]
    seconds = statistics.median(meter.seconds)
    steps = len(datamodule.dataset("train")) // batch
    return {
        **accuracies(results["pretrained"], neighbors(trained, datamodule, device)),
        "baselines": {k: accuracies(v) for k, v in results.items() if k != "pretrained"},
        "linear_l2": report["protocol"]["linear_l2"],
        "images_per_s": round(steps * batch / seconds, 1),
        "seconds_per_epoch": round(seconds, 3),
        "training_minutes": round(sum(meter.seconds) / 60, 2),
        "views_share": round(seconds_of_views(datamodule, batch, device) * steps / seconds, 4),
        "data_wait_share": logged_median(cli.run_folder.path, "time/data_wait_share"),
        "peak_memory_gib": round(meter.memory / 2**30, 2) if device.type == "cuda" else None,
        "device": device_name(device, describe_environment()["hardware"]["cpu"]),
    }


def origin(script: str) -> dict[str, Any]:
    """Versions, commit, command and time of a measurement."""
    environment = describe_environment()
    return {
        "versions": {k: v for k, v in environment["versions"].items() if k in ("torch", "lightning")},
        "commit": environment["git_commit"],
        "command": " ".join([f"python benchmarks/{script}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def accuracies(row: dict[str, float], more: dict[str, float] | None = None) -> dict[str, float]:
    names = {"knn20": "knn_top1", "linear": "linear_top1", "fewshot5": "fewshot_top1"}
    found = {**(more or {}), **{name: row[key] for name, key in names.items()}}
    return {name: round(value, 4) for name, value in found.items()}


@torch.no_grad()
def neighbors(module: Any, data: SSLDataModule, device: torch.device) -> dict[str, float]:
    """The kNN accuracies of ``NEIGHBORS``, with every training image in the bank."""
    encoders = {"features": module.to(device).eval().embed}
    parts = {
        split: extract_features(encoders, data, split, device)["features"]
        for split in ("bank", "val", "test")
    }  # type: ignore[arg-type]
    bank, labels = (torch.cat([parts["bank"][i], parts["val"][i]]) for i in (0, 1))
    test, test_labels = parts["test"]
    assert data.num_classes is not None
    found = {}
    for name, (k, temperature) in NEIGHBORS.items():
        votes = knn_predict(test, bank, labels, data.num_classes, min(k, len(bank)), temperature)
        found[name] = top1(votes, test_labels)
    return found


def seconds_of_views(data: SSLDataModule, batch: int, device: torch.device, repeats: int = 20) -> float:
    """Median seconds of decoding, standardizing and viewing one batch that lies on the device."""
    raw = {k: v.to(device) for k, v in data.dataset("train").__getitems__(list(range(batch))).items()}  # type: ignore[attr-defined]
    generator = torch.Generator(device).manual_seed(0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        data.transform(raw, generator)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[repeats // 4 :])


def logged_median(folder: Path, tag: str) -> float | None:
    """Median of a curve in the run's TensorBoard events."""
    events = EventAccumulator(str(folder))
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return None
    return round(statistics.median(e.value for e in events.Scalars(tag)), 4)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(p.stem for p in (ROOT / "configs" / "cifar10").glob("*.yaml"))
    parser.add_argument("--data", type=Path, help="folder or archive of the images")
    parser.add_argument(
        "--methods", nargs="+", default=["simclr"], choices=known, metavar="NAME", help=", ".join(known)
    )
    parser.add_argument("--batch", type=int, default=CONFIG_BATCH)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, help="learning rate (default: the config's, scaled)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after an epoch when they are over"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--compile", action="store_true", help="train with --compile true")
    parser.add_argument("--runs", type=Path, default=RUNS, help="run folders")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "cifar10.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the table of --results")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="with --table: write it between the marks of this file"
    )
    args = parser.parse_args()
    for name, least in (("batch", 2), ("epochs", 1), ("minutes", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not args.table and args.data is None:
        parser.error("--data is missing: expected a folder with cifar-10-batches-py or with train/ and test/")
    return args


def main() -> int:
    args = parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes
    if args.table:
        if not args.results.is_file():
            refuse(f"{args.results} does not exist: no run has been finished yet")
        text = table(args.results.read_text(encoding="utf-8").splitlines())
        print(text)
        if args.readme:
            write_between_marks(args.readme, "cifar10", text)
        return 0
    silence_framework()
    args.runs.mkdir(parents=True, exist_ok=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    name, data = find_data(args.data, args.runs)
    recorded = set()
    if args.results.is_file():
        for line in args.results.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            recorded.add(tuple(row.get(k) for k in KEYS))
    unfinished = failed = 0
    for seed in args.seeds:
        for method in args.methods:
            if (name, method, args.batch, args.epochs, seed, args.compile, args.lr) in recorded:
                print(f"{method}: seed {seed} is in {args.results} already", flush=True)
                continue
            try:
                row = run(args, method, seed, name, data, deadline) if time.monotonic() < deadline else None
            except Exception:  # printed and counted; another method may need less memory, for example
                traceback.print_exc()
                failed += 1
                continue
            if row is None:
                unfinished += 1
                continue
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row, indent=2), flush=True)
    if unfinished:
        total = len(args.seeds) * len(args.methods)
        print(f"the minutes are over: {unfinished} of {total} runs are unfinished; repeat the command")
    return 1 if failed else UNFINISHED if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
