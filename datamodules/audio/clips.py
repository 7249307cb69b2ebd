"""Clips of audio files: the first part of each, or all parts of long ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.audio.module import ClipDataset, pad_clip
from datamodules.audio.reading import clip_length, read_clip
from datamodules.samplers import SampleDataset
from datamodules.seeding import mix_seed, run_seed


def nothing_in(samples: np.ndarray, hop: int) -> str:
    """Why a clip of samples (S,) is unusable, in words; "" if it is usable."""
    if len(samples) < hop:
        return "shorter than a frame"
    return "" if samples.any() else "silent"


class KeptClips(ClipDataset):
    """Clips in memory, with the files they come from in ``paths``."""

    def __init__(self, clips: np.ndarray, labels: np.ndarray, paths: list[str]) -> None:
        super().__init__(clips, labels)
        self.paths = paths


class FileClips(SampleDataset):
    """The first clip of each audio file, read on access (``read_clip``, ``pad_clip``).

    Args:
        paths: N files.
        labels: (N,) integers, -1 = unknown.
        sample_rate: Hz.
        clip_size: length of a clip in samples.
        hop: length of a frame in samples. A silent clip, or one shorter than a frame, becomes all
            ``PADDING`` and is reported once on stderr.
    """

    labels: np.ndarray

    def __init__(
        self, paths: list[str], labels: np.ndarray, sample_rate: int, clip_size: int, hop: int
    ) -> None:
        self.paths, self.labels = paths, labels.astype(np.int64)
        self.sample_rate, self.clip_size, self.hop = sample_rate, clip_size, hop
        self.without_sound = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # set by any worker

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, S) int16, "label": (B,) int64}``."""
        clips = np.stack([self._clip(i) for i in indices])
        return {"input": torch.from_numpy(clips), "label": torch.from_numpy(self.labels.take(indices, 0))}

    def start(self, i: int) -> int:
        """First sample of clip i in its file."""
        return 0

    def _clip(self, i: int) -> np.ndarray:
        samples = read_clip(self.paths[i], self.sample_rate, self.start(i), self.clip_size)
        if reason := nothing_in(samples, self.hop):
            samples = samples[:0]
            if not self.without_sound[i]:
                self.without_sound[i] = True
                count = int(self.without_sound.sum())
                print(
                    f"warning: {self.paths[i]} is {reason}: skipped, {count} so far",
                    file=sys.stderr,
                    flush=True,
                )
        return pad_clip(samples, self.clip_size)


class AllClips(FileClips):
    """Long files cut into consecutive clips; in training epochs, clips at random positions.

    A file gives as many samples as it has clip lengths, rounded, and at least one. Without ``random``, and
    before an epoch is set, sample j of a file is its j-th clip. In a training epoch it starts anywhere in the
    file where a whole clip fits: a pure function of (seed, epoch, index).

    Args:
        paths: files.
        labels: one per file, -1 = unknown.
        sample_rate, clip_size, hop: as for ``FileClips``.
        random: draw positions at random in training epochs.
    """

    def __init__(
        self,
        paths: list[str],
        labels: np.ndarray,
        sample_rate: int,
        clip_size: int,
        hop: int,
        random: bool = False,
    ) -> None:
        lengths = np.array([clip_length(path, sample_rate) for path in paths])
        counts = np.maximum(1, (lengths + clip_size // 2) // clip_size)
        file = np.repeat(np.arange(len(paths)), counts)
        super().__init__([paths[i] for i in file], labels[file], sample_rate, clip_size, hop)
        self.number = np.arange(len(file)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.free = np.maximum(0, lengths - clip_size)[file] + 1  # possible starts of a whole clip
        self.random, self.seed = random, run_seed()
        # shared with workers that outlive an epoch
        self.epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def start(self, i: int) -> int:
        epoch = int(self.epoch)
        if not self.random or epoch < 0:
            return int(self.number[i]) * self.clip_size
        return mix_seed(self.seed, epoch, i) % int(self.free[i])
