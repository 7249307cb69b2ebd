"""What ends in one line and what keeps its traceback: decided by the class of the exception, not by when it
is raised.

``ConfigError`` (invalid input) and ``DataFileError`` (files) are shortened wherever and whenever they are
raised, also in a data-loading worker. An error in the code never is.
"""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

import eval as evaluation_script
import train
from datamodules.errors import ConfigError, DataFileError, ImageFileError, readable
from datamodules.images.arrays import Digits
from datamodules.images.module import ArrayDataset
from runtime.callbacks import Throughput
from runtime.messages import ROOT
from sslmodules import SimCLR
from tests.errors import DIGITS, Capture, Patch, error_of

pytestmark = pytest.mark.usefixtures("clean_environment")

LATE = 5  # a step of the second epoch


# ---- by class, in every place ------------------------------------------------------------------------------


def in_losses(patch: Patch, happens: Callable[[], Any], step: int = 0) -> list[str]:
    original = SimCLR.losses

    def losses(self: SimCLR, batch: Any) -> Any:
        if self.global_step == step:
            happens()
        return original(self, batch)

    patch.setattr(SimCLR, "losses", losses)
    return []


def in_a_late_step(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    return in_losses(patch, happens, LATE)


def in_embed(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    patch.setattr(SimCLR, "embed", lambda self, x: happens())
    return []


def in_a_constructor(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    original = SimCLR.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        happens()

    patch.setattr(SimCLR, "__init__", __init__)
    return []


def in_a_callback(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    patch.setattr(Throughput, "on_train_epoch_start", lambda *args: happens())
    return []


def in_setup(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    patch.setattr(Digits, "prepare_data", lambda self: happens())
    return []


def in_the_dataset(patch: Patch, happens: Callable[[], Any], workers: int = 0) -> list[str]:
    original, calls = ArrayDataset.__getitems__, []

    def getitems(self: ArrayDataset, indices: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the first call is the trial before training; a worker counts for itself
            happens()
        return original(self, indices)

    patch.setattr(ArrayDataset, "__getitems__", getitems)
    return ["--data.num_workers", str(workers)]


def in_a_worker(patch: Patch, happens: Callable[[], Any]) -> list[str]:
    return in_the_dataset(patch, happens, workers=1)


PLACES = [
    in_losses,
    in_a_late_step,
    in_embed,
    in_a_constructor,
    in_a_callback,
    in_setup,
    in_the_dataset,
    in_a_worker,
]


def pairs(one: Exception, other: Exception) -> list[Any]:
    """Each place with each error. In the default suite one error per place, in turn: the class decides, and
    the place must not.
    """
    found = []
    for number, place in enumerate(PLACES):
        for turn, error in enumerate((one, other)):
            marks = [] if number % 2 == turn else [pytest.mark.slow]
            found.append(pytest.param(place, error, id=f"{place.__name__}-{error!r}", marks=marks))
    return found


def raiser(error: Exception) -> Callable[[], NoReturn]:
    def happens() -> NoReturn:
        raise error

    return happens


@pytest.mark.parametrize(("place", "error"), pairs(ValueError("a slip"), OSError(2, "a slip")))
def test_an_error_in_the_code_keeps_its_traceback(
    place: Any, error: Exception, monkeypatch: Patch, capsys: Capture
) -> None:
    options = place(monkeypatch, raiser(error))
    with pytest.raises(type(error), match="a slip") as caught:
        train.main([*DIGITS, "--run_dir", "run", *options])
    lines = [entry.name for entry in caught.traceback]
    if place is in_a_worker:  # torch puts the worker's traceback into the message
        assert "in happens" in str(caught.value) and "Original Traceback" in str(caught.value)
    else:
        assert lines[-1] == "happens"
    note = "note: SimCLR.embed failed for 2 samples of Digits of shape (1, 8, 8), before training"
    assert error_of(capsys) == ([note] if place is in_embed else [])


@pytest.mark.parametrize(
    ("place", "error"),
    pairs(ConfigError("give it another way"), DataFileError("x.dat is damaged: fetch it again")),
)
def test_what_was_given_and_files_end_in_one_line(
    place: Any, error: Exception, monkeypatch: Patch, capsys: Capture
) -> None:
    options = place(monkeypatch, raiser(error))
    assert train.main([*DIGITS, "--run_dir", "run", *options]) == 2
    where = "model: " if place is in_a_constructor and isinstance(error, ConfigError) else ""
    assert error_of(capsys) == [f"error: {where}{error}"]


def test_lightnings_own_word_for_a_wrong_option_ends_in_one_line(monkeypatch: Patch, capsys: Capture) -> None:
    in_a_late_step(monkeypatch, raiser(MisconfigurationException("no such\nmonitor")))
    assert train.main([*DIGITS, "--run_dir", "run"]) == 2
    assert error_of(capsys) == ["error: no such monitor"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_traceback_can_be_asked_for(workers: str, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("SSL_TRACEBACK", "1")
    options = in_the_dataset(monkeypatch, raiser(DataFileError("x.dat is damaged")), int(workers))
    assert train.main([*DIGITS, "--run_dir", "run", *options]) == 2
    err = capsys.readouterr().err
    assert err.endswith("\nerror: x.dat is damaged\n") and "in happens" in err


def test_evaluation_follows_the_same_rule(monkeypatch: Patch, capsys: Capture) -> None:
    expected = "nowhere does not exist: expected a run folder or a checkpoint (RUN/checkpoints/last.ckpt)"
    assert evaluation_script.main(["probe", "nowhere"]) == 2
    assert error_of(capsys) == [f"error: {expected}"]
    monkeypatch.setenv("SSL_TRACEBACK", "1")
    assert evaluation_script.main(["probe", "nowhere"]) == 2
    assert error_of(capsys) == ["Traceback (most recent call last):", f"error: {expected}"]
    monkeypatch.delenv("SSL_TRACEBACK")
    monkeypatch.setattr("runtime.eval_main.checkpoint_of", lambda *args: raiser(ValueError("a slip"))())
    with pytest.raises(ValueError, match="a slip"):
        evaluation_script.main(["probe", "nowhere"])


# ---- the classes -------------------------------------------------------------------------------------------


class Failing(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, i: int) -> NoReturn:
        raise self.error

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [ConfigError, DataFileError, ImageFileError])
def test_class_and_message_survive_a_worker(kind: type[Exception]) -> None:
    message = f"a.png: it is empty. {kind.__name__}: twice"
    samples = iter(DataLoader(Failing(kind("a.png: it is empty")), num_workers=1))
    with pytest.raises(kind) as caught:
        next(samples)
    samples._shutdown_workers()  # at once: later, the garbage collector would wait for them
    assert type(caught.value) is kind and str(caught.value) == "a.png: it is empty"
    assert "in __getitem__" in str(caught.value.__cause__)
    assert str(kind(message)) == message and str(pickle.loads(pickle.dumps(kind(message)))) == message


def test_the_classes_are_of_the_builtin_kinds_and_import_nothing_heavy() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(DataFileError, OSError)
    code = "import sys, datamodules.checks, runtime.failures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_the_system_says_about_a_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataFileError) as caught, readable(tmp_path / "x"):
        (tmp_path / "x").read_bytes()
    assert str(caught.value) == f"{tmp_path / 'x'} cannot be read: No such file or directory"
    with pytest.raises(DataFileError, match="as it is"), readable("x"):
        raise DataFileError("as it is")


# ---- a constructor's own message, with its option in front -------------------------------------------------

RESNETS = (
    "resnet101, resnet152, resnet18, resnet34, resnet50, resnext101_32x8d, resnext101_64x4d, "
    "resnext50_32x4d, wide_resnet101_2, wide_resnet50_2"
)
#: (options, the whole line)
REFUSED = [
    ("--model.temperature -1", "model.temperature must be positive, got -1.0"),
    ("--model.warmup_epochs -2", "model.warmup_epochs must be at least 0, got -2.0"),
    ("--model.final_lr_factor 2", "model.final_lr_factor must be in [0, 1], got 2.0"),
    ("--model.projector_layers 0", "model.projector_layers must be at least 1, got 0"),
    ("--model.optimizer.lr -1", "model.optimizer: Invalid learning rate: -1.0"),
    ("--model.optimizer LARS --model.optimizer.lr -1", "model.optimizer.lr must be at least 0, got -1.0"),
    ("--model.encoder.in_channels 0", "model.encoder.in_channels must be at least 1, got 0"),
    (
        "--model.encoder ResNetEncoder --model.encoder.name resnet19",
        f"model.encoder.name must be one of torchvision's ResNets ({RESNETS}), got 'resnet19'",
    ),
    ("--data.batch_size 0", "data.batch_size must be at least 1, got 0"),
    ("--data.num_workers -1", "data.num_workers must be at least 0, got -1"),
    ("--data.views SimCLRViews --data.views.size 0", "data.views.size must be at least 1, got 0"),
    ("--data.views.view1.flip_p 2", "data.views.view1.flip_p must be in [0, 1], got 2.0"),
    ("--data.views.view2.flip_p 2", "data.views.view2.flip_p must be in [0, 1], got 2.0"),
    (
        "--trainer.callbacks+=OnlineLinearProbe --trainer.callbacks.lr=-1",
        "trainer.callbacks.lr must be positive, got -1.0",
    ),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=x --trainer.callbacks.mode=up",
        "trainer.callbacks: `mode` can be min, max, got up",
    ),
    (
        "--trainer.logger lightning.pytorch.loggers.WandbLogger",
        "trainer.logger: Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U "
        "'wandb>=0.12.10'`",
    ),
    ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches must be at least 1, got 0"),
    ("--trainer.log_every_n_steps 0", "--trainer.log_every_n_steps must be at least 1, got 0"),
    ("--trainer.gradient_clip_val -1", "--trainer.gradient_clip_val must be at least 0, got -1"),
    ("--save_every_n_steps 0", "save_every_n_steps must be positive, got 0"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED, ids=[options for options, _ in REFUSED])
def test_a_constructors_own_message_with_the_option_in_front(
    options: str, line: str, capsys: Capture
) -> None:
    assert train.main([*DIGITS, "--run_dir", "run", *options.split()]) == 2
    assert error_of(capsys) == [f"error: {line}"]


@pytest.mark.parametrize(
    ("in_channels", "line"),
    [
        (
            "3",
            "ConvEncoder does not accept samples of Digits of shape (1, 8, 8): its in_channels is 3; give "
            "--model.encoder.in_channels 1",
        ),
    ],
)
def test_an_encoder_that_declares_other_samples(in_channels: str, line: str, capsys: Capture) -> None:
    assert train.main([*DIGITS, "--run_dir", "run", "--model.encoder.in_channels", in_channels]) == 2
    assert error_of(capsys) == [f"error: {line}"]
    assert not Path("run").exists()


@pytest.mark.parametrize("in_channels", ["1", "2"])
def test_a_bug_is_not_blamed_on_the_encoder(in_channels: str, monkeypatch: Patch, capsys: Capture) -> None:
    """What ``embed`` hands the encoder are not the samples, so what it declares says nothing about them."""
    monkeypatch.setattr(SimCLR, "embed", lambda self, x: self.encoder(x.repeat(1, 3, 1, 1)))
    with pytest.raises(RuntimeError, match=f"to have {in_channels} channels, but got 3 channels instead"):
        train.main([*DIGITS, "--run_dir", "run", "--model.encoder.in_channels", in_channels])
    assert error_of(capsys) == [
        "note: SimCLR.embed failed for 2 samples of Digits of shape (1, 8, 8), before training"
    ]


def test_an_option_that_the_trainer_refuses(capsys: Capture) -> None:
    assert train.main([*DIGITS, "--run_dir", "run", "--trainer.accelerator", "foo"]) == 2
    (shown,) = error_of(capsys)
    start = "error: trainer: You selected an invalid accelerator name: `accelerator='foo'`. Available names"
    assert shown.startswith(start)
