"""Generates samples with a trained method: images, text or audio.

All arguments are checked before anything is computed.
"""

from __future__ import annotations

import inspect
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from datamodules.audio.mel import PADDING
from datamodules.audio.module import AudioDataModule
from datamodules.audio.reading import read_clip
from datamodules.base import SSLDataModule
from datamodules.checks import check, check_within
from datamodules.errors import ConfigError, readable
from datamodules.images.decode import read_image
from datamodules.images.module import ImageDataModule
from datamodules.seeding import mix_seed
from datamodules.sequences.module import Fasta
from datamodules.text.module import TextDataModule
from evaluation.commands.base import Command, TrainedRun, say
from evaluation.commands.outputs import (
    BATCH,
    check_able,
    check_target,
    pixels_of,
    shown_images,
    write_arrays,
    write_picture,
    write_sound,
    write_text,
)
from sslmodules import SSLModule

GRID_LIMIT = 256
"""Maximum number of samples shown in the image of ``generate``; the array file contains all."""

PROMPT_LIMIT = 2**20
"""Maximum size of a prompt file in bytes."""


class GenerateCommand(Command):
    """generate RUN N: N new images, N more tokens of a text, or N more frames of a sound."""

    options: ClassVar = {
        "number": {"metavar": "N", "type": "int", "help": "number of images, tokens or frames"},
        "--prompt": {
            "metavar": "TEXT_OR_FILE",
            "help": "what to continue: a text or a file with it, an image (its upper half is kept), a clip",
        },
        "--temperature": {
            "metavar": "T",
            "type": "float",
            "help": "below 1 likelier, above 1 more varied (default: 1)",
        },
    }
    output = "samples.png and .npz, .txt or .wav in the run folder"
    overwrite = True

    def run(self, run: TrainedRun, given: Namespace) -> int:
        output = given.output or run.folder / f"samples{run.suffix}{ending(run.data)}"
        where = Target(output, given.overwrite, str(run.checkpoint))
        asked = Request(given.number, where, given.prompt, given.temperature, run.device)
        for line in generate(run.module, run.data, asked, run.seed):
            say(line)
        return 0


class Target(NamedTuple):
    """Where to write results."""

    path: Path  # with the extension ``ending(data)``
    overwrite: bool
    checkpoint: str  # source of the weights, stored in array files


class Request(NamedTuple):
    """What to generate."""

    number: int  # of images, of tokens to add to a text, of frames to add to a clip; at least 1
    target: Target
    prompt: str | None  # what to continue; None = nothing
    temperature: float | None  # None = 1
    device: torch.device  # where the method is


@torch.no_grad()
def generate(module: SSLModule, data: SSLDataModule, asked: Request, seed: int) -> Iterator[str]:
    """Generate data: images as a grid and arrays, or the continuation of a text or an audio clip.

    Args:
        module: in eval mode.
        data: the run's data set, to convert back to pixels or letters; its files are not read.
        asked: what to generate.
        seed: random seed.

    Yields:
        Lines for the terminal.

    Raises:
        ConfigError: a setting out of range, or one that the method or the data does not support.
    """
    check(asked.number >= 1, "N", "at least 1", asked.number)
    check_within(0, math.inf, "[)", **{"--temperature": asked.temperature})
    _, draw = _kind(data)
    torch.manual_seed(mix_seed(seed, 3))
    yield from draw(module, data, asked)


# ---- images ------------------------------------------------------------------------------------------------


