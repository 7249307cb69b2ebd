"""What every method must satisfy, tested with every config; a new YAML file is tested automatically."""

from __future__ import annotations

import gc
import inspect
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback

from evaluation.callbacks import FeatureProbe
from runtime.discovery import with_current_paths
from runtime.messages import ROOT, methods
from sslmodules import methods as classes
from tests.conftest import CONFIGS, EMBEDDED, VARIANTS, batch_of, build, method_of, trainer_for
from tests.contract import faults_of_learning, interaction, momentum_copies, resting, without_gradient
from tests.distributed import file_name, prepare, replay, validation_metrics

STEPS = 4
#: Their batch norm has statistics of each rank's own.
GROUPED = ("moco-groups", "configs/cifar10/moco.yaml")


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k]))]
    assert not different, f"differ: {different[:5]}"


def optimizer_of(module: Any) -> torch.optim.Optimizer:
    return module.optimizer(module.parameter_groups())


def few(module: Any) -> int:
    """Samples enough to learn from; of images as sequences of pixels each is hundreds of predictions."""
    return 8 if module.pixels is None else 2


def test_every_method_has_a_config_that_needs_no_download() -> None:
    """And the list made without importing torch is the list of the classes."""
    assert set(methods()) == set(classes())
    used = {method_of(config) for config in CONFIGS if config.split("/")[1] in EMBEDDED}
    assert used == set(classes().values())


@pytest.mark.parametrize("config", CONFIGS)
def test_no_value_repeats_a_default(config: str) -> None:
    """One knob, one home: the default stands in the code, the YAML holds differences."""

    def repeats(spec: Any, where: str) -> list[str]:
        found: list[str] = []
        if isinstance(spec, dict) and "class_path" in spec:
            resolved = find_class(spec["class_path"])
            ours = resolved.__module__.split(".")[0] in ("sslmodules", "datamodules", "evaluation")
            defaults = (
                {}
                if not ours
                else {  # a learning rate is always stated, whatever torch's default is
                    p.name: p.default
                    for c in resolved.__mro__
                    if "__init__" in vars(c)
                    for p in inspect.signature(c.__init__).parameters.values()
                }
            )
            for key, value in (spec.get("init_args") or {}).items():
                default = defaults.get(key, inspect.Parameter.empty)
                same = (
                    list(value) == list(default)
                    if isinstance(value, list) and isinstance(default, tuple)
                    else value == default
                )
                if same and type(value) is not dict:
                    found.append(f"{where}.{key}={value}")
                found += repeats(value, f"{where}.{key}")
        elif isinstance(spec, list):
            for i, value in enumerate(spec):
                found += repeats(value, f"{where}[{i}]")
        return found

    checked = with_current_paths(yaml.safe_load((ROOT / config).read_text()))
    shared = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())
    found = repeats(checked["model"], "model") + repeats(checked["data"], "data")
    found += [
        f"trainer.{k}" for k, v in checked.get("trainer", {}).items() if (k, v) in shared["trainer"].items()
    ]
    assert not found


def find_class(path: str) -> type:
    import importlib

    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_parameter_learns_and_is_in_one_group(config: str) -> None:
    module, data = build(config)
    batch = batch_of(data)
    optimizer = optimizer_of(module)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(map(id, trainable.values()))
    losses = module.losses(batch)
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    losses["loss"].backward()
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen
    module.zero_grad()
    assert not without_gradient(module, [batch_of(data, few(module), draw=draw) for draw in range(3)])


def test_a_teacher_follows_and_has_no_gradient(config: str) -> None:
    module, data = build(config)
    if not momentum_copies(module):
        pytest.skip("this method has no momentum copy")
    copied = [p for part in momentum_copies(module).values() for p in part.parameters()]
    assert copied and not any(p.requires_grad for p in copied)
    assert not resting(module, batch_of(data))
    assert all(p.grad is None for p in copied)


def test_couples_batch_tells_whether_neighbors_matter(setting: str) -> None:
    """In both directions: a loss that compares samples must declare it, and one that does not must not."""
    module, data = build(setting)
    assert (interaction(module, batch_of(data, few(module))) > 1e-6) == module.couples_batch


def test_embed(config: str) -> None:
    """Right shape, the same twice, no buffer touched, and no row that depends on another."""
    module, data = build(config)
    module.eval()
    x = batch_of(data)["input"]
    before = parameters(module)
    with torch.no_grad():
        h = module.embed(x)
        assert h.flatten(1).shape == (len(x), module.encoder.num_features)
        assert torch.equal(h, module.embed(x))
        torch.testing.assert_close(h[3:4], module.embed(x[3:4]), rtol=1e-4, atol=1e-5)
    assert_equal(before, parameters(module))


def test_labels_are_read_only_where_it_is_declared(config: str) -> None:
    module, data = build(config)
    batch = batch_of(data)
    state = parameters(module)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        module.load_state_dict(state)
        torch.manual_seed(0)  # of what the method itself draws
        return module.losses(batch)["loss"]

    first = loss(batch)
    if module.reads_labels:
        assert not torch.equal(first, loss({**batch, "label": batch["label"].flip(0)}))
        return
    second = loss({**batch, "label": batch["label"].flip(0) + 1})
    third = loss({k: v for k, v in batch.items() if k != "label"})
    assert torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.split("/")[1] in EMBEDDED])
