"""Synthetic melodies, an audio data set that needs no download."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datamodules.audio.module import AudioDataModule, ClipDataset, pad_clip
from datamodules.checks import check_one_of
from datamodules.splits import Split

TONES = {
    "contour": ("level", "rise", "fall", "arch", "valley", "vibrato", "tremolo", "jump"),
    "timbre": ("sine", "odd", "all"),
}
"""Classes of ``Tones`` by label."""


class Tones(AudioDataModule):
    """Synthetic melodies, no download: one second at 8 kHz, 1,024 train, 256 val and 256 test clips.

    Meant for first runs and tests, not for results. A tone of random pitch (150 to 600 Hz), loudness, length
    (0.4 to 0.9 s), start and background noise follows one of eight contours: constant, rising, falling,
    rising then falling, falling then rising, vibrato, tremolo, or jumping. Its timbre is one of three: sine,
    odd harmonics, all harmonics.

    Args:
        root: ignored, no file is read; accepted so that ``--data.root`` works with every data set.
        label: "contour" (eight classes) or "timbre" (three).
    """

    def __init__(
        self, root: str | None = None, label: str = "contour", sample_rate: int = 8_000, **kwargs: Any
    ) -> None:
        super().__init__(sample_rate=sample_rate, **kwargs)
        check_one_of(tuple(TONES), label=label)
        self.label = label
        self.class_names = TONES[label]
        self.num_classes = len(self.class_names)

    def _load(self, split: Split) -> dict[str, Dataset]:
        made = {
            name: self._make(n, seed)
            for name, n, seed in (("train", 1024, 1), ("val", 256, 2), ("test", 256, 3))
        }
        return {**made, "bank": made["train"]}

    def _make(self, n: int, seed: int) -> ClipDataset:
        rng, rate = (
            np.random.RandomState(seed),
            self.scale.sample_rate,
        )  # NumPy guarantees that its stream never changes
        contours, timbres = np.arange(n) % 8, rng.randint(0, 3, n)
        clips = np.empty((n, self.clip_size), np.int16)
        for row, (contour, timbre) in enumerate(zip(contours, timbres, strict=True)):
            pitch, loudness, length, lead, noise, depth = rng.uniform(
                (150, 0.1, 0.4, 0, 0.001, 0.8), (600, 0.5, 0.9, 0.1, 0.01, 1.5)
            )
            u = np.linspace(0, 1, int(length * rate))  # position in the melody, from start to end
            tremble = np.sin(2 * np.pi * 8 * length * u)
            octaves = (
                0 * u, depth * (u - 0.5), depth * (0.5 - u),
                depth * (0.5 - abs(2 * u - 1)), depth * (abs(2 * u - 1) - 0.5),
                0.2 * depth * tremble, 0 * u, depth * ((u > 0.5) - 0.5),
            )[contour]  # fmt: skip
            phase = 2 * np.pi * np.cumsum(pitch * 2**octaves) / rate
            harmonics = ((1,), (1, 3, 5), (1, 2, 3, 4, 5))[timbre]
            tone = sum(np.sin(k * phase) / k for k in harmonics)
            tone *= np.minimum(1, 20 * np.minimum(u, 1 - u))  # fade in and out, so that it does not click
            if contour == 6:
                tone *= 0.6 + 0.4 * tremble
            sound = noise * rng.standard_normal(int((lead + length) * rate))
            sound[len(sound) - len(u) :] += loudness * tone / np.abs(tone).max()
            clips[row] = pad_clip((sound * 32767).clip(-32767, 32767).astype(np.int16), self.clip_size)
        return ClipDataset(clips, contours if self.label == "contour" else timbres)
