"""The base of audio data: fixed-length int16 clips, log-mel on the device.

Samples are loaded as int16 (S,) with ``PADDING`` after the end of the sound. After standardization, padding
frames are exactly 0 in every band (``valid_frames`` counts the others): neutral input to a network, and never
a target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio.mel import PADDING, MelScale, valid_frames
from datamodules.base import Padding, SSLDataModule
from datamodules.checks import check, check_one_of, check_positive
from datamodules.errors import ConfigError
from datamodules.samplers import SampleDataset
from datamodules.splits import SPLIT_SEED, Split

STATISTICS_CLIPS = 4096
"""Maximum number of training clips, a fixed choice, for computing mean and standard deviation."""


def pad_clip(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut int16 samples to ``size``, or fill them up to ``size`` with ``PADDING``."""
    clip = np.full(size, PADDING, np.int16)
    kept = np.maximum(samples[:size], -32767)  # the lowest int16 value is reserved for PADDING
    clip[: len(kept)] = kept
    return clip


def mean_log_mel(x: Tensor) -> Tensor:
    """Mean over valid frames of standardized log-mel (B, 1, M, T): (B, M)."""
    return x[:, 0].sum(2) / valid_frames(x).clamp(min=1)[:, None]  # padding frames are 0


class ClipDataset(SampleDataset):
    """Clips in memory.

    Args:
        clips: (N, S) int16 with ``PADDING`` after the end of a clip.
        labels: (N,) integers, -1 = unknown.
    """

    labels: np.ndarray

    def __init__(self, clips: np.ndarray, labels: np.ndarray) -> None:
        self.clips, self.labels = clips, labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, S) int16, "label": (B,) int64}``."""
        clips = torch.from_numpy(self.clips.take(indices, 0))
        return {"input": clips, "label": torch.from_numpy(self.labels.take(indices, 0))}


class AudioDataModule(SSLDataModule, ABC):
    """Base class of audio data sets: log-mel spectrograms on the device, standardized per band.

    A subclass sets the attributes and implements ``_load(split)``.

    Args:
        sample_rate: Hz; files are resampled to it.
        seconds: length of a clip; longer ones are cut at the end, shorter ones are padded.
        num_mels: number M of mel bands.
        window_ms: length of the window in milliseconds.
        hop_ms: step between frames in milliseconds.
        mean, std: per band, for standardization; default: computed once over the training split and stored in
            the checkpoint.

    Raises:
        ValueError: a value is out of its range.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        sample_rate: int = 16_000,
        seconds: float = 1.0,
        num_mels: int = 40,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scale = MelScale(sample_rate, num_mels, window_ms, hop_ms)
        self.frames = int(seconds * sample_rate / self.scale.hop + 1e-6)
        check(self.frames >= 2, "seconds", f"at least two frames of {hop_ms} ms", seconds)
        if (mean is None) != (std is None):
            raise ConfigError("mean and std belong together: give both or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None:
                check(len(values) == num_mels, name, f"one value for each of {num_mels} bands", values)
        check_positive(std=std)
        self.clip_size = self.frames * self.scale.hop
        self.mean, self.std = mean, std
        self._datasets: dict[str, Dataset] = {}
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def padding(self) -> Padding:
        return "frames"

    def dataset(self, split: Split) -> Dataset:
        """The samples of ``split``, read once and cached."""
        check_one_of(get_args(Split), split=split)
        if split not in self._datasets:
            self._datasets.update(self._synthetic() if self.synthetic else self._load(split))
        return self._datasets[split]

    @abstractmethod
    def _load(self, split: Split) -> dict[str, Dataset]:
        """Data sets by split; ``split`` must be among them."""

    def _synthetic(self) -> dict[str, Dataset]:
        """512 training clips, 256 for val and test: decaying noise of random length, one pitch per class."""
        rng = np.random.default_rng(SPLIT_SEED)
        time = np.arange(self.clip_size) / self.scale.sample_rate
        classes = self.num_classes or 1

        def make(n: int) -> ClipDataset:
            labels = np.arange(n) % classes
            pitch = self.scale.sample_rate / 8 * (1 + labels / classes)
            waves = np.sin(2 * np.pi * pitch[:, None] * time) + 0.5 * rng.standard_normal((n, self.clip_size))
            waves *= 4000 * np.exp(-3 * time)
            sizes = rng.integers(self.clip_size // 2, self.clip_size + 1, n)
            clips = np.stack(
                [pad_clip(w[:s].astype(np.int16), self.clip_size) for w, s in zip(waves, sizes, strict=True)]
            )
            return ClipDataset(clips, labels if self.num_classes else np.full(n, -1))

        train = make(512)
        return {"train": train, "bank": train, "val": make(256), "test": make(256)}

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {**super().baselines(), "mean_log_mel": mean_log_mel}

    # ---- on the device -------------------------------------------------------------------------------------

    def input_format(self) -> dict[str, Any]:
        names = ("sample_rate", "num_mels", "window_ms", "hop_ms")
        return {name: getattr(self.scale, name) for name in names} | {"mean": self.mean, "std": self.std}

    def log_mel(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """int16 (B, S) to log-mel (B, M, T) and a mask (B, T) of the frames without padding in their hop."""
        padding = raw == PADDING
        samples = raw.float().masked_fill(padding, 0) / 32768
        valid = ~padding.unflatten(1, (self.frames, self.scale.hop)).any(2)
        return self.scale.log_mel(samples), valid

    def decode(self, raw: Tensor) -> Tensor:
        """int16 (B, S) to log-mel (B, 1, M, T); padding frames get the mean (0 after ``standardize``)."""
        log_mel, valid = self.log_mel(raw)
        mean, _ = self._mean_std(raw.device)
        return torch.where(valid[:, None], log_mel, mean)[:, None]

    def standardize(self, decoded: Tensor) -> Tensor:
        """(B, 1, M, T) to zero mean and unit variance per band (over valid frames of the training split)."""
        mean, std = self._mean_std(decoded.device)
        if decoded.shape[2] != mean.shape[-2]:
            raise ConfigError(
                f"the spectrograms have {mean.shape[-2]} bands, but those of data.views have "
                f"{decoded.shape[2]}: give views that keep the size, or null"
            )
        return (decoded - mean) / std

    def unstandardize(self, x: Tensor) -> Tensor:
        """Inverse of ``standardize``: back to log-mel."""
        mean, std = self._mean_std(x.device)
        return x * std + mean

    def spectrogram(self, samples: Tensor) -> Tensor:
        """int16 audio (B, S) of any length to standardized log-mel (B, 1, M, S // hop), all frames valid."""
        whole = samples[:, : samples.shape[1] // self.scale.hop * self.scale.hop]
        if whole.shape[1] == 0:
            return torch.zeros(len(samples), 1, self.scale.num_mels, 0, device=samples.device)
        return self.standardize(self.scale.log_mel(whole.float() / 32768)[:, None])

    def waveform(self, x: Tensor) -> Tensor:
        """Standardized log-mel (B, 1, M, T) to audio (B, S) in [-1, 1], by ``MelScale.waveform``."""
        return self.scale.waveform(self.unstandardize(x.float())[:, 0])

    def _mean_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            if self.mean is None or self.std is None:
                self.mean, self.std = self._statistics()
                self.hparams["mean"], self.hparams["std"] = (
                    self.mean,
                    self.std,
                )  # so that every checkpoint contains them
            mean, std = torch.tensor([self.mean, self.std])[:, :, None].to(device)
            self._constants[device] = (mean, std)  # (M, 1) each
        return self._constants[device]

    def _statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band over the valid frames of the training split."""
        train = self.dataset("train")
        n = len(train)  # type: ignore[arg-type]
        chosen = np.sort(np.random.default_rng(SPLIT_SEED).permutation(n)[:STATISTICS_CLIPS])
        count = torch.zeros((), dtype=torch.float64)
        total = square = torch.zeros(self.scale.num_mels, dtype=torch.float64)
        for start in range(0, len(chosen), 256):
            raw = train.__getitems__(chosen[start : start + 256].tolist())["input"]  # type: ignore[attr-defined]
            log_mel, valid = self.log_mel(raw)
            log_mel = log_mel.double() * valid[:, None]
            count, total, square = (
                count + valid.sum(),
                total + log_mel.sum((0, 2)),
                square + log_mel.square().sum((0, 2)),
            )
        mean = total / count
        std = (square / count - mean.square()).clamp(min=0).sqrt()
        if not (count > 0 and std.min() > 1e-4):
            raise ConfigError(
                f"{type(self).__name__}: the training clips are silent or identical: nothing to learn"
            )
        return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]

    # ---- resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean, "std": self.std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self.mean, self.std = state.pop("mean"), state.pop("std")
        self._constants.clear()
        super().load_state_dict(state)
