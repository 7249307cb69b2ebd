"""One run: build, resume, train, evaluate."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.seeding import run_seed
from evaluation.attempts import Attempts
from evaluation.features import Means
from evaluation.kept import NAME as KEPT
from evaluation.overview import log_overview
from evaluation.report import assist, evaluate, foreseen_obstacles, is_complete
from evaluation.tables import print_report
from evaluation.team import Team
from runtime.checkpoints import evaluated_checkpoint, initial_module, load_module, read_checkpoint
from runtime.command_line import SSLCommandLine
from runtime.compiling import check_compiler
from runtime.failures import end_other_processes, is_first_failure
from runtime.files import write_json
from runtime.fit import check_fit, check_interval
from runtime.framework_messages import silence_framework
from runtime.initial_weights import Started, give_vocabulary, read_weights, start_from, starting_point
from runtime.lightning_internals import do_not_observe_processes
from runtime.loggers import CSVLogger, TensorBoardLogger, log_hyperparameters, log_results, show_charts
from runtime.monitors import check_monitors, declared
from runtime.peers import Watch, explain_lost_connection, leave_together
from runtime.saving import KeepConfig
from runtime.signals import LISTENED, Preempted, receiver


def run(argv: list[str]) -> int:
    """Train and evaluate according to the command line; returns the exit status."""
    silence_framework()
    alone = "RANK" not in os.environ and "LOCAL_RANK" not in os.environ and "SLURM_PROCID" not in os.environ
    if alone:  # otherwise all processes leave together, once they have found each other
        receiver.end_if_asked()
    cli = SSLCommandLine(argv)
    try:
        with ExitStack() as held:
            return _run(cli, held, alone)
    except Preempted:
        end_other_processes(cli.trainer, patience=30)
        raise
    except Exception as error:
        first = is_first_failure()
        try:
            if first:
                explain_lost_connection(error)
        finally:  # the first process has an error to print
            end_other_processes(cli.trainer, patience=0 if first else 10)
        if not first:
            return 1
        raise


def _run(cli: SSLCommandLine, held: ExitStack, alone: bool) -> int:
    trainer, module, data, folder = cli.trainer, cli.model, cli.datamodule, cli.run_folder
    say = rank_zero_only(partial(print, flush=True))
    trainer.callbacks.append(KeepConfig(cli.plain_config))  # type: ignore[attr-defined]
    held.enter_context(folder.in_use())
    resume = folder.inspect(cli.plain_config, cli.method_name)
    epochs, steps = (0, 0) if resume is None else folder.progress()
    if resume is not None:
        if finished := _finished(cli, epochs, steps):
            say(finished)
            return 0
        folder.check_weights(module)
    started = _begin(cli, resume is not None)
    data.prepare_data()
    if alone:
        receiver.end_if_asked()
    _check(cli)
    # only now, so that a run that cannot start leaves no folder behind
    folder.create(cli.plain_config, resume is not None, started and started._asdict())
    say(f"{cli.method_name} on {cli.data_name} in {folder.path}")
    if started is not None:
        say(started.line())
    for probe, reason in foreseen_obstacles(data).items() if cli.config.evaluate else ():
        say(f"the results will not include the {probe} probe: {reason}")
    if trainer.is_global_zero:
        data.save(folder.path)
    if resume is not None:
        say(f"resuming after epoch {epochs}, step {steps}")
        folder.forget()
    for logger in trainer.loggers:
        if isinstance(
            logger, (TensorBoardLogger, CSVLogger)
        ):  # also for a run killed before its first checkpoint
            logger.resume_at(steps)
    log_hyperparameters(trainer.loggers, cli.hyper_parameters)
    show_charts(trainer.loggers, declared(trainer.callbacks, module, data))  # type: ignore[attr-defined]
    if not _fit(cli, resume, held):
        say(f"interrupted; the same command with --run_dir {shlex.quote(str(folder.path))} resumes it")
        return 130
    cli.preemption.end_if_asked()
    if cli.ending.stopped:
        say(f"stopped early in step {trainer.global_step} ({cli.ending.stopped})")
    receiver.raises = LISTENED  # the weights are saved; the next start repeats the rest
    failed = False
    if cli.config.evaluate and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        failed = evaluate_run(cli)
    say(_where_things_are(folder.path))
    leave_together(trainer.world_size)
    return 1 if failed else 0


def _check(cli: SSLCommandLine) -> None:
    """Raise ConfigError if data, validation interval or monitored metrics do not fit the method."""
    trainer, module, data = cli.trainer, cli.model, cli.datamodule
    check_fit(module, data, trainer.world_size)
    check_interval(trainer, data)
    check_monitors(trainer.callbacks, module, data)  # type: ignore[attr-defined]
    if cli.config.compile:
        check_compiler(trainer.strategy.root_device)


def _fit(cli: SSLCommandLine, resume: Path | None, held: ExitStack) -> bool:
    """Train to the end; False if Ctrl-C ended it."""
    if "Preemption" in cli.off:  # nothing saves at a signal, so it ends the run at once
        receiver.raises = LISTENED
    do_not_observe_processes()
    watch = Watch(cli.trainer.strategy.launcher)
    watch.start()
    held.callback(watch.over.set)
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume)
    except SystemExit:  # raised by Lightning on Ctrl-C, after it has closed its loggers
        return False
    return True


def _begin(cli: SSLCommandLine, resumed: bool) -> Started | None:
    """Give a new run the weights of ``--init_from``, and the data the vocabulary of those weights."""
    if resumed:
        stored = cli.run_folder.content.get("datamodule_hyper_parameters", {})
        give_vocabulary(cli.datamodule, stored.get("vocabulary") if cli.config.init_from else None)
        return None
    if cli.config.init_from is None:
        return None
    source = read_weights(cli.config.init_from)
    give_vocabulary(cli.datamodule, source.vocabulary)
    return start_from(cli.model, source)


def _finished(cli: SSLCommandLine, epochs: int, steps: int) -> str | None:
    """One line if the run is trained and, if requested, evaluated; else None."""
    trainer, folder = cli.trainer, cli.run_folder
    stopped = folder.stopped()
    complete = epochs >= (trainer.max_epochs or 0) > 0 or steps >= trainer.max_steps > 0
    if not (complete or stopped) or not folder.is_validated():
        return None
    if cli.config.evaluate and not is_complete(folder.results):
        return None
    why = f", stopped early ({stopped})" if stopped else ""
    return f"{folder.path} is finished: {epochs} epochs, {steps} steps{why}. Results: {folder.results}"


def _where_things_are(folder: Path) -> str:
    where = shlex.quote(str(folder))
    lines = [f"run folder:   {where}"]
    if any(folder.rglob("events.out.tfevents.*")):
        lines.append(f"TensorBoard:  tensorboard --logdir {where}")
    command = "ssl-eval" if Path(sys.argv[0]).stem == "ssl-train" else "python eval.py"
    return "\n".join([*lines, f"evaluate:     {command} {where}"])


def evaluate_run(cli: SSLCommandLine) -> bool:
    """Evaluate the run: tables on the terminal, scalars in the loggers, ``results.json``.

    All ranks call it; rank 0 does what cannot be shared.

    Returns:
        Whether a part failed. The report names it; the other parts are complete.
    """
    trainer, module, seed = cli.trainer, cli.model, run_seed()
    untrained = initial_module({"hyper_parameters": dict(module.hparams), "seed": seed})
    file = evaluated_checkpoint(module, cli.run_folder.last)
    if isinstance(trainer.strategy, FSDPStrategy):  # this process has a part of the weights, the file all
        module = load_module(file)
    elif file != cli.run_folder.last:
        module.load_state_dict(read_checkpoint(file)["state_dict"])
    module.float()  # for `bf16-true` and `64-true`: samples are float32, as are eval.py's weights
    where, device, folder = str(file), trainer.strategy.root_device, cli.run_folder.path
    means = Means(Team(trainer.world_size > 1), str(trainer.precision), folder)
    if not trainer.is_global_zero:
        assist(module, untrained, cli.datamodule, device, means)
        return False
    kept = folder / f"{KEPT}.json"
    report = evaluate(
        module, untrained, cli.datamodule, where, device=device, seed=seed, means=means, kept=kept
    )
    report |= starting_point(folder)
    attempts = Attempts()
    with attempts.of("pictures of features"):
        log_overview(trainer, module.eval(), cli.datamodule, device)
    report["failed"] |= attempts.failed
    report["failed"] |= log_results(trainer.loggers, cli.hyper_parameters, report, trainer.global_step)
    print_report(report)
    write_json(cli.run_folder.results, report)  # last: it marks the run as finished
    kept.unlink(missing_ok=True)
    return bool(report["failed"])
