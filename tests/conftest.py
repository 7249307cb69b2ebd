"""Configurations as objects, without files: every config of the project with synthetic data, small enough for
two CPU cores.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer, seed_everything

from datamodules.base import SSLDataModule
from datamodules.seeding import mix_seed
from runtime.command_line import CheckedCommandLine
from runtime.framework_messages import silence_framework
from runtime.messages import ROOT, config_files
from runtime.options import options_of
from sslmodules import methods
from sslmodules.base import SSLModule
from tests import gpu_checks

pytest.register_assert_rewrite("tests.faults", "tests.commands.calls", "tests.command_lines")
silence_framework()
TORCH_2_6 = torch.__version__.startswith("2.6.")  # the lowest version
torch.set_num_threads(1)  # two workers on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(gpu_checks)


def pytest_collection_finish() -> None:
    """Leave modules and the list of tests, which stay to the end, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


CONFIGS = [str(path.relative_to(ROOT)) for path in config_files()]


#: Options that no config has, and that two processes or a resumed run could get wrong: by name, the config
#: and what differs.
VARIANTS: dict[str, tuple[str, str]] = {
    "dino-free-last-layer": (
        "configs/digits/dino.yaml",
        "--model.freeze_last_layer_epochs 0 --model.final_weight_decay 0.1",
    ),
    "finetune-mean": (
        "configs/digits/finetune.yaml",
        "--model.ema 0.9 --model.class_weights [1,2,1,1,1,1,1,1,1,3] --model.label_smoothing 0.1 "
        "--model.layer_decay 0.7 --model.head attentive",
    ),
    "finetune-mixed": ("configs/digits/finetune.yaml", "--model.mixup 0.8 --model.cutmix 1.0"),
    "finetune-probe": ("configs/digits/finetune.yaml", "--model.freeze true"),
    "gan-hinge-accumulate": (
        "configs/digits/gan.yaml",
        "--model.loss hinge --model.accumulate 2 --model.encoder.norm layer",
    ),
    "gan-wgan_gp": (
        "configs/digits/gan.yaml",
        "--model.loss wgan_gp --model.discriminator_steps 2 --model.encoder.norm layer",
    ),
    "lejepa-local-views": (
        "configs/digits/lejepa.yaml",
        "--data.views DINOViews --data.views.size 8 --data.views.num_local 2",
    ),
    "mae-normalized": ("configs/digits/mae.yaml", "--model.normalize_target true"),
    "moco-groups": ("configs/digits/moco.yaml", "--model.batch_norm_groups 2"),
    "swav-queue": (
        "configs/digits/swav.yaml",
        "--model.queue_size 32 --model.queue_start_epoch 0 --model.freeze_prototypes_steps 0",
    ),
    "triplet-batch_hard": ("configs/digits/triplet.yaml", "--model.mining batch_hard"),
    "vicreg-local-views": (
        "configs/digits/vicreg.yaml",
        "--data.views DINOViews --data.views.size 8 --data.views.num_local 2",
    ),
}


@functools.cache
def parse(config: str, *options: str) -> CheckedCommandLine:
    config, more = VARIANTS.get(config, (config, ""))
    return CheckedCommandLine(["--config", str(ROOT / config), *shrunk(config), *more.split(), *options])


