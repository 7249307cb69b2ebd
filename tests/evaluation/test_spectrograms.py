"""Spectrograms and sound in loggers, and the wav file of eval.py --generate."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.audio.reading import read_clip
from evaluation.commands.generate import Request, Target, ending, generate
from evaluation.commands.outputs import write_sound
from evaluation.samples import HIDDEN, ImageGrid, Spectrograms, as_shown, spectrogram_image
from tests.conftest import build, trainer_for


def test_picture_has_high_frequencies_at_the_top() -> None:
    x = torch.zeros(2, 1, 3, 5)
    x[:, :, 2] = 1.0  # the highest band
    image = spectrogram_image([x, x], height=6)
    assert image.shape == (3, 2 * (3 + 2) * 2, 2 * (5 + 2) * 2)
    assert image[0, 2:4, 2:12].eq(1).all() and image[0, 4:8, 2:12].eq(0).all()
    assert image[0, :2].eq(1).all() and image[0, :, :2].eq(1).all()  # lines between


def test_titles_above_and_classes_left_of_the_picture() -> None:
    x = torch.rand(2, 1, 30, 50)
    plain, titles, names = spectrogram_image([x, x]), ["input", "filled"], ["rise", "fall"]
    image = spectrogram_image([x, x], titles=titles, names=names)
    top, left = image.shape[1] - plain.shape[1], image.shape[2] - plain.shape[2]
    assert top == 15 and left > 20
    torch.testing.assert_close(image[:, top:, left:], plain.expand(3, -1, -1), atol=1 / 255, rtol=0)
    middle = left + plain.shape[2] // 2
    for part in (image[:, :top, left:middle], image[:, :top, middle:], *image[:, top:, :left].chunk(2, 1)):
        assert part.min() < 0.5 and part.mean() > 0.7  # dark letters on white


def test_padding_is_black_hidden_patches_are_blue_and_neither_sets_the_range() -> None:
    _, data = build("configs/tones/apc.yaml")
    x = torch.randn(2, 1, 40, 100)
    x[1, :, :, 60:] = 0
    hidden = torch.zeros_like(x).bool()
    hidden[:, :, 8:16] = True  # of padding frames, too, which stay padding
    first, second = as_shown([x, x.masked_fill(hidden, float("nan"))], data)
    assert first[1, :, :, 60:].eq(float("-inf")).all() and second[1, :, :, 60:].eq(float("-inf")).all()
    assert first[0].isfinite().all() and torch.equal(second[0].isfinite(), ~hidden[0])
    torch.testing.assert_close(first[1, :, :, :60], data.unstandardize(x)[1, :, :, :60])
    image = spectrogram_image([first, second], height=40)
    assert image.shape == (3, 2 * 42, 2 * 102)
    assert image[0, 43:83, 61:101].eq(0).all() and image[0, 1:41, 1:101].mean() > 0.2
    patches = image[:, 1 + 40 - 16 : 1 + 40 - 8, 103:203]
    assert patches.eq(torch.tensor(HIDDEN)[:, None, None]).all()
    assert image[0, 43:83, 103 + 60 : 203].eq(0).all()  # padding, hidden or not
    assert spectrogram_image([torch.full((1, 1, 4, 5), float("-inf"))]).isfinite().all()


@pytest.mark.parametrize(
    ("config", "images", "sounds"),
    [
        ("configs/tones/apc.yaml", {"continuations"}, {"clip", "continued"}),
        ("configs/tones/audio_mae.yaml", {"spectrograms"}, set()),
        ("configs/digits/simclr.yaml", set(), set()),
    ],
)
def test_what_is_drawn(config: str, images: set[str], sounds: set[str], tmp_path: Path) -> None:
    module, data = build(config)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks: list[Any] = [Spectrograms()]
    if "tones" in config:
        callbacks.append(ImageGrid())  # which passes sound over
    few = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer_for(tmp_path, logger=logger, callbacks=callbacks, **few).fit(module, data)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["images"]) == images and set(events.Tags()["audio"]) == sounds
    if "spectrograms" in images:
        with Image.open(BytesIO(events.Images("spectrograms")[0].encoded_image_string)) as picture:
            pixels = np.asarray(picture).reshape(-1, 3)
        blue = (np.abs(pixels - 255 * np.array(HIDDEN)) <= 1).all(1)
        assert 0.1 < blue.mean() < 0.33  # most of the middle column


def test_write_sound_is_read_again(tmp_path: Path) -> None:
    samples = np.arange(-3000, 3000, dtype=np.int16)
    path = tmp_path / "a.wav"
    assert write_sound(path, samples, 8000) == f"written: {path}"
    assert np.array_equal(read_clip(str(path), 8000), samples)
    assert write_sound(path, samples, 8000) == f"replaced: {path}"


def test_generate_continues_a_clip(tmp_path: Path) -> None:
    module, data = build("configs/tones/apc.yaml")
    module.eval()
    assert ending(data) == ".wav"
    prompt = tmp_path / "prompt.wav"
    rng = np.random.default_rng(0)
    write_sound(prompt, rng.integers(-3000, 3000, 4050).astype(np.int16), 8000)
    out = tmp_path / "out.wav"
    asked = Request(30, Target(out, True, "x.ckpt"), str(prompt), None, torch.device("cpu"))
    lines = list(generate(module, data, asked, seed=0))
    assert lines == [f"written: {out}  0.5 s given, 0.3 s predicted"]
    assert len(read_clip(str(out), 8000)) == 80 * 80
    list(generate(module, data, asked._replace(prompt=None), seed=0))
    for options, word in (({"prompt": "nowhere.wav"}, "nowhere"), ({"temperature": 0.5}, "temperature")):
        with pytest.raises(ValueError, match=word):
            list(generate(module, data, asked._replace(**options), seed=0))  # type: ignore[arg-type]
    other, tones = build("configs/tones/audio_mae.yaml")
    with pytest.raises(ValueError, match="continue_clip"):
        list(generate(other, tones, asked, seed=0))
