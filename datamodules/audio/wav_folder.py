"""Folders of audio files."""

from __future__ import annotations

import os
import re
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio.mel import resample
from datamodules.audio.module import AudioDataModule, ClipDataset, pad_clip
from datamodules.checks import check, check_within
from datamodules.class_folders import labeled_parts
from datamodules.errors import ConfigError, DataFileError, MissingDataError
from datamodules.images.folder import MEMORY_LIMIT
from datamodules.listing import Tree, fingerprint, left_out, list_tree, printable
from datamodules.remarks import split_remarks
from datamodules.samplers import SampleDataset
from datamodules.splits import Part, Samples, Split, complete_splits, given_splits

try:
    import soundfile
except (ImportError, OSError):  # OSError: its C library is missing
    soundfile = None

SUFFIXES = (".wav", ".flac")

FilesOfSplits = dict[str, tuple[list[str], np.ndarray]]
"""Files and labels (N,) by split."""


def _wave_samples(path: str) -> tuple[np.ndarray, int]:
    """Read 16-bit PCM wav with the standard library: samples (S, channels) int16 and the rate in Hz."""
    if not path.lower().endswith(".wav"):
        raise ValueError(
            "only wav files are read without the library soundfile: pip install 'lightning-ssl[audio]'"
        )
    with wave.open(path, "rb") as file:
        if file.getsampwidth() != 2:
            bits = 8 * file.getsampwidth()
            raise ValueError(
                f"{bits}-bit samples need the library soundfile: pip install 'lightning-ssl[audio]'"
            )
        data = file.readframes(file.getnframes())
        samples = np.frombuffer(
            data, "<i2", count=len(data) // (2 * file.getnchannels()) * file.getnchannels()
        )
        return samples.reshape(-1, file.getnchannels()), file.getframerate()


def read_clip(path: str, sample_rate: int) -> np.ndarray:
    """Read a file as int16 samples (S,) at ``sample_rate``, averaged over channels.

    Args:
        path: wav or flac of any rate and bit depth; without the soundfile library only 16-bit PCM wav.
        sample_rate: Hz.

    Raises:
        DataFileError: not an audio file, damaged, or samples that are not finite; one line that names the
            file.
    """
    try:
        if soundfile is None:
            samples, rate = _wave_samples(path)
            samples = samples.astype(np.float32) / 32768
        else:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # on a damaged file the readers raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataFileError(f"cannot read audio file {path}: {reason}") from None
    if not np.isfinite(samples).all():
        raise DataFileError(f"audio file {path} holds samples that are not finite: remove or mend it")
    mono = samples.mean(1)
    if len(mono) and rate != sample_rate:
        mono = resample(mono, rate, sample_rate)
    return np.rint(mono * 32768).clip(-32767, 32767).astype(np.int16)


def name_pattern(pattern: str) -> re.Pattern[str]:
    """Compile ``{label}_{speaker}_{index}`` to a regular expression for file names without extension.

    A field matches one or more characters.

    Raises:
        ValueError: no field, a repeated field, or an invalid field name.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    fields = parts[1::2]
    sound = fields and len(set(fields)) == len(fields) and all(f.isidentifier() for f in fields)
    check(bool(sound), "pattern", "fields such as {label}_{speaker}_{index}, each once", pattern)
    return re.compile("".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>.+?)" for i, p in enumerate(parts)))


def nothing_in(samples: np.ndarray, hop: int) -> str:
    """Why samples (S,) hold nothing to learn from, or "" if they do."""
    if len(samples) < hop:
        return "shorter than a frame"
    return "" if samples.any() else "silent"


class FileClips(SampleDataset):
    """Audio files, decoded when they are fetched, see ``read_clip`` and ``pad_clip``.

    Args:
        paths: N files.
        labels: (N,) integers, -1 = unknown.
        sample_rate: Hz.
        clip_size: length of a clip in samples.
        hop: length of a frame in samples. A clip that is silent or shorter than a frame becomes all
            ``PADDING``; such clips are counted, and each is named once on stderr.
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

    def _clip(self, i: int) -> np.ndarray:
        samples = read_clip(self.paths[i], self.sample_rate)
        if reason := nothing_in(samples[: self.clip_size], self.hop):
            samples = samples[:0]
            if not self.without_sound[i]:
                self.without_sound[i] = True
                count = int(self.without_sound.sum())
                print(
                    f"warning: {self.paths[i]} is {reason}: passed over, {count} so far",
                    file=sys.stderr,
                    flush=True,
                )
        return pad_clip(samples, self.clip_size)