def shrunk(config: str) -> list[str]:
    """Options that make a config small without changing what it does: synthetic data, small images, fewer
    samples.
    """
    options = ["--data.synthetic", "true", "--data.batch_size", "16", "--data.num_workers", "0"]
    if config in ("configs/tones/apc.yaml", "configs/tones/hubert.yaml"):  # the third counts on 64 frames
        options += ["--data.seconds", "0.5"]
    if config.startswith("configs/fsdd"):
        options += ["--data.root", "unused"]
    if config.endswith("hubert.yaml"):
        options += ["--model.clusters", "8"]
    if config == "configs/cifar10/moco.yaml":  # whose 8 groups need 16 samples on each of two processes
        options += ["--model.batch_norm_groups", "4"]
    if "stem: cifar" in (ROOT / config).read_text():  # a step of a ResNet-18 takes seconds
        options += ["--model.encoder", "ConvEncoder", "--model.encoder.channels", "[8,16,32,512]"]
        if config.endswith("inpainting.yaml"):  # the mask is one channel more
            options += ["--model.encoder.in_channels", "4"]
    if config == "configs/imagenet/finetune.yaml":
        options += ["--model.num_classes", "10"]  # of the synthetic images
    if config.startswith(("configs/imagenet", "configs/folder", "configs/shards")):
        options += ["--data.root", "unused", "--data.image_size", "32"]
        text = (ROOT / config).read_text()
        parts = (".global_view1", ".global_view2", ".local_view") if "MultiCrop" in text else ("",)
        for part in parts:
            options += [f"--data.views{part}.size", "32"]
        if "ViTEncoder" in text:
            small: dict[str, object] = {"image_size": 32, "width": 48, "depth": 2, "heads": 3}
            if "IJEPAViews" in text or "MaskedMultiCrop" in text:  # whose blocks need 16 patches
                small["patch_size"] = 8
                options += ["--data.views.init_args.patch_size", "8"]
        elif "name: vit_" in text:
            small = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8}
        else:
            small = {"name": "resnet18"}
        options += [
            word
            for knob, value in small.items()
            for word in (f"--model.encoder.init_args.{knob}", str(value))
        ]
        if "num_local" in text:
            options += ["--data.views.init_args.num_local", "0"]
        # up to 65,536 in the papers
        for knob in ("projector_hidden", "projector_out", "num_prototypes", "predictor_width"):
            if knob in options_of(method_of(config)):
                options += [f"--model.{knob}", "64"]
    return options


def method_of(config: str) -> type[SSLModule]:
    """The class that a config trains."""
    return methods()[yaml.safe_load((ROOT / config).read_text())["model"]["class_path"]]


def build(config: str, *options: str, seed: int = 0) -> tuple[SSLModule, SSLDataModule]:
    """A method and its data from a config, freshly initialized."""
    cli = parse(config, *options)
    seed_everything(seed, verbose=False)
    built = cli.parser.instantiate(cli.config)
    return built.model, built.data


def batch_of(data: SSLDataModule, size: int = 16, draw: int = 0, split: Any = "train") -> dict[str, Any]:
    """A training batch with its views."""
    raw = data.dataset(split).__getitems__(list(range(size)))
    return dict(data.transform(raw, torch.Generator().manual_seed(mix_seed(draw))))


def trainer_for(folder: Path, **options: Any) -> Trainer:
    """A Trainer that writes only below ``folder`` and prints nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **options})


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of pytest's processes makes and all of them read. Tests that change it copy it.

    Args:
        factory: pytest's ``tmp_path_factory``.
        name: of the folder.
        make: creates the folder at the given path.
    """
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = factory.getbasetemp().parent if parallel else factory.getbasetemp()
    folder, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(folder)
            made.touch()
    return folder


#: Folders of configs whose data comes with the installation: there every method can be tried at once.
EMBEDDED = ("digits", "text", "tones")
#: In the default suite; the others, of the same methods on other data, with ``-m slow``.
COSTLY = [c if c.split("/")[1] in EMBEDDED else pytest.param(c, marks=pytest.mark.slow) for c in CONFIGS]


@pytest.fixture(autouse=True)
def nothing_of_a_launcher_stays() -> Iterator[None]:
    """Lightning's launcher leaves variables behind. A later run would take itself for one of several
    processes that somebody else has started, and wait for the others.
    """
    yield
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs in this process must not inherit from each other, and write nothing outside the test's folder."""
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.delenv("SSL_TRACEBACK", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=COSTLY)
def config(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[*COSTLY, *VARIANTS])
def setting(request: pytest.FixtureRequest) -> str:
    """A config, or one of ``VARIANTS``."""
    return request.param