def _images(module: SSLModule, data: ImageDataModule, asked: Request) -> Iterator[str]:
    """Write an image of the samples (at most ``GRID_LIMIT``) and an array file with all of them.

    The arrays are ``images`` (N, H, W, C) uint8 and ``labels`` (N,) of -1.
    """
    if asked.prompt is None:
        check_able(module, "sample", "generate")
    else:
        check_able(module, "complete", "--prompt")
    target = asked.target
    arrays = target.path.with_suffix(".npz")
    check_target(target.path, ".png", target.overwrite)
    check_target(arrays, ".npz", target.overwrite)
    options: dict[str, Any] = {}
    if asked.temperature is not None:
        if "temperature" not in inspect.signature(module.sample).parameters:
            raise ConfigError(f"--temperature: {type(module).__name__} has no temperature: leave it out")
        options["temperature"] = asked.temperature
    beginning = None if asked.prompt is None else _picture(asked.prompt, data).to(asked.device)
    parts: list[np.ndarray] = []
    for start in range(0, asked.number, BATCH):
        count = min(BATCH, asked.number - start)
        if beginning is None:
            samples = module.sample(count, **options)
        else:
            samples = module.complete(beginning.expand(count, -1, -1, -1), **options)
        if start == 0:
            first = samples
        elif asked.temperature != 0 and torch.equal(samples, first[: len(samples)]):
            raise ConfigError(
                f"{type(module).__name__}.sample returns the same samples in every call: it must draw new "
                "ones"
            )
        parts.append(pixels_of(shown_images(data, samples, module)))
    pixels = np.concatenate(parts)  # (N, H, W, C)
    tiles = torch.from_numpy(pixels[:GRID_LIMIT]).permute(0, 3, 1, 2)  # (n, C, H, W)
    enlarge = max(1, 64 // tiles.shape[-1])  # an integer factor keeps pixels square
    tiles = tiles.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    grid = make_grid(tiles, nrow=int(np.ceil(len(tiles) ** 0.5)), padding=2, pad_value=128)
    part = "" if asked.number <= GRID_LIMIT else f" (the first {GRID_LIMIT})"
    yield write_picture(target.path, grid.permute(1, 2, 0).numpy()) + part
    labels = np.full(asked.number, -1, np.int64)
    told = write_arrays(arrays, target.checkpoint, {"images": pixels, "labels": labels})
    yield f"{told}  images {pixels.shape} uint8"


def _picture(prompt: str, data: ImageDataModule) -> Tensor:
    """The largest center square of an image file, resized to the data's size: (1, C, H, W) standardized."""
    channels, height, width = data.image_shape
    if not Path(prompt).is_file():
        raise ConfigError(
            f"--prompt {prompt} is not a file: {type(data).__name__} needs an image, whose upper half is kept"
        )
    if height != width:
        raise ConfigError(
            f"--prompt reads square images, but images of {type(data).__name__} are {height}x{width}"
        )
    pixels = torch.from_numpy(read_image(prompt.encode(), height, channels, height).copy())[None].permute(
        0, 3, 1, 2
    )
    return data.standardize(data.decode(pixels))


# ---- text --------------------------------------------------------------------------------------------------


def _text(module: SSLModule, data: TextDataModule | Fasta, asked: Request) -> Iterator[str]:
    """Print and write the prompt and its continuation.

    Without a prompt, text begins on a new line, or with a random token if the data has no line breaks.
    """
    check_able(module, "extend", "generate")
    check_target(asked.target.path, ".txt", asked.target.overwrite)
    prompt = "\n" if asked.prompt is None else _words(asked.prompt)
    ids = data.encode(prompt)
    if asked.prompt is not None:
        if not ids:
            raise ConfigError(
                f"--prompt {_short(prompt)}: none of its characters are in the run's vocabulary"
            )
        if isinstance(data, TextDataModule) and (
            lost := data.tokenizer.count_unknown(prompt, np.asarray(ids))
        ):
            yield f"--prompt {_short(prompt)}: {lost} of its characters are not in the vocabulary"
    tokens = torch.tensor([ids], device=asked.device) if ids else (module.rand(1, 1) * data.vocab_size).long()
    temperature = 1.0 if asked.temperature is None else asked.temperature
    text = data.to_text(module.extend(tokens, asked.number, temperature)[0].cpu())
    yield text
    yield write_text(asked.target.path, text)


def _words(prompt: str) -> str:
    """The content of the file ``prompt``, or ``prompt`` itself if there is no such file."""
    try:
        is_file = Path(prompt).is_file()
    except OSError:  # too long for a file name
        is_file = False
    if not is_file:
        return prompt
    path = Path(prompt)
    if path.stat().st_size > PROMPT_LIMIT:
        raise ConfigError(f"--prompt {prompt} is larger than {PROMPT_LIMIT} bytes: give a shorter text")
    try:
        with readable(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt {prompt} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else f"{prompt[:40]}...")


# ---- audio -------------------------------------------------------------------------------------------------


def _sound(module: SSLModule, data: AudioDataModule, asked: Request) -> Iterator[str]:
    """Write a clip and the frames that follow it as a wav file, from its log-mel spectrogram (Griffin-Lim).

    The clip is the file ``prompt``, or else the first half of the first validation clip.
    """
    check_able(module, "continue_clip", "generate")
    if asked.temperature is not None:
        raise ConfigError(f"--temperature: {type(module).__name__} is deterministic: leave it out")
    check_target(asked.target.path, ".wav", asked.target.overwrite)
    if asked.prompt is None:
        samples = data.dataset("val").__getitems__([0])["input"][0].numpy()  # type: ignore[attr-defined]
        samples = samples[samples != PADDING]
        samples = samples[: max(len(samples) // 2, min(len(samples), 50 * data.scale.hop))]
    elif Path(asked.prompt).is_file():
        samples = read_clip(asked.prompt, data.scale.sample_rate)
    else:
        raise ConfigError(
            f"--prompt {asked.prompt} is not a file: {type(data).__name__} needs a wav or flac file"
        )
    x = data.spectrogram(torch.from_numpy(samples)[None].to(asked.device))
    if x.shape[3] == 0:
        raise ConfigError(f"--prompt {asked.prompt}: shorter than one frame of {data.scale.hop_ms:g} ms")
    whole = module.continue_clip(x, asked.number)
    if not whole.isfinite().all():
        raise ConfigError(f"{type(module).__name__} returned non-finite values: the checkpoint is unusable")
    sound = (data.waveform(whole)[0] * 32767).round().short().cpu().numpy()
    seconds = [n * data.scale.hop / data.scale.sample_rate for n in (x.shape[3], asked.number)]
    written = write_sound(asked.target.path, sound, data.scale.sample_rate)
    yield f"{written}  {seconds[0]:g} s given, {seconds[1]:g} s predicted"


# ---- kinds of data -----------------------------------------------------------------------------------------

KINDS: dict[type, tuple[str, Callable[[Any, Any, Request], Iterator[str]]]] = {
    ImageDataModule: (".png", _images),
    TextDataModule: (".txt", _text),
    Fasta: (".txt", _text),
    AudioDataModule: (".wav", _sound),
}
"""Data class -> extension of its file, and the function that generates and writes it."""


def _kind(data: SSLDataModule) -> tuple[str, Callable[[Any, Any, Request], Iterator[str]]]:
    for cls, kind in KINDS.items():
        if isinstance(data, cls):
            return kind
    raise ConfigError(f"generate cannot show samples of {type(data).__name__}")


def ending(data: SSLDataModule) -> str:
    """The extension of the file that ``generate`` writes for this data."""
    return _kind(data)[0]
