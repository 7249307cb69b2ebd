"""Methods and data without the command line: a plain Trainer, and a custom loop."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import eval as eval_command
from datamodules import Digits, SimCLRViews
from datamodules.errors import ConfigError, DataFileError
from runtime.checkpoints import load_module
from runtime.construction import gaps
from runtime.discovery import exports, find_class, with_current_paths
from runtime.messages import ROOT
from sslmodules import BYOL, ConvEncoder, Encoder, SimCLR, WrappedEncoder
from tests.conftest import CONFIGS, EMBEDDED, build, trainer_for

PAGE = ROOT / "docs" / "plain_lightning.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
AT_HAND = [config for config in CONFIGS if config.split("/")[1] in EMBEDDED]


@pytest.mark.parametrize("block", BLOCKS, ids=["with a Trainer", "without"])
def test_the_page(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(block, str(PAGE), "exec"), names)
    if "trained" in names:
        assert len(block.splitlines()) <= 25
        assert names["h"].shape == (256, 128)
        assert torch.equal(names["h"], names["module"].cpu().eval().embed(names["x"]))
        assert names["trainer"].callback_metrics["val/linear_top1"] > 0.9
    else:
        assert top1_of(names) > 0.9


def top1_of(names: dict[str, Any]) -> float:
    votes = names["knn_predict"](names["test"], names["bank"], names["labels"], 10, k=20)
    return names["top1"](votes, names["truth"])


# ---- what a checkpoint records -----------------------------------------------------------------------------


def built_in_python(module: Any) -> Any:
    """The same object from constructors alone, as a script calls them."""
    recorded = {k: v for k, v in module.hparams.items() if not k.startswith("_")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(module), "arguments", instantiate=False)
    config = parser.parse_object({"arguments": with_current_paths(recorded)})
    arguments = vars(parser.instantiate(config).arguments)
    if "optimizer" in arguments:
        spec = with_current_paths(recorded["optimizer"])
        file, _, name = spec["class_path"].rpartition(".")
        arguments["optimizer"] = functools.partial(
            getattr(importlib.import_module(file), name), **spec["init_args"]
        )
    return type(module)(**arguments)


def public(name: str) -> str:
    """torch's optimizers go by two paths."""
    return re.sub(r"^torch\.optim\.\w+\.(\w+)$", r"torch.optim.\1", name)


def comparable(recorded: Any) -> Any:
    """Tuples as lists, one path for each class."""
    if isinstance(recorded, dict):
        plain = {k: comparable(v) for k, v in recorded.items() if k != "_instantiator"}
        return plain | {k: public(v) for k, v in plain.items() if k == "class_path"}
    return [comparable(item) for item in recorded] if isinstance(recorded, (list, tuple)) else recorded


#: In the default suite every third config: what is recorded does not depend on the method.
RECORDED = [c if i % 3 == 0 else pytest.param(c, marks=pytest.mark.slow) for i, c in enumerate(AT_HAND)]


@pytest.mark.parametrize("config", RECORDED)
def test_a_script_records_what_a_configuration_records(config: str) -> None:
    """So that `load_module` reads both; every network and transform of the project tells how it was built."""
    for one in build(config):
        again = built_in_python(one)
        assert not list(gaps(again.hparams))
        assert comparable(again.hparams) == comparable(one.hparams)


@pytest.mark.parametrize("config", AT_HAND)
def test_the_loggers_of_lightning_take_both_records(config: str) -> None:
    """Lightning refuses to log two values under one name."""
    module, data = build(config)
    both = {k for k in module.hparams if k in data.hparams and module.hparams[k] != data.hparams[k]}
    assert both <= {"_class_path"}


