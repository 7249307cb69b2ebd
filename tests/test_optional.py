"""Optional methods: declared in the base classes, provided by defining them, and checked at the start."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from datamodules import Digits
from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from evaluation.samples import ImageGrid
from runtime.discovery import PACKAGES, ROOT
from runtime.fit import check_fit
from runtime.optional import check_optional, declared, offers
from sslmodules import methods
from sslmodules.base import SSLModule
from sslmodules.networks import ConvEncoder, Encoder
from tests.conftest import trainer_for


class Minimal(SSLModule):
    """A method with nothing but a loss."""

    def __init__(self) -> None:
        super().__init__(optimizer=torch.optim.Adam)
        self.encoder = ConvEncoder(1)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.encoder(batch["input"]).square().mean()}


class KeySampler(Minimal):
    """A helper has the name of an optional method."""

    def sample(self, keys: Tensor) -> Tensor:
        return keys[:1]


class Wider(Minimal):
    """Further arguments have defaults; they are the method's own."""

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        return torch.zeros(n, 1, 8, 8)


class Needy(Minimal):
    def sample(self, n: int, labels: Tensor) -> Tensor:
        return labels


class NoDefault(Minimal):
    def extend(self, tokens: Tensor, length: int, temperature: float, top_k: int) -> Tensor:
        return tokens


class Attribute(Minimal):
    """torch would look up the method, and not this layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fill = nn.Linear(2, 2)


class Sampled(Minimal):
    """A value where a method is expected."""

    sample = 3  # type: ignore[assignment]


class Listing(Digits):
    def files(self, folder: str) -> list[str]:  # type: ignore[override]
        return [folder]


REFUSED = {
    KeySampler: "KeySampler.sample(keys: Tensor) -> Tensor does not match the optional method "
    "SSLModule.sample(n: int) -> Tensor: take the same arguments, or rename it, for example _sample",
    Needy: "Needy.sample(n: int, labels: Tensor) -> Tensor does not match the optional method "
    "SSLModule.sample(n: int) -> Tensor: take the same arguments, or rename it, for example _sample",
    NoDefault: "NoDefault.extend(tokens: Tensor, length: int, temperature: float, top_k: int) -> Tensor does "
    "not match the optional method SSLModule.extend(tokens: Tensor, length: int, temperature: float = 1.0, "
    "top_k: int | None = None) -> Tensor: take the same arguments, or rename it, for example _extend",
    Attribute: "Attribute.fill is an attribute with the name of the optional method SSLModule.fill(batch: "
    "Batch) -> Tensor: rename it, for example _fill",
    Sampled: "Sampled.sample (not a method) does not match the optional method SSLModule.sample(n: int) -> "
    "Tensor: take the same arguments, or rename it, for example _sample",
}


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_does_not_fit_is_refused_before_training(cls: type[Minimal], tmp_path: Path) -> None:
    """From the command line (``check_fit``) and of a plain Trainer, before anything is drawn."""
    data = Digits(synthetic=True, batch_size=8)
    with pytest.raises(ConfigError) as refused:
        check_fit(cls(), data, world_size=1)
    assert str(refused.value) == REFUSED[cls]
    trainer = trainer_for(tmp_path, max_steps=1, callbacks=[ImageGrid()])
    with pytest.raises(ConfigError) as refused:
        trainer.fit(cls(), data)
    assert str(refused.value) == REFUSED[cls] and trainer.global_step == 0


def test_data_is_checked_too(tmp_path: Path) -> None:
    data = Listing(synthetic=True, batch_size=8)
    line = (
        "Listing.files(folder: str) -> list[str] does not match the optional method "
        "SSLDataModule.files(split: Split) -> list[str]: take the same arguments, or rename it, for example "
        "_files"
    )
    for start in (
        lambda: check_fit(Minimal(), data, world_size=1),
        lambda: trainer_for(tmp_path, max_steps=1).fit(Minimal(), data),
    ):
        with pytest.raises(ConfigError) as refused:
            start()
        assert str(refused.value) == line


def test_a_user_sees_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--model mine.KeySampler``: status 2, the line, and no run folder."""
    (tmp_path / "mine_optional.py").write_text(
        "from tests.test_optional import KeySampler as Base\n"
        "class KeySampler(Base):\n"
        "    def __init__(self, optimizer):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--model", "mine_optional.KeySampler", "--model.optimizer", "torch.optim.Adam"]
    options += ["--model.optimizer.lr", "0.1", "--data", "Digits", "--run_dir", "run"]
    assert train.main([*options, "--trust_config_classes", "mine_optional"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {REFUSED[KeySampler]}"
    assert not (tmp_path / "run").exists()


def test_offered_is_what_a_class_defines() -> None:
    check_optional(Wider())
    assert offers(Wider, "sample") and offers(Wider(), "sample")
    assert not offers(Minimal, "sample") and not offers(Minimal(), "sample")
    assert not offers(SSLModule, "sample")
    able = {}
    for name, cls in methods().items():
        able[name] = {power for _, power, _ in declared(cls) if offers(cls, power)}
    assert able["SimCLR"] == set()
    assert (
        able.items()
        >= {
            "APC": {"continue_clip"},
            "AudioMAE": {"fill"},
            "Autoencoder": {"reconstruct"},
            "BERT": {"to_transformers"},
            "GAN": {"sample"},
            "GPT": {"sample", "complete", "extend"},
            "Inpainting": {"reconstruct"},
            "MAE": {"reconstruct"},
            "VAE": {"sample", "interpolate", "reconstruct"},
        }.items()
    )
    with pytest.raises(NotImplementedError):
        Minimal().sample(1)


@pytest.mark.parametrize("base", [SSLModule, SSLDataModule, Encoder], ids=lambda cls: cls.__name__)
def test_every_declaration_is_documented(base: type) -> None:
    found = [method for _, _, method in declared(base)]
    assert found and all(method.__doc__ and "return" in method.__annotations__ for method in found)


def test_powers_are_not_probed_by_name() -> None:
    """Nothing asks ``hasattr`` or ``getattr`` for something that a base class declares."""
    names = {name for base in (SSLModule, SSLDataModule, Encoder) for _, name, _ in declared(base)}
    names |= {"num_classes", "class_names", "vocab_size", "pad_id", "characters_per_token", "max_unreadable"}
    names |= {"pixels", "in_channels", "in_features", "num_features", "latent_dim", "block", "set_epoch"}
    probes = {}
    for path in [*ROOT.glob("*.py"), *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
                probes[ast.unparse(node.args[1]).strip("'")] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert not {name: place for name, place in probes.items() if name in names}