def test_learns_from_one_batch(config: str) -> None:
    """The encoder has a part in it, the loss falls, and partners are of one sample.

    Of each method once, with the smallest of its configs: the steps are the test's own, and how far a wide
    network comes in them is not a property of the method.
    """
    module, data = build(config)
    if not module.automatic_optimization:
        pytest.skip("two networks play against each other, and their losses do not both fall")
    assert not faults_of_learning(module, batch_of(data, few(module)))


def test_bfloat16_step_is_finite(config: str) -> None:
    module, data = build(config)
    batch = batch_of(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.losses(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


class Record(Callback):
    """Keeps every step's loss, and saves checkpoints of the moments after some steps, as a kill leaves them.

    Args:
        files: of the checkpoints, by the number of steps made.
    """

    def __init__(self, files: dict[int, Path] | None = None) -> None:
        self.losses: list[float] = []
        self.inputs: list[torch.Tensor] = []
        self.files = files or {}

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        self.inputs.append(batch["input"].flatten(1).double().sum(1))
        if path := self.files.get(trainer.fit_loop.epoch_loop.batch_progress.total.processed):
            trainer.save_checkpoint(path)


#: Settings with more to restore than weights, or another kind of data; the others are resumed in the slow
#: suite.
OTHER_STATE = (
    *("finetune-mean", "finetune-mixed", "gan-hinge-accumulate", "moco-groups", "swav-queue"),
    *(f"configs/digits/{name}.yaml" for name in ("byol", "dino", "gan", "mae", "moco", "nnclr", "simclr")),
    *("configs/text/bert.yaml", "configs/text/gpt.yaml", "configs/tones/hubert.yaml"),
)


@pytest.mark.parametrize(
    "setting",
    [s if s in OTHER_STATE else pytest.param(s, marks=pytest.mark.slow) for s in (*CONFIGS, *VARIANTS)],
    indirect=True,
)
def test_resume_is_exact(setting: str, tmp_path: Path) -> None:
    """Rebuilt and resumed inside an epoch, or after its last batch, a run ends as the uninterrupted one:
    weights, optimizer, losses, samples, bit for bit. Nor does saving change it.
    """

    def fit(record: Record, checkpoint: Path | None = None) -> Any:
        module, data = build(setting)
        trainer = trainer_for(
            tmp_path,
            max_epochs=2,
            limit_train_batches=STEPS,
            limit_val_batches=2,
            callbacks=[record, FeatureProbe()],
            precision="32-true",
        )
        trainer.fit(module, data, ckpt_path=checkpoint)
        return module, trainer

    whole = Record()
    module, trainer = fit(whole)

    def assert_same_end(module_: Any, trainer_: Any, losses: list[float], inputs: list[torch.Tensor]) -> None:
        assert losses == whole.losses
        assert all(map(torch.equal, inputs, whole.inputs))
        assert_equal(parameters(module), parameters(module_))
        for a, b in zip(trainer.optimizers, trainer_.optimizers, strict=True):
            for one, two in zip(
                a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True
            ):
                assert_equal(one, two)
        for key in ("val/linear_top1", "val/knn_top1"):
            assert trainer_.callback_metrics.get(key) == trainer.callback_metrics.get(key)

    saving = Record({step: tmp_path / f"{step}.ckpt" for step in (STEPS - 1, STEPS)})
    assert_same_end(*fit(saving), saving.losses, saving.inputs)
    for step, path in saving.files.items():
        rest = Record()
        resumed = fit(rest, path)
        assert_same_end(*resumed, saving.losses[:step] + rest.losses, saving.inputs[:step] + rest.inputs)


def test_checkpoint_rebuilds_the_method(config: str, tmp_path: Path) -> None:
    """What train.py stores is enough for ``load_module``: the same features, bit for bit."""
    from runtime.checkpoints import initial_module, load_module, read_checkpoint
    from runtime.command_line import SSLCommandLine
    from tests.conftest import shrunk

    args = [
        "--config",
        str(ROOT / config),
        *shrunk(config),
        "--run_dir",
        str(tmp_path / "run"),
        "--trainer.accelerator",
        "cpu",
    ]
    args += [
        "--trainer.max_steps",
        "1",
        "--trainer.limit_val_batches",
        "0",
        "--trainer.enable_progress_bar",
        "false",
    ]
    os.environ.pop("SSL_RUN_DIR", None)
    cli = SSLCommandLine(args)
    os.environ.pop("SSL_RUN_DIR", None)
    at_start = parameters(cli.model)
    cli.trainer.fit(cli.model, cli.datamodule)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    loaded = load_module(path)
    x = batch_of(cli.datamodule)["input"]
    with torch.no_grad():
        assert torch.equal(loaded.embed(x), cli.model.eval().embed(x))
    # the random-init baseline is the network that this very run started from
    assert_equal(at_start, parameters(initial_module(read_checkpoint(path))))


def names_its_source(text: str) -> bool:
    """Authors, a year and a link to the paper or the code; or that it is unpublished."""
    published = re.search(r"\(\w.* (et al\. )?\d{4}", text) and re.search(r"https?://\S+\.\S+", text)
    return bool(published) or "Unpublished" in text


def test_a_method_without_a_paper_is_unpublished() -> None:
    assert names_its_source("RotNet (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728).")
    assert names_its_source("Ours (Doe 2031, https://example.org/ours).")
    assert names_its_source("Unpublished: the mean of two losses.")
    assert not names_its_source("The mean of two losses.")
    assert not names_its_source("RotNet (Gidaris et al. 2018).")


@pytest.mark.parametrize("cls", classes().values(), ids=classes())
def test_documentation_of_the_class(cls: type) -> None:
    """Where it comes from, a line for each option, and shapes in the file of the method."""
    text = inspect.getdoc(inspect.getmodule(cls)) or ""
    assert names_its_source(text)
    doc = inspect.getdoc(cls) or ""
    own = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "kwargs")]
    assert not [n for n in own if f"{n}:" not in doc]
    assert "(B, " in inspect.getsource(sys.modules[cls.__module__])