class WavFolder(AudioDataModule):
    """A tree of wav and flac files such as speech commands or bird calls.

    Formats: wav and flac with the soundfile library, otherwise 16-bit PCM wav.

    Files may be at any depth below ``root``; hidden ones are skipped. The label is a field of the file name,
    or the class folder (the first one below ``root`` or below a split folder). Files directly in ``root``
    without a pattern are unlabeled.

    Splits: ``test`` is selected by ``split_field`` and ``test_values``; otherwise by folders, list files or
    file names as for all data (docs/data/splits.md); otherwise it is a fraction ``test_fraction``. ``val``,
    if not given, is a fraction ``val_fraction`` of the rest. Both fractions are stratified by class and fixed
    for a given set of files.

    A folder of at most 512 MB is decoded once and kept in memory. Clips that are silent or shorter than one
    frame are then left out, counted and logged. In a larger folder each one is named when it is first read,
    and has no valid frame, so no method learns from it.

    Args:
        root: folder of the files; only read from.
        pattern: of the file name without extension, such as ``{label}_{speaker}_{index}``; any field can be
            the label.
        label: the field used as the label; choose another one for another probe (``--data.label speaker``).
            If the pattern has no field ``label``, the class folders are used.
        labeled: False ignores folders and names: every file is one unlabeled sample.
        split_field: the field that selects the ``test`` files.
        test_values: the values of that field, such as 0, 1, 2, 3, 4.
        test_fraction: fraction of all files, if no test split is given.
        val_fraction: fraction of the files that are not ``test``, if no val split is given.

    Raises:
        MissingDataError: ``root`` does not exist or contains no audio.
        ValueError: a bad argument, a file name that does not match the pattern, or too few files to split.
        DataFileError: a file that cannot be read.
    """

    def __init__(
        self,
        root: str,
        pattern: str | None = None,
        label: str = "label",
        labeled: bool = True,
        split_field: str | None = None,
        test_values: list[int | str] | None = None,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        root = str(root)
        super().__init__(**kwargs)
        self.names = name_pattern(pattern) if pattern is not None else None
        fields = list(self.names.groupindex) if self.names else []
        self.named_labels = labeled and label in fields
        wrong = label if fields and label not in (*fields, "label") else None
        for option, value in (("label", wrong), ("split_field", split_field)):
            if value is not None and value not in fields:
                known = ", ".join(fields) or "none"
                raise ConfigError(f"{option} {value!r} is no field of pattern {pattern!r}; fields: {known}")
        if (split_field is None) != (test_values is None):
            raise ConfigError("split_field and test_values belong together: give both or neither")
        check_within(0, 1, "()", test_fraction=test_fraction, val_fraction=val_fraction)
        self.root, self.pattern, self.label, self.labeled = root, pattern, label, labeled
        self.split_field, self.test_values = split_field, set(map(str, test_values or ()))
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        self._found: dict[str, Samples] = {}
        self._fingerprint: dict[str, Any] | None = None
        self._class_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names, sorted; the folder is scanned on first access."""
        if self.synthetic:
            return tuple(f"class {i}" for i in range(10)) if self.labeled else ()
        self._find()
        return self._class_names

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        return len(self.class_names) or None

    def files(self, split: Split) -> list[str]:
        """Paths of the samples of ``split``, in the order of ``dataset(split)``."""
        dataset = self.dataset(split)
        return dataset.paths if isinstance(dataset, (FileClips, KeptClips)) else []

    def fingerprint(self) -> dict[str, Any] | None:
        if self.synthetic:
            return None
        self._find()
        return self._fingerprint

    def remarks(self) -> list[str]:
        if self.synthetic:
            return []
        return super().remarks() + split_remarks(self.root, self._find(), self.class_names)

    def _load(self, split: Split) -> dict[str, Dataset]:
        found = self._find()
        if split == "train" and found["train"] is found["bank"]:
            return {"train": self.dataset("bank")}
        paths, labels = found[split][0].tolist(), found[split][1]
        if sum(len(found[s][1]) for s in ("train", "val", "test")) * self.clip_size * 2 <= MEMORY_LIMIT:
            return {split: self._in_memory(paths, labels, split)}
        return {split: FileClips(paths, labels, self.scale.sample_rate, self.clip_size, self.scale.hop)}

    def _in_memory(self, paths: list[str], labels: np.ndarray, split: str) -> KeptClips:
        clips = np.empty((len(paths), self.clip_size), np.int16)
        reasons: list[str] = []
        kept: list[int] = []
        cut = 0
        for row, path in enumerate(paths):
            samples = read_clip(path, self.scale.sample_rate)
            if reason := nothing_in(samples[: self.clip_size], self.scale.hop):
                reasons.append(reason)
                continue
            clips[len(kept)] = pad_clip(samples, self.clip_size)
            kept.append(row)
            cut += len(samples) > self.clip_size
        if reasons:
            counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))
            rank_zero_info(
                f"{self.root} ({split}): {len(reasons)} of {len(paths)} files are left out: {counts}"
            )
        if cut:
            seconds = self.clip_size / self.scale.sample_rate
            rank_zero_info(
                f"{self.root} ({split}): of {cut} of {len(kept)} clips only the first {seconds:g} s are used"
            )
        if not kept:
            raise ConfigError(
                f"WavFolder: every file of split {split} in {self.root} is silent or shorter than a frame"
            )
        return KeptClips(clips[: len(kept)], labels[kept], [paths[row] for row in kept])

    # ---- files and splits ----------------------------------------------------------------------------------

    def _find(self) -> dict[str, Samples]:
        """Paths and labels (N,) of train, bank, val and test, found once."""
        if not self._found:
            tree = self._tree()
            fields = {file: self._fields(file) for file in tree.files} if self.names else {}
            given = {"train": Part("", tree.files)}
            if self.split_field is None:
                given = given_splits(tree, classes=self.labeled and not self.named_labels)
            if self.named_labels:
                parts = self._labels_of_names(given, fields)
            else:
                parts, self._class_names = labeled_parts(tree, given, self.labeled)
            if self.split_field is not None:
                parts = self._by_field(*parts["train"], fields)
            samples = {
                split: (np.array([tree.path(file) for file in files], dtype=object), labels)
                for split, (files, labels) in parts.items()
            }
            self._fingerprint = fingerprint(tree.root, tree.files)
            what = f"audio files in {self.root}"
            self._found = complete_splits(samples, what, self.fractions, hold_out_test=True)
        return self._found

    def _tree(self) -> Tree:
        """All audio files, sorted by path."""
        root = os.path.expanduser(self.root)
        if not os.path.isdir(root):
            raise MissingDataError(
                f"WavFolder: --data.root {self.root} is not a folder. Expected wav or flac files below it. "
                "The configs in configs/tones/ need no data"
            )
        tree = list_tree(root, "audio files", lambda path: path.lower().endswith(SUFFIXES))
        if not tree.files:
            held = printable(sorted(os.listdir(root))) or "nothing"
            raise MissingDataError(f"WavFolder: no wav or flac files below {self.root}, which holds: {held}")
        tree.files.sort()
        if line := left_out(tree):
            rank_zero_info(line)
        return tree

    def _labels_of_names(self, given: dict[str, Part], fields: dict[str, dict[str, str]]) -> FilesOfSplits:
        names = sorted({found[self.label] for found in fields.values()})
        known = {name: i for i, name in enumerate(names)} if len(names) > 1 else {}  # else no information
        self._class_names = tuple(known)
        return {
            split: (part.files, np.array([known.get(fields[file][self.label], -1) for file in part.files]))
            for split, part in given.items()
        }

    def _by_field(
        self, files: list[str], labels: np.ndarray, fields: dict[str, dict[str, str]]
    ) -> FilesOfSplits:
        """Split into train and test by the field ``split_field``."""
        values = [fields[file][str(self.split_field)] for file in files]
        held_out = np.array([value in self.test_values for value in values])
        if held_out.all() or not held_out.any():
            raise ConfigError(
                f"test_values {sorted(self.test_values)} name {held_out.sum()} of {len(files)} files in "
                f"{self.root}: expected some and not all of the values of {self.split_field}: "
                f"{', '.join(sorted(set(values))[:10])}"
            )
        return {
            split: ([files[i] for i in np.flatnonzero(chosen)], labels[chosen])
            for split, chosen in (("train", ~held_out), ("test", held_out))
        }

    def _fields(self, file: str) -> dict[str, str]:
        assert self.names is not None
        match = self.names.fullmatch(Path(file).stem)
        if match is None:
            raise ConfigError(
                f"pattern {self.pattern} does not fit the name of {file}: rename or remove it",
                option="pattern",
            )
        return match.groupdict()


class KeptClips(ClipDataset):
    """Clips in memory, with the files they come from in ``paths``."""

    def __init__(self, clips: np.ndarray, labels: np.ndarray, paths: list[str]) -> None:
        super().__init__(clips, labels)
        self.paths = paths
