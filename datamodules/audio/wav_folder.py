"""Folders of audio files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from datamodules.audio.clips import AllClips, FileClips, KeptClips, nothing_in
from datamodules.audio.module import AudioDataModule, pad_clip
from datamodules.audio.reading import SUFFIXES, clip_length, read_clip
from datamodules.checks import check, check_one_of, check_within
from datamodules.class_folders import labeled_parts
from datamodules.errors import ConfigError, MissingDataError
from datamodules.images.folder import MEMORY_LIMIT
from datamodules.listing import Tree, fingerprint, left_out, printable
from datamodules.listing_cache import listed
from datamodules.remarks import split_remarks
from datamodules.splits import Part, Samples, Split, complete_splits, given_splits

Clips = Literal["first", "all"]

FilesOfSplits = dict[str, tuple[list[str], np.ndarray]]
"""Files and labels (N,) by split."""


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


class WavFolder(AudioDataModule):
    """A folder tree of audio files, such as speech commands or bird calls.

    Formats: wav, flac, ogg, opus, mp3, aiff and au with the soundfile library; without it, 16-bit PCM wav.

    Files may be at any depth below ``root``; hidden ones are skipped. The label is a field of the file name,
    or the class folder (the first one below ``root`` or below a split folder). Files directly in ``root``
    without a pattern are unlabeled.

    Splits: ``test`` is selected by ``split_field`` and ``test_values``; otherwise by folders, list files or
    file names as for all data (docs/data/splits.md); otherwise it is a fraction ``test_fraction``. ``val``,
    if not given, is a fraction ``val_fraction`` of the rest. Both fractions are stratified by class and fixed
    for a given set of files.

    Layouts::

        a folder per class; val and test are held out:
            DIR/yes/1.wav  DIR/no/2.flac
        a folder per split, with the same classes in each:
            DIR/train/yes/1.wav  DIR/validation/yes/2.wav  DIR/test/no/3.wav
        lists of the files of splits, with lines such as yes/1.wav; other files are train:
            DIR/yes/1.wav  DIR/no/2.wav  DIR/validation_list.txt  DIR/testing_list.txt
        classes in the names (--data.pattern '{label}_{speaker}_{index}'):
            DIR/7_jackson_32.wav  DIR/3_theo_1.wav
        test by a field of the names (also --data.split_field speaker --data.test_values '[theo]'):
            DIR/7_jackson_32.wav  DIR/3_theo_1.wav
        no classes; below folders, --data.labeled false:
            DIR/1.wav  DIR/2.mp3

    A folder of at most 512 MB is decoded once and kept in memory. Clips that are silent or shorter than one
    frame are then left out, counted and logged. In a larger folder, each is reported when it is first read
    and has no valid frame, so no method learns from it.

    Args:
        root: folder of the files; never written to.
        pattern: pattern of file names without extension, such as ``{label}_{speaker}_{index}``; any field can
            be the label.
        label: the field used as the label; choose another one for another probe (``--data.label speaker``).
            If the pattern has no field ``label``, the class folders are used.
        labeled: False ignores folders and names: every file is one unlabeled sample.
        split_field: the field that selects the ``test`` files.
        test_values: the values of that field, such as 0, 1, 2, 3, 4.
        clips: ``first`` uses the first ``seconds`` of each file. ``all`` is for long recordings: they are
            read in parts, at random positions in training, clip after clip in evaluation.
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
        clips: Clips = "first",
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
                raise ConfigError(
                    f"{option} {value!r} is not a field of pattern {pattern!r}; fields: {known}"
                )
        if (split_field is None) != (test_values is None):
            raise ConfigError("split_field and test_values belong together: give both or neither")
        check_one_of(get_args(Clips), clips=clips)
        check_within(0, 1, "()", test_fraction=test_fraction, val_fraction=val_fraction)
        self.root, self.pattern, self.label, self.labeled, self.clips = root, pattern, label, labeled, clips
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
        paths, labels = found[split][0].tolist(), found[split][1]
        sizes = self.scale.sample_rate, self.clip_size, self.scale.hop
        if self.clips == "all":
            return {split: AllClips(paths, labels, *sizes, random=split == "train")}
        if split == "train" and found["train"] is found["bank"]:
            return {"train": self.dataset("bank")}
        if sum(len(found[s][1]) for s in ("train", "val", "test")) * self.clip_size * 2 <= MEMORY_LIMIT:
            return {split: self._in_memory(paths, labels, split)}
        return {split: FileClips(paths, labels, *sizes)}

    def _in_memory(self, paths: list[str], labels: np.ndarray, split: str) -> KeptClips:
        clips = np.empty((len(paths), self.clip_size), np.int16)
        reasons: list[str] = []
        kept: list[int] = []
        cut = 0
        for row, path in enumerate(paths):
            samples = read_clip(path, self.scale.sample_rate, size=self.clip_size)
            if reason := nothing_in(samples, self.scale.hop):
                reasons.append(reason)
                continue
            clips[len(kept)] = pad_clip(samples, self.clip_size)
            kept.append(row)
            cut += clip_length(path, self.scale.sample_rate) > self.clip_size
        if reasons:
            counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))
            rank_zero_info(
                f"{self.root} ({split}): {len(reasons)} of {len(paths)} files are left out: {counts}"
            )
        if cut:
            seconds = self.clip_size / self.scale.sample_rate
            rank_zero_info(
                f"{self.root} ({split}): {cut} of {len(kept)} clips are cut to their first {seconds:g} s "
                "(--data.clips all uses the rest too)"
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
                f"WavFolder: --data.root {self.root} is not a folder. Expected audio files below it. "
                "The configs in configs/tones/ need no data"
            )
        tree = listed(root, "audio files", lambda path: path.lower().endswith(SUFFIXES), SUFFIXES)
        if not tree.files:
            held = printable(sorted(os.listdir(root))) or "nothing"
            raise MissingDataError(
                f"WavFolder: no audio files ({' '.join(SUFFIXES)}) below {self.root}, which contains: {held}"
            )
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
                f"test_values {sorted(self.test_values)} select {held_out.sum()} of {len(files)} files in "
                f"{self.root}: expected some, but not all, of the values of {self.split_field}: "
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
                f"pattern {self.pattern} does not match the name of {file}: rename or remove it",
                option="pattern",
            )
        return match.groupdict()