def trained(folder: Path, **arguments: Any) -> tuple[SimCLR, Path]:
    defaults: dict[str, Any] = {"encoder": ConvEncoder(in_channels=1, channels=(4, 8))}
    defaults["optimizer"] = functools.partial(torch.optim.SGD, lr=0.1)
    module = SimCLR(**{**defaults, **arguments})
    trainer = trainer_for(folder, max_steps=1, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(module, Digits(views=SimCLRViews(size=8), batch_size=16))
    return module.eval(), Path(trainer.checkpoint_callback.best_model_path)


def test_load_from_checkpoint(tmp_path: Path) -> None:
    module, path = trained(tmp_path, temperature=0.3)
    x = torch.randn(2, 1, 8, 8)
    loaded = SimCLR.load_from_checkpoint(path)
    assert torch.equal(loaded.embed(x), module.embed(x)) and loaded.temperature == 0.3
    with pytest.raises(DataFileError) as error:
        BYOL.load_from_checkpoint(path)
    assert str(error.value) == f"{path} contains SimCLR, not BYOL"


def test_a_checkpoint_is_evaluated_by_the_command(tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    target = tmp_path / "results.json"
    assert eval_command.main([str(path), "--probes", "knn", "--device", "cpu", "--output", str(target)]) == 0
    report = json.loads(target.read_text())
    assert (report["method"], report["data"]) == ("SimCLR", "Digits")
    assert report["results"].keys() == {"pretrained", "random_init", "raw_input"}


def test_an_optimizer_that_cannot_be_recorded(tmp_path: Path) -> None:
    module, path = trained(tmp_path, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    loaded = load_module(path)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.embed(x), module.embed(x))
    with pytest.raises(ConfigError) as error:
        loaded.configure_optimizers()
    assert str(error.value) == (
        "the checkpoint does not record its optimizer: set module.optimizer before training, for example to "
        "functools.partial(torch.optim.AdamW, lr=1e-3)"
    )


def test_a_network_that_cannot_be_recorded(tmp_path: Path) -> None:
    class Mine(Encoder):
        num_features = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(2, 1, 8, 8)
    wrapped = WrappedEncoder(network, num_features=5)
    for encoder, place, kind in (
        (wrapped, "encoder.net", "torch.nn.modules.container.Sequential"),
        (Mine(), "encoder", f"{__name__}.test_a_network_that_cannot_be_recorded.<locals>.Mine"),
    ):
        module, path = trained(tmp_path, encoder=encoder)
        with pytest.raises(DataFileError) as error:
            load_module(path)
        assert str(error.value) == (
            f"the checkpoint does not record how {place} was built ({kind}): give the object, "
            "load_module(PATH, encoder=...), or build SimCLR and use load_state_dict"
        )
        fresh = WrappedEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
        fresh = fresh if encoder is wrapped else Mine()
        assert torch.equal(load_module(path, encoder=fresh).embed(x), module.embed(x))


# ---- a loop of one's own -----------------------------------------------------------------------------------


def test_each_iteration_is_the_next_epoch() -> None:
    loader = Digits(batch_size=100).train_dataloader()

    def order() -> list[int]:
        return [int(image.sum()) for batch in loader for image in batch["input"]]

    epochs = [order() for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3 and len(epochs[0]) == 1000
    loader.sampler.set_epoch(1)
    assert order() == epochs[1] and order() == epochs[2]


def test_processes_of_a_loop_of_ones_own_share_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    seen: list[int] = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        data = Digits(batch_size=50)
        seen += list(data.train_dataloader().sampler)
        assert len(data.val_dataloader()[0].sampler) == 180
    assert len(seen) == len(set(seen)) == 1076


@pytest.mark.parametrize("config", [c for c in AT_HAND if not c.endswith("gan.yaml")])
def test_every_method_trains_without_a_trainer(config: str) -> None:
    module, data = build(config)
    optimizer = module.optimizer(module.parameter_groups())
    generator = torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    for _, raw in zip(range(2), data.train_dataloader(), strict=False):
        loss = module.losses(data.transform(raw, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.update_teacher()
    after = [p for p in module.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package",
    ["datamodules", "sslmodules", "evaluation", "datamodules.images", "datamodules.transforms"],
)
def test_public_names_of_a_package(package: str) -> None:
    module = importlib.import_module(package)
    names = exports(package)
    assert set(names) <= set(dir(module))
    for name in names:
        assert getattr(module, name).__module__ == names[name]
    with pytest.raises(AttributeError) as error:
        _ = module.NoSuchThing
    assert str(error.value) == f"module {package!r} has no attribute 'NoSuchThing'"


def test_names_that_a_script_needs() -> None:
    for package, wanted in {
        "datamodules": "Digits ImageFolder SimCLRViews TwoViews View",
        "sslmodules": "SimCLR ConvEncoder TimmEncoder load_module methods",
        "evaluation": "FeatureProbe CollapseMetrics evaluate fit_linear_probe knn_predict top1",
    }.items():
        names: dict[str, Any] = {}
        exec(f"from {package} import {', '.join(wanted.split())}", names)
        exec(f"from {package} import *", names)
        assert set(wanted.split()) <= names.keys()
    assert find_class("Digits") is Digits
