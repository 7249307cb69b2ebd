"""Reads audio files, or parts of them, as int16 samples of one channel."""

from __future__ import annotations

import os
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from datamodules.audio.mel import resample
from datamodules.errors import DataFileError

try:
    import soundfile
except (ImportError, OSError):  # OSError: its C library is missing
    soundfile = None

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
"""Extensions of the supported files; all but the first need soundfile."""

DEEP = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
"""Sample types with a larger range than int16; their level is checked."""
LOUD, QUIET = 2.0, 2.0**-10
"""A ``DEEP`` file with a peak above the first is scaled to [-1, 1], with one below the second amplified."""
CANCELED = 1e-4
"""Channels cancel each other if their mean has less than this share of their energy."""

MARGIN = 64
"""Extra samples, at the lower of the two rates, with which resampling a part gives the same result as
resampling the whole file.
"""


class _PlainWave:
    """16-bit PCM wav read with the standard library, with the same interface as ``_SoundFile``."""

    subtype = "PCM_16"

    def __init__(self, path: str) -> None:
        if not path.lower().endswith(".wav"):
            raise ValueError(
                "only wav files can be read without the soundfile library: pip install 'lightning-ssl[audio]'"
            )
        self.file = wave.open(path, "rb")  # noqa: SIM115
        if (bits := 8 * self.file.getsampwidth()) != 16:
            self.file.close()
            raise ValueError(
                f"{bits}-bit samples need the soundfile library: pip install 'lightning-ssl[audio]'"
            )
        self.samplerate, self.frames = self.file.getframerate(), self.file.getnframes()
        self.seek, self.close = self.file.setpos, self.file.close

    def read(self, frames: int) -> np.ndarray:
        data, channels = self.file.readframes(frames), self.file.getnchannels()
        whole = len(data) // (2 * channels) * channels
        samples = np.frombuffer(data, "<i2", count=whole).reshape(-1, channels)
        return samples.astype(np.float32) / 32768


class _SoundFile:
    """A file read with soundfile, as float32 samples (S, channels)."""

    def __init__(self, path: str) -> None:
        self.file = soundfile.SoundFile(path)
        self.samplerate, self.frames, self.subtype = self.file.samplerate, self.file.frames, self.file.subtype
        self.seek, self.close = self.file.seek, self.file.close

    def read(self, frames: int) -> np.ndarray:
        return self.file.read(frames, dtype="float32", always_2d=True)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file; any error of its reader becomes one line that names the file."""
    try:
        _check_header(path)
        file = _PlainWave(path) if soundfile is None else _SoundFile(path)
        try:
            yield file
        finally:
            file.close()
    except DataFileError:
        raise
    except Exception as error:  # a damaged file can make the readers raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataFileError(f"cannot read audio file {path}: {reason}") from None


def _check_header(path: str) -> None:
    """Raise DataFileError if a wav file is shorter than its header states (0 or all ones: unknown)."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return
        size, place = os.fstat(file.fileno()).st_size, 12
        while place + 8 <= size:
            file.seek(place)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                if length < 2**32 - 2**16 and place + 8 + length > size:
                    raise DataFileError(
                        f"audio file {path} is truncated, with {size - place - 8} of the {length} bytes of "
                        "sound in its header: fetch it again"
                    )
                return
            place += 8 + length + length % 2


@lru_cache(maxsize=2**16)
def _gain(path: str) -> float:
    """Scaling factor for the samples of a file with more than 16 bits; 1 for most files.

    Raises:
        DataFileError: samples that are not finite.
    """
    peak = 0.0
    with _opened(path) as file:
        while len(samples := file.read(2**20)):
            peak = max(peak, float(np.abs(samples).max()))
            if not np.isfinite(samples).all():
                raise DataFileError(f"audio file {path} contains non-finite samples: remove or repair it")
    if peak > LOUD:
        return 1 / 32768 if peak <= 32768 else 1 / 2**31
    return 2.0 ** np.floor(np.log2(0.25 / peak)) if 0 < peak < QUIET else 1.0


def mono(samples: np.ndarray) -> np.ndarray:
    """(S, channels) -> (S,): the mean of the channels, or, if they cancel each other, the first."""
    mean = samples.mean(1)
    if samples.shape[1] > 1 and np.square(mean).sum() < CANCELED * np.square(samples).mean(1).sum():
        return samples[:, 0]
    return mean


def clip_length(path: str, sample_rate: int) -> int:
    """Length of a file in samples at ``sample_rate``; only the header is read."""
    with _opened(path) as file:
        return -(-file.frames * sample_rate // file.samplerate)


def read_clip(path: str, sample_rate: int, start: int = 0, size: int | None = None) -> np.ndarray:
    """Read a file, or a part of it, as int16 samples (S,) at ``sample_rate``, averaged over channels.

    Files with more than 16 bits: values beyond [-1, 1] are scaled down, and very quiet files are amplified.

    Args:
        path: any format in ``SUFFIXES``; without the soundfile library only 16-bit PCM wav.
        sample_rate: Hz.
        start: first sample of the part, at ``sample_rate``.
        size: length of the part in samples, less at the end of the file; None = to the end.

    Raises:
        DataFileError: not an audio file, damaged, or samples that are not finite; one line that names the
            file.
    """
    with _opened(path) as file:
        ratio, gain = Fraction(sample_rate, file.samplerate), 1.0
        if file.subtype in DEEP:
            gain = _gain(path)
        up, down = ratio.numerator, ratio.denominator
        steps = max(0, start // up - -(-MARGIN // min(up, down))) if up != down else start
        first = steps * down
        wanted = file.frames - first
        if size is not None:
            reach = start + size - steps * up
            wanted = min(wanted, -(-reach * down // up) + (MARGIN * max(1, down // up) if up != down else 0))
        file.seek(first)
        samples = file.read(max(0, wanted))
        if len(samples) < wanted and not path.lower().endswith((".mp3", ".ogg", ".oga", ".opus")):
            raise DataFileError(f"audio file {path} is truncated or damaged: fetch it again")
    if not np.isfinite(samples).all():
        raise DataFileError(f"audio file {path} contains non-finite samples: remove or repair it")
    sound = mono(samples) * np.float32(gain)
    if len(sound) and up != down:
        sound = resample(sound, down, up)
    sound = sound[start - steps * up :][:size]
    return np.rint(sound * 32768).clip(-32767, 32767).astype(np.int16)
