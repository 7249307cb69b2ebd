"""The command line of ``train.py``: LightningCLI with strict names, short errors and a run folder."""

from __future__ import annotations

import re
import warnings
from enum import Enum
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from datamodules.base import SSLDataModule
from datamodules.checks import check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from evaluation.callbacks import FeatureProbe
from runtime import callback_lists, inside
from runtime.arguments import read_arguments
from runtime.callbacks import FiniteLoss, ProgressBar, Throughput
from runtime.checkpoints import AtomicCheckpointIO
from runtime.compiling import CompileEncoder
from runtime.constructors import own_words
from runtime.discovery import public_name, with_public_names
from runtime.folder import RunFolder
from runtime.lightning_internals import log_no_hyperparameters, resolved_config
from runtime.loggers import TensorBoardLogger, hyper_parameters
from runtime.names import look_for_mistakes
from runtime.saving import BestCheckpoint, Ending, LastCheckpoint
from runtime.stopping import Preemption
from runtime.trust import admit, denied_name, outside
from sslmodules.base import SSLModule


class SSLCommandLine(LightningCLI):
    """Parses, opens the run folder, and builds method, data and trainer; the caller trains.

    Args:
        args: the command line without the program's name.

    Raises:
        ConfigError: any invalid input; the message is one line.
    """

    def __init__(self, args: list[str]) -> None:
        self.run_folder: RunFolder
        self.given = given = read_arguments(args)
        for line in given.replaced():
            print(line)
        try:
            super().__init__(
                SSLModule,
                SSLDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                run=False,
                save_config_callback=None,  # the run folder stores the configuration, also across restarts
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                args=given.for_parser(),
            )
        except ArgumentError as error:
            look_for_mistakes(given.files, given.words)
            raise ConfigError(explain(error)) from None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str, default=None, help="The run folder; resumed if it contains a checkpoint."
        )
        parser.add_argument(
            "--evaluate", type=bool, default=True, help="Probe the features on the test split at the end."
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="Train with torch.compile of the encoder."
        )
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="Weights to start from: a run or a file."
        )
        parser.add_argument(
            "--disable_callbacks",
            type=str | list[str] | None,
            default=None,
            help="Names of the project's callbacks to turn off.",
        )
        parser.add_argument(
            "--save_every_n_steps", type=int | None, default=None, help="Also save every so many steps."
        )
        parser.add_argument(
            "--save_every_minutes", type=float | None, default=15.0, help="Also save this often."
        )
        parser.add_argument(
            "--save_in_background",
            type=bool,
            default=False,
            help="Continue training while a checkpoint is written.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with warnings.catch_warnings():
            # LightningCLI warns about arguments from Python besides those in sys.argv: here they are the same
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        try:
            admit(self.config)  # before anything is built
        except ConfigError:
            look_for_mistakes(self.given.files, self.given.words)  # names the file
            raise
        check_within(0, 2**32 - 1, seed_everything=self.config.seed_everything)

    def before_instantiate_classes(self) -> None:
        self.off = callback_lists.turned_off(self.config.disable_callbacks)
        self.config.trainer.callbacks = [
            spec for spec in self.config.trainer.callbacks if public_name(spec.class_path) not in self.off
        ]
        _name_enums(self.config.trainer)
        parsed = resolved_config(self)
        plain = with_public_names({k: v for k, v in parsed.items() if k not in ("config", "run_dir")})
        self.data_name, self.method_name = (
            plain[key]["class_path"].rsplit(".", 1)[-1] for key in ("data", "model")
        )
        self.run_folder = RunFolder.choose(self.config.run_dir, self.data_name, self.method_name)
        self.plain_config = plain
        wanted = plain["trainer"].get("enable_autolog_hparams", True)  # Lightning 2.5 has no such option
        self.hyper_parameters = hyper_parameters(plain) if wanted else {}
        check_trainer(plain["trainer"])

        inside.keep_inside(self.config.trainer, self.run_folder.path)

    def instantiate_classes(self) -> None:
        with own_words(self.plain_config):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = dict(self.config_init["trainer"])
        if config.get("logger") is None or config["logger"] is True:
            config["logger"] = TensorBoardLogger(str(self.run_folder.path))
        inside.check_loggers(_as_list(config["logger"]))
        inside.check_checkpoints(config["callbacks"], self.run_folder.path)
        log_no_hyperparameters(self.model, self.datamodule)  # runtime/loggers.py does it
        config["callbacks"] = self._with_every_runs_callbacks(config["callbacks"])
        if "ProgressBar" in self.off:
            config["enable_progress_bar"] = False
        writer = AtomicCheckpointIO()
        plugin = AsyncCheckpointIO(writer) if self.config.save_in_background else writer
        config["plugins"] = [*_as_list(config.get("plugins")), plugin]
        # torch has no synchronized batch norm on the CPU and would reject it
        on_gpus = torch.cuda.is_available() and config.get("accelerator") in ("auto", "gpu", "cuda")
        config["sync_batchnorm"] = config.get("sync_batchnorm", False) and on_gpus
        config["default_root_dir"] = str(self.run_folder.path)
        # one line about parameters is enough; `--trainer.enable_model_summary true` shows the table
        config["enable_model_summary"] = bool(config.get("enable_model_summary"))
        try:
            return Trainer(**{**config, **kwargs})
        except (TypeError, ValueError) as error:  # from options only: no data and no method yet
            raise ConfigError(f"trainer: {error}") from error

    def _with_every_runs_callbacks(self, listed: list[Callback]) -> list[Callback]:
        """The listed callbacks and those of every run, unless they are turned off or listed themselves.

        Raises:
            ConfigError: a checkpoint could not distinguish two of them.
        """
        self.ending = Ending()
        self.preemption = Preemption(
            self.run_folder.last, self.config.save_every_n_steps, self.config.save_every_minutes
        )
        probed = self.datamodule.num_classes is not None and any(isinstance(c, FeatureProbe) for c in listed)
        metric = ("val/linear_top1", "max") if probed else ("val/loss", "min")
        best = BestCheckpoint(*(self.model.best_metric or metric))
        own = [Throughput(), FiniteLoss(), best, LastCheckpoint(), self.preemption]
        if self.config.trainer.enable_progress_bar is not False and not any(
            isinstance(c, LightningProgressBar) for c in listed
        ):
            own.append(ProgressBar())
        if self.config.compile:
            own.append(CompileEncoder())
        given = {type(c) for c in listed}
        own = [c for c in own if type(c) not in given and type(c).__name__ not in self.off]
        callbacks = [*listed, *own, self.ending]
        callback_lists.check_state_keys(callbacks)
        # Lightning calls checkpoint callbacks in this order; each saves the states of those before it
        order = [Ending, BestCheckpoint, LastCheckpoint, Preemption]
        return sorted(callbacks, key=lambda c: order.index(type(c)) if type(c) in order else -1)


def _name_enums(node: Any) -> None:
    """Convert strings that are enums, such as a default of ``Timer``, to plain ones for YAML."""
    if isinstance(node, Namespace):
        for key, value in vars(node).items():
            if isinstance(value, str) and isinstance(value, Enum):
                setattr(node, key, value.value)
            _name_enums(value)
    elif isinstance(node, list):
        for item in node:
            _name_enums(item)


def check_trainer(options: dict[str, Any]) -> None:
    """Reject options that Lightning accepts but that would train nothing, never end, or fail at a step."""
    if options["max_epochs"] == -1 and options["max_steps"] == -1 and options["max_time"] is None:
        raise ConfigError(
            "--trainer.max_epochs -1 would never end: expected a number of epochs, --trainer.max_steps or "
            "max_time"
        )
    for name in ("limit_train_batches", "max_steps", "max_epochs"):
        if options[name] == 0:
            raise ConfigError(f"--trainer.{name} 0 leaves nothing to train: expected more than 0")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        check_at_least(1, **{f"--trainer.{name}": options[name]})
    check_at_least(0, **{"--trainer.gradient_clip_val": options["gradient_clip_val"]})
    check_at_least(-1, **{"--trainer.num_sanity_val_steps": options["num_sanity_val_steps"]})
    if isinstance(options["val_check_interval"], (int, float)):
        check_positive(**{"--trainer.val_check_interval": options["val_check_interval"]})
    if options["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"--trainer.accelerator {options['accelerator']}: there is no GPU here; use auto or cpu"
        )


class CheckedCommandLine(SSLCommandLine):
    """A command line that is parsed and admitted; nothing is built, and no folder is chosen."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def explain(error: BaseException) -> str:
    """One line for an exception: the option, what was expected, and what was given.

    The parser wraps the reason in a message per nesting level and union member; the innermost cause is the
    reason itself. Errors that are not the parser's contain their own advice.
    """
    root = error
    wrapped = isinstance(error, ArgumentError) or "Parser key" in str(error)
    while (
        wrapped
        and (inner := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None
    ):
        root = inner
    tried = str(root).startswith("File does not exist")  # the parser tried it as a file name
    if tried or isinstance(root, (KeyError, AttributeError, ImportError)):  # not the reason
        root = error
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', str(error))))
    if denied := denied_name(error):
        return outside(denied, ".".join(keys) or "the configuration")
    where = f"{'.'.join(keys)}: " if keys else ""
    innermost = str(error).rpartition("Parser key")[2]
    if keys and "Subtypes:" in innermost and "class_path" not in innermost:
        text = _union(innermost)
    else:
        text = re.sub(r'^(Parser key "[^"]+":\s*)+', "", str(root).strip())
        text = re.sub(r"\s*Given value type:.*", "", text, flags=re.DOTALL)
    text = re.sub(r"Expected an? (.+?)\. Got value: ?(.*)", r"expected \1, got \2", text)
    if text.startswith("Does not validate against any of the Union subtypes"):
        reasons = re.findall(r"[Ee]xpected .*?, (?:but )?got .*|No module named .*|cannot import .*", text)
        text = next(iter(reasons), text)
    if missing := re.search(r"the following arguments are required: (.+)", text):
        options = [f"--{'.'.join([*keys, name])}" for name in missing[1].split(", ")]
        return f"{' and '.join(options)} must be given"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    text = re.sub(r"NestedArg\(key='([^']*)', val=.*\)", r"an option '\1' of it", text)
    return where + " ".join(text.split())


def _union(text: str) -> str:
    """``expected A or B, got v`` from the parser's message about a value that fits no member of a union."""
    members = re.search(r"Subtypes: \[(.*?)\]\n", text, flags=re.DOTALL)
    value = re.search(r"Given value: (.*)", text)
    expected = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", members.group(1)) if members else "another type"
    return f"expected {expected}, got {value.group(1) if value else 'something else'}"
