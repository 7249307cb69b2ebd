"""Log-mel spectrograms and back: closed values, a slow reference, and what a shift or a silence must do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from datamodules.audio import mel
from datamodules.audio.mel import FLOOR, MelScale, hz_to_mel, mel_matrix, resample, valid_frames

SCALE = MelScale(8000, 40, 25.0, 10.0)


def slow_log_mel(samples: np.ndarray, rate: int, mels: int, window: int, hop: int, size: int) -> np.ndarray:
    """Frame by frame and band by band, from the definitions."""
    frames = len(samples) // hop
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    corners = [700 * (10 ** (hz_to_mel(rate / 2) * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    out = np.zeros((mels, frames))
    for t in range(frames):
        start = t * hop + hop // 2 - window // 2
        energy = np.zeros(size // 2 + 1)
        piece = [samples[i] if 0 <= i < len(samples) else 0.0 for i in range(start, start + window)]
        energy = np.abs(np.fft.rfft(np.array(piece) * hann, size)) ** 2
        for m in range(mels):
            low, peak, high = corners[m : m + 3]
            total = 0.0
            for k, e in enumerate(energy):
                hz = k * rate / size
                total += e * max(0.0, min((hz - low) / (peak - low), (high - hz) / (high - peak)))
            out[m, t] = math.log(total + FLOOR)
    return out


def test_mel_scale_closed_values() -> None:
    assert hz_to_mel(0) == 0
    assert hz_to_mel(1000) == pytest.approx(1000, abs=0.02)
    assert hz_to_mel(700) == pytest.approx(2595 * math.log10(2))


def test_mel_matrix_is_a_partition() -> None:
    matrix = mel_matrix(40, 2048, 8000)
    hz = torch.arange(1025) * 8000 / 2048
    between = (hz > 700 * (10 ** (hz_to_mel(4000) / 41 / 2595) - 1)) & (
        hz < 700 * (10 ** (hz_to_mel(4000) * 40 / 41 / 2595) - 1)
    )
    torch.testing.assert_close(matrix.sum(0)[between], torch.ones(int(between.sum())), rtol=0, atol=1e-5)
    assert matrix.min() == 0 and matrix.max() <= 1


@pytest.mark.parametrize(("mels", "size", "rate"), [(40, 256, 8000), (80, 1024, 22050), (128, 2048, 16000)])
def test_mel_matrix_is_that_of_transformers(mels: int, size: int, rate: int) -> None:
    reference = pytest.importorskip("transformers.audio_utils").mel_filter_bank(
        size // 2 + 1, mels, 0.0, rate / 2, rate, norm=None, mel_scale="htk"
    )
    torch.testing.assert_close(
        mel_matrix(mels, size, rate), torch.from_numpy(reference.T).float(), rtol=0, atol=1e-5
    )


def test_log_mel_against_a_slow_reference() -> None:
    samples = np.random.default_rng(0).standard_normal(800) * 0.1
    expected = slow_log_mel(samples, 8000, 40, 200, 80, 256)
    got = SCALE.log_mel(torch.from_numpy(samples).float()[None])[0]
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=0, atol=2e-4)


def test_a_sine_is_loudest_in_its_band() -> None:
    time = torch.arange(8000) / 8000
    for hz in (400, 1000, 3000):
        band = SCALE.log_mel(torch.sin(2 * math.pi * hz * time)[None])[0, :, 50].argmax()
        assert abs(int(band) - (hz_to_mel(hz) / hz_to_mel(4000) * 41 - 1)) <= 1


def test_a_click_is_in_the_frame_of_its_time() -> None:
    """Frame t is centered on hop t, neither half a window earlier nor later."""
    samples = torch.zeros(1, 8000)
    samples[0, 40 * 80 + 40] = 1.0
    assert int(SCALE.log_mel(samples)[0].sum(0).argmax()) == 40


def test_silence_is_finite() -> None:
    silent = SCALE.log_mel(torch.zeros(2, 800))
    torch.testing.assert_close(silent, torch.full((2, 40, 10), math.log(FLOOR)))


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = torch.randn(5, 1600) * 0.1
    torch.testing.assert_close(SCALE.log_mel(samples)[3:4], SCALE.log_mel(samples[3:4]))
    monkeypatch.setattr(mel, "CPU_SAMPLES", 3200)  # two rows at once, and one that is left
    torch.testing.assert_close(SCALE.log_mel(samples)[3:], SCALE.log_mel(samples[3:]))
    assert SCALE.log_mel(samples).shape == (5, 40, 20)


def test_waveform_has_the_spectrogram_it_was_made_of() -> None:
    time = torch.arange(8000) / 8000
    samples = 0.3 * torch.sin(2 * math.pi * (500 * time + 400 * time.square()))[None]
    log_mel = SCALE.log_mel(samples)
    again = SCALE.waveform(log_mel)
    assert again.shape == samples.shape and again.abs().max() <= 1
    loud = log_mel > log_mel.max() - 6  # what is heard: the rest is Hann's side lobes

    def error(sound: torch.Tensor) -> float:
        return float((SCALE.log_mel(sound) - log_mel)[loud].abs().mean())

    assert error(again) < 0.65  # nats; a silent band beside the tone is hard to match
    assert error(again) < 0.6 * error(SCALE.waveform(log_mel, iterations=0))
    assert all(
        error(again) < error(again.roll(shift, 1)) for shift in (-80, -40, 40, 80)
    )  # at the right time, too


def test_resample_keeps_a_tone_and_drops_what_does_not_fit() -> None:
    time = np.arange(16000) / 16000
    low, high = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 6000 * time)
    got = resample(low + high, 16000, 8000)
    assert len(got) == 8000
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert (
        np.abs(got - expected)[100:-100].max() < 0.01
    )  # picking every second sample would leave 6 kHz as 2 kHz
    assert len(resample(low, 16000, 11025)) == 11025
    assert resample(low, 16000, 16000) is low


def test_valid_frames() -> None:
    x = torch.zeros(4, 1, 3, 6)
    x[0, :, :, :6] = 1
    x[1, :, :, :2] = 1
    x[2, 0, 1, :4] = 1  # one band is enough
    x[2, :, :, 1] = 0  # and a frame that happens to be the mean does not end the clip
    assert valid_frames(x).tolist() == [6, 2, 4, 0]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((0, 40, 25, 10), "sample_rate"),
        ((8000, 0, 25, 10), "num_mels"),
        ((8000, 40, 10, 10), "hop_ms"),
        ((8000, 200, 25, 10), "200"),
    ],
)
def test_bad_values_are_named(values: tuple[int, int, float, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MelScale(*values)
