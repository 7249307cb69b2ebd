"""Token ids as samples: windows of one stream, or padded documents."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import ConfigError, DataFileError
from datamodules.samplers import SampleDataset
from datamodules.seeding import mix_seed, run_seed
from datamodules.text.tokenizer import CLS, PAD, SEP
from runtime.files import whole_file


class Tokens(NamedTuple):
    """Samples of different lengths, concatenated: sample i is ``flat[offsets[i] : offsets[i + 1]]``."""

    flat: np.ndarray  # (total,) uint16 or uint32, in memory or memory-mapped
    offsets: np.ndarray  # (N + 1,) int64
    labels: np.ndarray  # (N,) int64, -1 = unknown
    documents: np.ndarray  # (N,) int64, number of the document that a sample comes from


class TokenWriter:
    """Collects samples into ``Tokens``, in memory or in files that are either complete or absent.

    Args:
        vocab_size: determines whether a token takes two or four bytes.
        path: without extension; ``.bin`` (tokens) and ``.npz`` (the rest) are written. None = memory.
    """

    def __init__(self, vocab_size: int, path: Path | None = None) -> None:
        self.dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        self.path, self.chunks, self.lengths, self.labels, self.documents = path, [], [], [], []  # type: ignore[var-annotated]
        if path is not None:
            self.writing = whole_file(path.with_suffix(".bin"))
            self.file = self.writing.__enter__()

    def add(self, ids: np.ndarray, label: int = -1, document: int = -1) -> None:
        ids = ids.astype(self.dtype)
        if self.path is None:
            self.chunks.append(ids)
        else:
            self.file.write(ids.tobytes())
        self.lengths.append(len(ids))
        self.labels.append(label)
        self.documents.append(document)

    def finish(self) -> Tokens:
        offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        labels, documents = np.array(self.labels, np.int64), np.array(self.documents, np.int64)
        if self.path is None:
            flat = np.concatenate([np.empty(0, self.dtype), *self.chunks])
            return Tokens(flat, offsets, labels, documents)
        self.writing.__exit__(None, None, None)
        with whole_file(self.path.with_suffix(".npz")) as file:  # last: it marks both as complete
            np.savez(
                file, offsets=offsets, labels=labels, documents=documents, dtype=np.dtype(self.dtype).name
            )
        return open_tokens(self.path)


def open_tokens(path: Path) -> Tokens:
    """The files of a ``TokenWriter``; the tokens stay on disk.

    Raises:
        DataFileError: one of them is missing or damaged.
    """
    try:
        with np.load(path.with_suffix(".npz")) as rest:
            offsets, labels, documents, dtype = (rest[k] for k in ("offsets", "labels", "documents", "dtype"))
        shape, empty = (int(offsets[-1]),), offsets[-1] == 0  # a memory map needs at least one byte
        flat = (
            np.empty(0, str(dtype))
            if empty
            else np.memmap(path.with_suffix(".bin"), str(dtype), mode="r", shape=shape)
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataFileError(
            f"the token file {path}.npz or .bin is damaged ({error}): remove both; they will be rebuilt"
        ) from None
    return Tokens(flat, offsets, labels, documents)


class WindowDataset(SampleDataset):
    """Windows of ``length`` consecutive tokens of one stream, without padding.

    Consecutive windows share one token, so a model that predicts each token of a window except its first
    predicts every token of the stream once. A remainder shorter than a window is dropped.

    Args:
        flat: (total,) token ids.
        length: T, tokens per window.
        moving: start the first window at a different position in each epoch, a pure function of (the run's
            seed, epoch).

    Raises:
        ValueError: fewer tokens than one window.
    """

    def __init__(self, flat: np.ndarray, length: int, moving: bool = False) -> None:
        if len(flat) < length:
            raise ConfigError(
                f"the text has {len(flat)} tokens, fewer than a window: give --data.length {len(flat)} or "
                "less"
            )
        self.flat, self.length, self.moving, self.stride = flat, length, moving, length - 1
        room = (
            len(flat) - length - (self.stride - 1 if moving else 0)
        )  # the same number of windows for every start
        self.count = max(1, room // self.stride + 1)
        self.free = min(
            self.stride, len(flat) - length - (self.count - 1) * self.stride + 1
        )  # start positions
        self.seed = run_seed()
        self.epoch = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # shared with workers that outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, T) int64, "label": (B,) of -1}``."""
        first = mix_seed(self.seed, int(self.epoch)) % self.free if self.moving else 0
        starts = first + np.asarray(indices, np.int64)[:, None] * self.stride
        tokens = self.flat[starts + np.arange(self.length)].astype(np.int64)
        return {"input": torch.from_numpy(tokens), "label": torch.full((len(indices),), -1)}


class DocumentDataset(SampleDataset):
    """Samples of different lengths, padded with [PAD] to one length.

    Args:
        tokens: the samples, none longer than ``length``.
        length: T.
    """

    def __init__(self, tokens: Tokens, length: int) -> None:
        self.tokens, self.length = tokens, length

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.tokens.labels

    def __len__(self) -> int:
        return len(self.tokens.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``{"input": (B, T) int64, "label": (B,) int64, "document": (B,) int64}``."""
        chosen = np.asarray(indices, np.int64)
        padded = np.full((len(chosen), self.length), PAD, np.int64)
        for row, index in enumerate(chosen):
            start, stop = self.tokens.offsets[index : index + 2]
            padded[row, : stop - start] = self.tokens.flat[start:stop]
        out = {
            "input": padded,
            "label": self.tokens.labels[chosen],
            "document": self.tokens.documents[chosen],
        }
        return {key: torch.from_numpy(value) for key, value in out.items()}


# ---- samples from sentences --------------------------------------------------------------------------------


def frame(*segments: np.ndarray) -> np.ndarray:
    """[CLS] A [SEP] for one segment, [CLS] A [SEP] B [SEP] for two."""
    parts: list[np.ndarray | list[int]] = [[CLS]]
    for segment in segments:
        parts += [segment, [SEP]]
    return np.concatenate(parts).astype(np.int64)


def cut_to(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Trim two segments to ``room`` tokens in total: the longer one first, until both are equally long."""
    most = max(room // 2, room - len(second)), max(room - room // 2, room - len(first))
    return first[: most[0]], second[: most[1]]


def cut_pairs(sentences: Sequence[np.ndarray], room: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a document into pairs of neighboring segments A and B.

    Takes as many whole sentences as fit into ``room``, split between two of them as near to the middle as
    possible. A single sentence is split inside, so that a short document also gives a true pair.

    Args:
        sentences: token ids of each sentence, in order.
        room: tokens of A and B together, at least 2.

    Returns:
        (A, B) pairs, none of them empty.
    """
    whole = [s[i : i + room] for s in sentences for i in range(0, len(s), room)]
    chunks: list[list[np.ndarray]] = []
    size = room + 1
    for sentence in whole:
        if size + len(sentence) > room:
            chunks.append([])
            size = 0
        chunks[-1].append(sentence)
        size += len(sentence)
    pairs = []
    for chunk in chunks:
        ids = np.concatenate(chunk)
        ends = np.cumsum([len(s) for s in chunk])[:-1] if len(chunk) > 1 else np.array([len(ids) // 2])
        middle = int(ends[np.abs(ends - len(ids) / 2).argmin()])
        if 0 < middle < len(ids):
            pairs.append((ids[:middle], ids[middle:]))
    return pairs
