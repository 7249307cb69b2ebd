"""Clips on the device: padding, standardization on the training split alone, and what a checkpoint keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.audio.mel import PADDING, valid_frames
from datamodules.audio.module import ClipDataset, mean_log_mel, pad_clip
from datamodules.audio.tones import Tones


def clips_of(data: Tones, split: str) -> torch.Tensor:
    dataset = data.dataset(split)
    return dataset.__getitems__(list(range(len(dataset))))["input"]


def test_pad_clip() -> None:
    assert pad_clip(np.array([1, -32768, 3], np.int16), 5).tolist() == [1, -32767, 3, PADDING, PADDING]
    assert pad_clip(np.arange(5, dtype=np.int16), 3).tolist() == [0, 1, 2]


def test_padding_is_zero_and_sound_is_not() -> None:
    data = Tones(synthetic=True)
    raw = torch.full((3, data.clip_size), PADDING, dtype=torch.int16)
    raw[0] = 0  # silence is sound: it lasts
    raw[1, : 10 * 80 + 79] = 500  # ten frames, and an eleventh that is not whole
    x = data.transform({"input": raw}, None)["input"]
    assert valid_frames(x).tolist() == [100, 10, 0]
    assert (x[1, :, :, 10:] == 0).all() and (x[2] == 0).all()
    assert x.isfinite().all()


def test_standardized_over_the_training_split_only() -> None:
    data = Tones()
    x = data.transform({"input": clips_of(data, "train")}, None)["input"]
    valid = torch.arange(x.shape[3]) < valid_frames(x)[:, None]
    frames = x[:, 0].transpose(1, 2)[valid]
    torch.testing.assert_close(frames.mean(0), torch.zeros(40), rtol=0, atol=2e-3)
    torch.testing.assert_close(frames.std(0), torch.ones(40), rtol=0, atol=2e-3)
    other = Tones()
    other.dataset("test").clips[:] = 32767  # a louder test split changes nothing
    other.dataset("val").clips[:] = 32767
    other.decode(clips_of(other, "train")[:2])
    assert (other.mean, other.std) == (data.mean, data.std)


def test_unstandardize_is_the_inverse() -> None:
    data = Tones(synthetic=True)
    decoded = data.decode(clips_of(data, "val")[:4])
    torch.testing.assert_close(data.unstandardize(data.standardize(decoded)), decoded, rtol=1e-5, atol=1e-5)


def test_constants_are_kept_with_the_run() -> None:
    """In the hyper-parameters, from which eval.py rebuilds the data, and in the state, from which a run
    resumes.
    """
    data = Tones(synthetic=True)
    data.decode(clips_of(data, "train")[:2])
    rebuilt = Tones(synthetic=True, mean=data.hparams["mean"], std=data.hparams["std"])
    rebuilt._statistics = lambda: pytest.fail("computed again")  # type: ignore[method-assign]
    raw = clips_of(data, "val")[:4]
    assert torch.equal(rebuilt.standardize(rebuilt.decode(raw)), data.standardize(data.decode(raw)))
    resumed = Tones(synthetic=True)
    resumed.load_state_dict(data.state_dict())
    resumed._statistics = lambda: pytest.fail("computed again")  # type: ignore[method-assign]
    assert torch.equal(resumed.decode(raw), data.decode(raw))


def test_silent_training_clips_are_an_error() -> None:
    data = Tones()
    data._datasets = {"train": ClipDataset(np.zeros((4, data.clip_size), np.int16), np.zeros(4))}
    with pytest.raises(ValueError, match="silent"):
        data.decode(torch.zeros(1, data.clip_size, dtype=torch.int16))


def test_mean_log_mel_leaves_padding_out() -> None:
    x = torch.zeros(2, 1, 3, 5)
    x[0, 0, :, :2] = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(mean_log_mel(x), torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    assert list(Tones(synthetic=True).baselines()) == ["raw_input", "mean_log_mel"]


def test_tones_are_fixed_and_have_two_labels() -> None:
    one, two = Tones(), Tones(label="timbre")
    assert np.array_equal(one.dataset("train").clips, two.dataset("train").clips)
    assert (one.num_classes, two.num_classes) == (8, 3)
    assert np.bincount(one.dataset("test").labels).tolist() == [32] * 8
    assert set(two.dataset("test").labels) == {0, 1, 2}
    assert not np.array_equal(one.dataset("train").clips[:256], one.dataset("val").clips)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seconds": 0.01}, "seconds"),
        ({"mean": [0.0] * 40}, "both or neither"),
        ({"mean": [0.0] * 3, "std": [1.0] * 3}, "40 bands"),
        ({"mean": [0.0] * 40, "std": [0.0] * 40}, "positive"),
        ({"label": "color"}, "contour, timbre"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Tones(**options)  # type: ignore[arg-type]