# ---- two processes against one -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def large_networks_are_freed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A method and its trainer refer to each other, so those of ImageNet would wait for a collection, by the
    gigabyte.
    """
    yield
    if "imagenet" in request.node.name:
        gc.collect()


@pytest.fixture(scope="session")
def two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs all asked configs in one pair of gloo processes (starting a pair per config would take most of the
    time).
    """
    asked = [
        i.callspec.params["setting"]
        for i in request.session.items
        if i.name.startswith("test_two_processes_equal_one")
    ]
    folder = tmp_path_factory.mktemp("ddp")
    for setting in asked:
        prepare(setting, folder)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(2):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with (folder / f"log-{rank}.txt").open("w") as log:
            command = [sys.executable, "-m", "tests.distributed", str(folder), *asked]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
            )
    for rank, process in enumerate(processes):
        status = process.wait(timeout=max(280, 30 * len(asked)))
        with (folder / f"log-{rank}.txt").open("a") as log:  # -9: perhaps killed for its memory
            log.write(f"exit status {status}\n")
    return folder


def test_two_processes_equal_one(setting: str, two_processes: Path) -> None:
    """Over three optimizer steps, two ranks with a batch each have the gradients of one process with the
    joined batch.
    """
    if setting in ("finetune-mixed", "configs/imagenet/finetune.yaml"):
        pytest.skip("mixes neighbors within the batch of a rank, as the published code does")
    ranks = []
    for rank in range(2):
        file = two_processes / f"{file_name(setting)}.{rank}.pt"
        assert file.is_file(), (two_processes / f"log-{rank}.txt").read_text()[-3000:]
        ranks.append(torch.load(file, weights_only=True))
    for step in range(3):
        one, two = (r["batches"][step] for r in ranks)
        assert not torch.equal(one["input"], two["input"]), "ranks saw the same samples"
    own = "running_" if setting in GROUPED else "nothing"  # DDP shares these before the next step
    assert_equal(*({k: v for k, v in rank["state"].items() if own not in k} for rank in ranks))
    alone = replay(setting, ranks, two_processes)
    for step in range(3):
        total = torch.sqrt(sum(g.square().sum() for g in alone["gradients"][step].values()))
        for key, expected in alone["gradients"][step].items():
            got = ranks[0]["gradients"][step][key]
            error = (got - expected).norm() / max(expected.norm(), 1e-3 * total)
            assert error < 1e-5, f"step {step}, {key}: {json.dumps(error.item())}"


def test_validation_counts_every_sample_once_over_two_ranks(two_processes: Path, tmp_path: Path) -> None:
    """1,077 bank samples on two ranks: padding would count one twice. The same accuracies and health as one
    process.
    """
    ranks = [torch.load(two_processes / f"validation.{rank}.pt", weights_only=True) for rank in range(2)]
    alone = validation_metrics(tmp_path)
    assert {"val/linear_top1", "val/knn_top1", "val/rankme", "val/uniformity"} <= alone.keys()
    assert ranks[0].keys() == ranks[1].keys() == alone.keys()
    for key in ("val/linear_top1", "val/knn_top1", "val/rankme", "val/uniformity", "val/feature_std"):
        assert ranks[0][key] == ranks[1][key]
        torch.testing.assert_close(ranks[0][key], alone[key], rtol=1e-4, atol=1e-6)


def test_ranks_draw_different_views(config: str) -> None:
    """Same samples, another rank: other views (masks with nothing random are the same everywhere)."""
    from datamodules.transforms.masks import CenterHole

    _, data = build(config)
    if data.views is None or isinstance(data.views, CenterHole):
        pytest.skip("nothing is drawn for this data")
    one, two = (batch_of(data, draw=rank) for rank in (0, 1))
    key = next(key for key in ("views", "mask", "corrupted") if key in one)
    first, second = (b[key][0] if key == "views" else b[key] for b in (one, two))
    assert not torch.equal(first, second)
