"""Starts a run from existing weights: ``--init_from``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError, DataFileError
from datamodules.text.module import TextDataModule
from runtime.checkpoints import build_module, read_checkpoint
from runtime.discovery import public_name
from runtime.saved_run import checkpoint_of
from sslmodules.base import SSLModule
from sslmodules.networks import MomentumCopy

ENOUGH = 0.9
"""Share of the encoder's tensors that a source must contain."""

WEIGHTS = "model.safetensors"
"""The file of weights in a folder written by ``eval.py export``."""

State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights to start from.

    Attributes:
        path: the file with the weights.
        state: all tensors by name.
        encoder: the weights of the network behind the features; None if they can only be matched by name.
        method: the method that trained them; empty for a file with only weights.
        step: number of optimizer steps they were trained for, if known.
        vocabulary: vocabulary of their tokens, if they were trained on text.
    """

    path: Path
    state: State
    encoder: State | None = None
    method: str = ""
    step: int | None = None
    vocabulary: str | None = None


def read_weights(name: str) -> Weights:
    """Read the weights named by ``--init_from``; no code in the file is run.

    Args:
        name: a run folder, a checkpoint, a folder written by ``eval.py export``, a ``.safetensors`` file, or
            a state dict written by ``torch.save``, such as torchvision's and timm's.

    Raises:
        ConfigError, DataFileError: there is no such file, or it contains no weights.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        path = path / WEIGHTS if (path / WEIGHTS).is_file() else checkpoint_of(str(path))[0]
    if not name or not path.is_file():
        raise ConfigError(
            f"--init_from {name or repr(name)} does not exist: expected a run folder, a checkpoint, or a "
            "file of weights (.safetensors, .pth)"
        )
    if path.suffix == ".safetensors":
        return Weights(path, _safetensors(path))
    if path.suffix == ".ckpt":
        return _of_checkpoint(path, read_checkpoint(path))
    return _of_checkpoint(path, _torch_file(path))


def _of_checkpoint(path: Path, content: dict[str, Any]) -> Weights:
    state = _tensors(content)
    if not state:
        raise DataFileError(
            f"{path} contains no weights: expected tensors by name, or a 'state_dict' of them"
        )
    options = content.get("hyper_parameters")
    if not isinstance(options, dict) or "_class_path" not in options:
        return Weights(path, state)
    try:
        module = build_module(options)
        module.load_state_dict(content["state_dict"])
        encoder = dict(module.feature_encoder.published_state())
    except (DataFileError, RuntimeError):  # a network of the user: match by name
        encoder = None
    vocabulary = content.get("datamodule_hyper_parameters", {}).get("vocabulary")
    method = public_name(str(options["_class_path"])).rpartition(".")[2]
    return Weights(path, state, encoder, method, content.get("global_step"), vocabulary)


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataFileError(f"{path} is not a safetensors file, or is damaged ({error})") from None


