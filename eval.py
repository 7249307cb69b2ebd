"""Probe the frozen features of a trained method: ``python eval.py RUN_DIR_OR_CKPT [--data NAME --data.root DIR]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.catalogue import UserError, data_sets

if TYPE_CHECKING:
    from datamodules.base import SSLDataModule

EPILOG = """other data than the run's: --data NAME, and any option of it, such as --data.root DIR or --data.batch_size N.
An option that both data sets have keeps the run's value. Data sets: """


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those that begin with ``--data``."""
    parser = argparse.ArgumentParser(
        prog="python eval.py",
        description="Linear probe, kNN and few-shot accuracy on the test split, beside a random encoder and the raw input.",
        epilog=EPILOG + ", ".join(data_sets()),
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CKPT", help="a run folder (its last.ckpt) or a checkpoint")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write (default: results.json in the run folder)")
    parser.add_argument(
        "--probes", default="linear,knn,fewshot", help="comma-separated, of linear, knn, fewshot (default: all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    own, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--data" or argument.startswith(("--data.", "--data=")):
            rest.append(argument)
            if "=" not in argument:
                rest.append(next(arguments, ""))
        else:
            own.append(argument)
    return parser.parse_args(own), rest


def checkpoint_of(run: str) -> tuple[Path, Path]:
    """(checkpoint, run folder) of what the user named."""
    path = Path(run)
    if path.is_dir():
        checkpoint = path / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise UserError(f"{path} holds no checkpoints/last.ckpt: expected the folder of a run that train.py made")
        return checkpoint, path
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a run folder or a checkpoint (RUN/checkpoints/last.ckpt)")
    return path, path.parent.parent if path.parent.name == "checkpoints" else path.parent


def build_data(stored: dict[str, Any], overrides: list[str]) -> SSLDataModule:
    """The run's DataModule, or another one, from the checkpoint's options and the command line."""
    from jsonargparse import ArgumentError, ArgumentParser

    from datamodules.base import SSLDataModule
    from experiment.cli import explain
    from experiment.names import check_command_line, options_of, resolve

    class_path = stored.get("_class_path")
    chosen: dict[str, type | None] = {"data": resolve(class_path, SSLDataModule, "checkpoint") if class_path else None}
    overrides = check_command_line(overrides, chosen, [], [])
    cls = chosen["data"]
    if cls is None:
        raise UserError("the checkpoint names no data set: give --data NAME")
    shared = {k: v for k, v in stored.items() if k in options_of(cls)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SSLDataModule, "data")
    base = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": shared}
    try:
        config = parser.parse_args([f"--data={json.dumps(base)}", *overrides])
    except ArgumentError as error:
        raise UserError(explain(error)) from None
    return parser.instantiate(config).data


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import torch
    from rich.console import Console

    from evaluation.report import PROBES, evaluate, print_report, write_json
    from experiment.catalogue import did_you_mean
    from experiment.quiet import silence_framework
    from sslmodules import initial_module, load_module, read_checkpoint

    silence_framework()
    probes = [p.strip() for p in arguments.probes.split(",") if p.strip()]
    for probe in probes or [""]:
        if probe not in PROBES:
            raise UserError(f"--probes: unknown probe {probe!r}{did_you_mean(probe, PROBES)}; known: {', '.join(PROBES)}")
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: expected auto, cpu or cuda, and cuda only where there is a GPU")
    checkpoint, folder = checkpoint_of(arguments.run)
    content = read_checkpoint(checkpoint)
    data = build_data(dict(content.get("datamodule_hyper_parameters", {})), overrides)
    module = load_module(checkpoint)
    report = evaluate(module, initial_module(content), data, str(checkpoint), probes, device, seed=content.get("seed", 0))
    name = "results" if checkpoint.stem == "last" else f"results-{checkpoint.stem}"
    if overrides:
        name += f"-{report['data'].lower()}"
    output = arguments.output or folder / f"{name}.json"
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    write_json(output, report)
    console = Console(soft_wrap=True)
    print_report(report, console)
    console.print(f"written: {output}")


def main(argv: list[str]) -> int:
    """Returns the exit status; a message of one line for whatever the user can mend."""
    arguments, overrides = parse(argv)
    try:
        run(arguments, overrides)
    except (UserError, ValueError, OSError) as error:
        from experiment.cli import explain

        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
