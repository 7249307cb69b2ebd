"""Log-mel spectrograms of a batch, and their inversion by Griffin-Lim.

Frame t is centered on the middle of hop t, so S samples give exactly S / hop frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn import functional as F

from datamodules.checks import check_positive
from datamodules.errors import ConfigError

PADDING = -32768
"""Marks padding in an int16 clip; real samples are -32767 to 32767."""

FLOOR = 1e-6
"""Added to the energies (of samples in [-1, 1]) to avoid log(0): about that of 16-bit rounding noise."""

CPU_SAMPLES = 2**16
"""Approximate number of samples transformed at once on a CPU, so that their spectra stay in its cache: twice
as fast as 256 clips at once.
"""


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample (S,) float samples to ceil(S * new_rate / rate) samples.

    SciPy's polyphase filter removes the frequencies above the new Nyquist limit.
    """
    if rate == new_rate:
        return samples
    ratio = Fraction(new_rate, rate)
    return resample_poly(samples, ratio.numerator, ratio.denominator)


def hz_to_mel(hz: float) -> float:
    """Mel on the HTK scale, 2595 log10(1 + hz / 700): 1,000 Hz are 1,000 mel."""
    return 2595 * math.log10(1 + hz / 700)


def mel_matrix(num_mels: int, fft_size: int, sample_rate: int) -> Tensor:
    """Triangular filters of height 1 from 0 Hz to half the sample rate, with corners equally spaced in mel.

    Args:
        num_mels: M.
        fft_size: length of the Fourier transform in samples.
        sample_rate: Hz.

    Returns:
        (M, fft_size / 2 + 1) float32, which maps energies per frequency to energies per band. Neighboring
        filters sum to 1 between the first and the last peak.

    Raises:
        ValueError: there are so many bands that one of them contains no frequency.
    """
    top = hz_to_mel(sample_rate / 2)
    mels = torch.linspace(0, top, num_mels + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)  # Hz, (M + 2,)
    hz = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size
    low, peak, high = (c[:, None] for c in (corners[:-2], corners[1:-1], corners[2:]))
    matrix = torch.minimum((hz - low) / (peak - low), (high - hz) / (high - peak)).clamp(min=0)
    if not matrix.any(1).all():
        raise ConfigError(
            f"num_mels {num_mels}: some bands contain none of the {fft_size // 2 + 1} frequencies of a "
            f"window at {sample_rate} Hz: give fewer num_mels or a larger window_ms"
        )
    return matrix.float()


@dataclass
class MelScale:
    """Converts between audio samples and log-mel spectrograms.

    Args:
        sample_rate: Hz.
        num_mels: M bands.
        window_ms, hop_ms: length of the Hann window and step between frames, in milliseconds.

    Raises:
        ValueError: a value is out of its range.
    """

    sample_rate: int
    num_mels: int
    window_ms: float
    hop_ms: float
    _kept: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_positive(
            sample_rate=self.sample_rate, num_mels=self.num_mels, window_ms=self.window_ms, hop_ms=self.hop_ms
        )
        self.window, self.hop = (round(self.sample_rate * ms / 1000) for ms in (self.window_ms, self.hop_ms))
        if not 2 <= 2 * self.hop <= self.window:
            raise ConfigError(
                f"hop_ms must be at most half of window_ms and at least one sample, got hop_ms {self.hop_ms} "
                f"and window_ms {self.window_ms} at {self.sample_rate} Hz"
            )
        self.fft_size = 2 ** math.ceil(math.log2(self.window))
        self.matrix = mel_matrix(self.num_mels, self.fft_size, self.sample_rate)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._kept:  # cached: copying to a GPU in every step would make the CPU wait
            self._kept[device] = (torch.hann_window(self.window, device=device), self.matrix.to(device))
        return self._kept[device]

    def log_mel(self, samples: Tensor) -> Tensor:
        """Samples (B, S) in [-1, 1], S a multiple of the hop, to log mel energies (B, M, S / hop)."""
        rows = len(samples)
        if samples.device.type == "cpu":
            rows = CPU_SAMPLES // max(1, samples.shape[1])
        return torch.cat([self._log_mel(part) for part in samples.split(max(1, rows))])

    def _log_mel(self, samples: Tensor) -> Tensor:
        window, matrix = self._constants(samples.device)
        left = (self.fft_size - self.hop) // 2
        padded = F.pad(samples, (left, self.fft_size - self.hop - left))
        spectrum = torch.stft(
            padded, self.fft_size, self.hop, self.window, window, center=False, return_complex=True
        )
        return (matrix @ spectrum.abs().square() + FLOOR).log()

    def waveform(self, log_mel: Tensor, iterations: int = 60, seed: int = 0) -> Tensor:
        """Convert log-mel spectrograms to audio.

        Magnitudes come from the pseudo-inverse of the mel matrix, phases from Griffin and Lim's (1984)
        iteration, started at random.

        Args:
            log_mel: (B, M, T), T >= 2.
            iterations: number of phase updates.
            seed: seed of the initial phases.

        Returns:
            (B, T * hop) samples in [-1, 1].
        """
        window, matrix = self._constants(log_mel.device)
        energy = (log_mel.float().exp() - FLOOR).clamp(min=0)
        magnitude = (torch.linalg.pinv(matrix) @ energy).clamp(min=0).sqrt()  # (B, frequencies, T)
        generator = torch.Generator(log_mel.device).manual_seed(seed)
        phase = torch.rand(magnitude.shape, generator=generator, device=log_mel.device) * (2 * math.pi)
        spectrum = torch.polar(magnitude, phase)
        frames = magnitude.shape[2]
        for _ in range(iterations):
            samples = torch.istft(
                spectrum, self.fft_size, self.hop, self.window, window, length=(frames - 1) * self.hop
            )
            again = torch.stft(
                samples,
                self.fft_size,
                self.hop,
                self.window,
                window,
                pad_mode="constant",
                return_complex=True,
            )
            spectrum = torch.polar(magnitude, again.angle())
        samples = torch.istft(
            spectrum, self.fft_size, self.hop, self.window, window, length=(frames - 1) * self.hop
        )
        half = self.hop // 2  # a frame is centered on its hop, `istft` centers it on the start of the hop
        return F.pad(samples, (half, self.hop - half)).clamp(-1, 1)


def valid_frames(log_mel: Tensor) -> Tensor:
    """Number of valid frames of each clip. After standardization, padding frames are 0 in every band.

    Args:
        log_mel: (B, 1, M, T), a batch's ``input``.

    Returns:
        (B,) int64, 0 to T.
    """
    sound = (log_mel != 0).any(2).any(1)  # (B, T)
    return (sound * torch.arange(1, sound.shape[1] + 1, device=sound.device)).amax(1)
