"""Probe a trained method, or use it: ``python eval.py RUN [--generate N | --restore ... | --features ... |
--export DIR]``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from datamodules.errors import ConfigError
from runtime.failures import finish
from runtime.messages import data_sets

EPILOG = """other data than the run's: --data NAME, and any option of it, such as --data.root DIR or --data.batch_size N.
An option that both data sets have keeps the run's value. Data sets: """
MORE = """. Results go to the run folder unless --output is given; a file is replaced only if it is an earlier result.
Examples: docs/using_what_was_trained.md"""


class Parser(argparse.ArgumentParser):
    """A wrong option is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python eval.py --help")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those that begin with ``--data``."""
    parser = Parser(
        prog="python eval.py",
        description="Without an option: linear probe, kNN and few-shot accuracy on the test split, beside a random encoder "
        "and the raw input. With --generate, --restore, --features or --export: files made with what was "
        "trained.",
        epilog=EPILOG + ", ".join(data_sets()) + MORE,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CKPT", help="a run folder (its last.ckpt) or a checkpoint")
    parser.add_argument("--probes", help="comma-separated, of linear, knn, fewshot (default: all)")
    use = parser.add_mutually_exclusive_group()
    use.add_argument(
        "--generate",
        metavar="N",
        type=int,
        help="N new images, a picture (--output, samples.png) and arrays (.npz), N more tokens of a text (samples.txt), or N "
        "more frames of a sound (samples.wav)",
    )
    use.add_argument(
        "--restore",
        metavar="PICTURES",
        type=Path,
        help="a picture or a folder of them: what is hidden or damaged filled in, in the folder --output (restored/)",
    )
    use.add_argument(
        "--features",
        metavar="FILE.npz",
        type=Path,
        help="features, labels and file names of the train, val and test samples",
    )
    use.add_argument(
        "--export",
        metavar="DIR",
        type=Path,
        help="a text network and its tokenizer, as AutoModel.from_pretrained loads them",
    )
    parser.add_argument(
        "--mask",
        metavar="PICTURE",
        type=Path,
        help="with --restore: white = hidden (default: what the run's own mask hides)",
    )
    parser.add_argument(
        "--truth",
        metavar="PICTURES",
        type=Path,
        help="with --restore: the undamaged pictures, same names, to measure PSNR",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT_OR_FILE",
        help="with --generate: the text, or a file with it, that is continued; a picture, whose upper half is kept; a sound",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        help="with --generate: below 1 likelier, above 1 more varied (default: 1)",
    )
    parser.add_argument(
        "--output", metavar="PATH", type=Path, help="where to write (default: results.json in the run folder)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--trust_config_classes",
        metavar="PACKAGE",
        default="",
        help="also build classes of this package that a checkpoint names",
    )
    own, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--data" or argument.startswith(("--data.", "--data=")):
            rest.append(argument)
            if "=" not in argument:
                rest.append(next(arguments, ""))
        else:
            own.append(argument)
    given = parser.parse_args(own)
    if (given.mask or given.truth) and not given.restore:
        raise ConfigError(
            f"{'--mask' if given.mask else '--truth'} belongs to --restore PICTURES, which is not given"
        )
    for option in ("prompt", "temperature"):
        if getattr(given, option) is not None and given.generate is None:
            raise ConfigError(f"--{option} belongs to --generate N, which is not given")
    if given.probes is not None and (
        given.generate is not None or given.restore or given.features or given.export
    ):
        raise ConfigError(
            "--probes is for probing: leave it out with --generate, --restore, --features and --export"
        )
    if (given.features or given.export) and given.output:
        raise ConfigError(
            f"{'--features' if given.features else '--export'} names the target already: leave --output out"
        )
    return given, rest


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import torch
    from rich.console import Console

    from evaluation.commands import generate as sampling
    from evaluation.commands import outputs
    from evaluation.commands.export import export
    from evaluation.commands.features import export_features
    from evaluation.commands.restore import restore
    from evaluation.probes import probes as known_probes
    from evaluation.report import evaluate
    from evaluation.tables import print_report
    from runtime.checkpoints import initial_module, load_module, read_checkpoint
    from runtime.command_line import trusted_packages
    from runtime.files import write_json
    from runtime.messages import did_you_mean
    from runtime.quiet import silence_framework
    from runtime.rebuild import build_data, checkpoint_of

    silence_framework()
    trusted_packages(
        ["--trust_config_classes", arguments.trust_config_classes] if arguments.trust_config_classes else []
    )
    PROBES = known_probes()
    probes = [
        p.strip()
        for p in (",".join(PROBES) if arguments.probes is None else arguments.probes).split(",")
        if p.strip()
    ]
    for probe in probes or [""]:
        if probe not in PROBES:
            raise ConfigError(
                f"--probes: unknown probe {probe!r}{did_you_mean(probe, PROBES)}; known: {', '.join(PROBES)}"
            )
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"--device {device}: expected auto, cpu or cuda, and cuda only where there is a GPU"
        )
    checkpoint, folder = checkpoint_of(arguments.run)
    content = read_checkpoint(checkpoint)
    data = build_data(dict(content.get("datamodule_hyper_parameters", {})), overrides)
    module = load_module(checkpoint)
    suffix = "" if checkpoint.stem == "last" else f"-{checkpoint.stem}"
    if overrides:
        suffix += f"-{type(data).__name__.lower()}"
    source, target, seed = str(checkpoint), arguments.output, content.get("seed", 0)
    lines = None
    if arguments.generate is not None:
        target = target or folder / f"samples{suffix}{sampling.ending(data)}"
        how = {"prompt": arguments.prompt, "temperature": arguments.temperature}
        lines = sampling.generate(
            module, data, arguments.generate, target, source, torch.device(device), seed, **how
        )
    elif arguments.restore:
        target = target or folder / f"restored{suffix}"
        options = {"mask": arguments.mask, "truth": arguments.truth, "seed": seed}
        lines = restore(module, data, arguments.restore, target, torch.device(device), **options)
    elif arguments.features:
        lines = export_features(module, data, arguments.features, source, torch.device(device))
    elif arguments.export:
        lines = export(module, data, arguments.export)
    if lines is not None:
        for line in lines:  # a name may hold bytes that no terminal can show
            print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
        return 0
    target = target or folder / f"results{suffix}.json"
    outputs.check_target(target)
    report = evaluate(module, initial_module(content), data, source, probes, device, seed=seed)
    told = "replaced" if target.exists() else "written"
    write_json(target, report)
    console = Console(soft_wrap=True)
    print_report(report, console)
    console.print(f"{told}: {target}")
    return 1 if report["failed"] else 0


def main(argv: list[str]) -> int:
    """Returns the exit status; a message of one line for whatever the user can mend."""
    try:
        arguments, overrides = parse(argv)
        return run(arguments, overrides)
    except Exception as error:
        return finish(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
