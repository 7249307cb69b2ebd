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
    """What the standard library reads: 16-bit PCM wav. Samples (S, channels) int16 and the rate in Hz."""
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
    """A file as int16 samples (S,) at ``sample_rate``, its channels averaged.

    Args:
        path: wav or flac of any rate and width; without the library soundfile, 16-bit PCM wav.
        sample_rate: Hz.

    Raises:
        DataFileError: not a sound file, damaged, or samples that are not finite; one line that names the
            file.
    """
    try:
        if soundfile is None:
            samples, rate = _wave_samples(path)
            samples = samples.astype(np.float32) / 32768
        else:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # the readers raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataFileError(f"cannot read audio file {path}: {reason}") from None
    if not np.isfinite(samples).all():
        raise DataFileError(f"audio file {path} holds samples that are not finite: remove or mend it")
    mono = samples.mean(1)
    if len(mono) and rate != sample_rate:
        mono = resample(mono, rate, sample_rate)
    return np.rint(mono * 32768).clip(-32767, 32767).astype(np.int16)


def name_pattern(pattern: str) -> re.Pattern[str]:
    """``{label}_{speaker}_{index}`` as an expression for a file's name without ending; a field holds one
    character or more.

    Raises:
        ValueError: no field, one that comes twice, or a name that is none.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    fields = parts[1::2]
    sound = fields and len(set(fields)) == len(fields) and all(f.isidentifier() for f in fields)
    check(bool(sound), "pattern", "fields such as {label}_{speaker}_{index}, each once", pattern)
    return re.compile("".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>.+?)" for i, p in enumerate(parts)))


def nothing_in(samples: np.ndarray, hop: int) -> str:
    """Why there is nothing to learn from samples (S,), or "" where there is."""
    if len(samples) < hop:
        return "shorter than a frame"
    return "" if samples.any() else "silent"


class FileClips(SampleDataset):
    """Audio files, decoded when they are fetched; see ``read_clip`` and ``pad_clip``.

    Args:
        paths: N files.
        labels: (N,) integers, -1 = unknown.
        sample_rate: Hz.
        clip_size: samples of a clip.
        hop: samples of a frame. A clip that is silent or shorter is all ``PADDING``, counted and named once
            on stderr.
    """

    labels: np.ndarray

    def __init__(
        self, paths: list[str], labels: np.ndarray, sample_rate: int, clip_size: int, hop: int
    ) -> None:
        self.paths, self.labels = paths, labels.astype(np.int64)
        self.sample_rate, self.clip_size, self.hop = sample_rate, clip_size, hop
        self.without_sound = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # marked by any worker

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
    """Any tree of wav and flac files (with the library soundfile; without it 16-bit PCM wav): speech
    commands, birds, digits.

    Files lie anywhere below ``root``; hidden ones are skipped. The label is a field of the file's name, or
    the class folder (the first below ``root`` or below a split's folder), or there is none (files directly in
    ``root`` and no pattern).

    Splits: ``test`` is what ``split_field`` and ``test_values`` name; else folders, list files or names tell
    splits as for all data (docs/data/splits.md); else it is a share ``test_fraction``. Where ``val`` is not
    given it is a share ``val_fraction`` of the rest. Both shares are stratified by class and fixed for a set
    of files.

    A folder that takes at most 512 MB is decoded once and kept. Clips that are silent or shorter than one
    frame are then left out, counted and logged; in a larger folder each is named when it is first read, and
    is a clip without a valid frame, which no method learns from.

    Args:
        root: folder of the files; only read.
        pattern: of the file's name without ending, such as ``{label}_{speaker}_{index}``; each field may be
            the label.
        label: the field that is the label; another one for another probe (``--data.label speaker``). If the
            pattern has no field ``label``, class folders are.
        labeled: False ignores folders and names: every file is one unlabeled sample.
        split_field: the field that tells which files are ``test``.
        test_values: the values of it, such as 0, 1, 2, 3, 4.
        test_fraction: of all files, where no test split is given.
        val_fraction: of the files that are not ``test``, where no val split is given.

    Raises:
        MissingDataError: ``root`` does not exist or holds no audio.
        ValueError: a bad argument, a file whose name does not fit the pattern, too few files to split.
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
        """Names of the classes, sorted; the folder is read when this is first asked for."""
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

    # ---- which file is what --------------------------------------------------------------------------------

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
        """All audio files, in the order of their paths."""
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
        known = {name: i for i, name in enumerate(names)} if len(names) > 1 else {}  # one class tells nothing
        self._class_names = tuple(known)
        return {
            split: (part.files, np.array([known.get(fields[file][self.label], -1) for file in part.files]))
            for split, part in given.items()
        }

    def _by_field(
        self, files: list[str], labels: np.ndarray, fields: dict[str, dict[str, str]]
    ) -> FilesOfSplits:
        """train and test by the field ``split_field``."""
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
    """Clips in memory with the files they come from, ``paths``."""

    def __init__(self, clips: np.ndarray, labels: np.ndarray, paths: list[str]) -> None:
        super().__init__(clips, labels)
        self.paths = paths