def _torch_file(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many kinds, as in read_checkpoint
        raise DataFileError(
            f"{path} is not a file of weights, or contains more than tensors, which is not read: expected a "
            "state dict written by torch.save, or a .safetensors file"
        ) from None
    return content if isinstance(content, dict) else {}


def _tensors(content: dict[str, Any]) -> State:
    """Tensors by name, at the top of the file or under one of the usual keys."""
    for node in (content, *(content.get(key) for key in ("state_dict", "model", "teacher"))):
        if isinstance(node, dict):
            found = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if found:
                return found
    return {}


# ---- into a method -----------------------------------------------------------------------------------------


class Started(NamedTuple):
    """What a method loaded from a source, as stored in ``environment.json`` and ``results.json``.

    Attributes:
        part: what was loaded: the method, or its encoder.
        loaded: number of tensors.
        new: tensors of the part that start from random weights.
        left: what in the source was not used.
        others: other parts of the method, which start from random weights too.
    """

    source: str
    method: str
    step: int | None
    part: str
    loaded: int
    new: list[str]
    left: list[str]
    others: list[str]

    def line(self) -> str:
        """What was loaded, what is new, and what in the source was not used."""
        made_by = ", ".join([word for word in (self.method, self.step and f"step {self.step}") if word])
        total = self.loaded + len(self.new)
        text = f"{self.part}: {self.loaded} of {total} tensors from {self.source}"
        text += f" ({made_by})" if made_by else ""
        return f"{text}; new: {_few([*self.new, *self.others])}; left: {_few(self.left)}"


def _few(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + more


def start_from(module: SSLModule, source: Weights) -> Started:
    """Load the weights of a source into a method: all of them for the same method, else the encoder's.

    Momentum copies of the encoder start with the same weights.

    Raises:
        ConfigError: the source contains less than nine tenths of the encoder's tensors.
    """
    encoder = module.encoder
    mine = encoder.published_state()
    names = _names(mine, source)
    theirs = {name: source.state[names[name]] for name in names} if source.encoder is None else source.encoder
    fitting = {k: v for k, v in theirs.items() if k in mine and v.shape == mine[k].shape}
    if len(fitting) < ENOUGH * len(mine):
        raise ConfigError(_misfit(source, type(encoder).__name__, mine, theirs, len(fitting)))
    started = Started(str(source.path), source.method, source.step, source.method, 0, [], [], [])
    if source.method == type(module).__name__:
        own = module.state_dict()
        whole = {k: v for k, v in source.state.items() if k in own and v.shape == own[k].shape}
        module.load_state_dict(whole, strict=False)
        new, left_over = _without(own, whole), _without(source.state, whole)
        return started._replace(loaded=len(whole), new=new, left=left_over)
    encoder.load_published(fitting)
    for part in module.modules():
        if isinstance(part, MomentumCopy):
            for copied in part.net.modules():
                if type(copied) is type(encoder):
                    copied.load_state_dict(encoder.state_dict())
    now = encoder.published_state()  # without fixed values, such as positions
    taken = [k for k, v in fitting.items() if torch.equal(now[k].cpu(), v.to(now[k].dtype))]
    if source.encoder is None:
        left = _without(source.state, (names[k] for k in taken))
    else:
        left = _without(theirs, taken)
        left += sorted({k.partition(".")[0] for k in source.state} - {"encoder"})
    name = f"{type(encoder).__name__} (the encoder)"
    new, others = _without(mine, taken), _others(module)
    return started._replace(part=name, loaded=len(taken), new=new, left=left, others=others)


def _others(module: SSLModule) -> list[str]:
    """Parts of a method with a state, without the encoder and momentum copies."""
    copies = {name for name, part in module.named_children() if isinstance(part, MomentumCopy)}
    return _without(dict.fromkeys(key.partition(".")[0] for key in module.state_dict()), {"encoder", *copies})


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    gone = set(others)
    return [name for name in names if name not in gone]


def _names(mine: State, source: Weights) -> dict[str, str]:
    """The name of each tensor in the source, with the prefix that finds most, such as
    ``module.backbone.``.
    """
    prefixes = {""} | {key[: i + 1] for key in source.state for i, c in enumerate(key) if c == "."}
    found = {p: {name: p + name for name in mine if p + name in source.state} for p in sorted(prefixes)}
    return max(found.values(), key=len)


def _misfit(source: Weights, encoder: str, mine: State, theirs: State, fitting: int) -> str:
    absent = [f"{name} is missing" for name in mine if name not in theirs]
    shapes = {k: (tuple(theirs[k].shape), tuple(mine[k].shape)) for k in mine if k in theirs}
    differing = [f"{k} is {a} there, {b} here" for k, (a, b) in shapes.items() if a != b]
    wrong = [*differing, *absent]
    more = f"; ... ({len(wrong)} in all)" if len(wrong) > 3 else ""
    holds = f" It contains {_few(sorted(source.state))}." if len(absent) == len(mine) else ""
    return (
        f"--init_from {source.path} matches {fitting} of {len(mine)} tensors of {encoder}, but at least "
        f"{ENOUGH:.0%} are expected: {'; '.join(wrong[:3])}{more}.{holds} Give the options of "
        "--model.encoder that the weights were trained with"
    )


def give_vocabulary(data: SSLDataModule, vocabulary: str | None) -> None:
    """Give the data the vocabulary of the weights.

    Raises:
        ConfigError: the data was given another vocabulary.
    """
    if vocabulary is None or not isinstance(data, TextDataModule):
        return
    if data.vocabulary is not None and data.tokenizer.to_json() != vocabulary:
        raise ConfigError(
            "--data.vocabulary differs from the vocabulary of --init_from, for whose weights tokens would "
            "mean other words: leave it out"
        )
    data.vocabulary = vocabulary


def starting_point(folder: Path) -> dict[str, Any]:
    """``{"init_from": ...}`` from a run's ``environment.json``; empty if its initial weights were random."""
    try:
        content = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in content.items() if k == "init_from"} if isinstance(content, dict) else {}
