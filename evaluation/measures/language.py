"""Perplexity of a token model next to frequency tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from datamodules.base import SSLDataModule
from datamodules.seeding import mix_seed
from datamodules.splits import Split
from datamodules.text.module import TextDataModule
from datamodules.text.tokenizer import SPECIALS
from evaluation.measures.base import Measure
from sslmodules.base import SSLModule
from sslmodules.networks import PixelTokens

COUNTED = 5_000_000
"""Approximate maximum number of training tokens counted for the tables."""

DECODED = 1_000_000
"""Maximum number of test tokens in which words are counted."""


class Language(Measure):
    """Cross entropy of a token model beside that of two frequency tables."""

    name = "language"

    def applies(self, module: SSLModule, data: SSLDataModule) -> bool:
        return module.predicts_tokens and (data.vocab_size, module.pixels) != (None, None)

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        module.check_data(data)
        return language_report(module, data, device)

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        title = "test split: nats per token or pixel value, beside frequency tables of the training split"
        terms = {**values["test"], **values}
        more = ("bits_per_character", "bits_per_dimension", "masked_word_accuracy", "next_sentence_accuracy")
        cells = {name: f"{value:.3f}" for name, value in values["nats_per_token"].items()}
        cells["perplexity"] = f"{terms['perplexity']:.2f}"
        if "word_perplexity" in terms:
            cells["word perplexity"] = f"{terms['word_perplexity']:.4g}"
        return title, cells | {key.replace("_", " "): f"{terms[key]:.3f}" for key in more if key in terms}


def unigram_entropy(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Cross entropy in nats of ``test`` under the frequencies of ``train``, with one added to each count.
    Args:
        train: (n,) token ids.
        test: (m,) token ids, m >= 1.
        vocab_size: V.
    """
    counts = np.bincount(train, minlength=vocab_size) + 1
    return float(-np.log(counts[test] / counts.sum()).mean())


def bigram_entropy(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Cross entropy in nats of the second token of ``test``'s pairs given the first, from those of ``train``.

    Smoothed with the unigram table after Witten and Bell: P(b | a) = (n(ab) + t(a) P(b)) / (n(a) + t(a)),
    t(a) = number of different tokens seen after a; after a token that was never seen, P(b).

    Args:
        train: (n, 2) pairs of consecutive token ids.
        test: (m, 2), m >= 1.
        vocab_size: V.
    """
    counts = np.bincount(train[:, 1], minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    kinds, times = np.unique(train[:, 0] * vocab_size + train[:, 1], return_counts=True)
    followers = np.bincount(kinds // vocab_size, minlength=vocab_size)
    totals = np.bincount(train[:, 0], minlength=vocab_size)
    wanted = test[:, 0] * vocab_size + test[:, 1]
    places = np.searchsorted(kinds, wanted).clip(max=max(len(kinds) - 1, 0))
    seen = np.where(kinds[places] == wanted, times[places], 0) if len(kinds) else np.zeros(len(test))
    first, back_off = test[:, 0], unigram[test[:, 1]]
    weight = totals[first] + followers[first]
    smoothed = np.where(weight > 0, (seen + followers[first] * back_off) / np.maximum(weight, 1), back_off)
    return float(-np.log(smoothed).mean())


def _batches(
    data: SSLDataModule, split: Split, limit: int, pixels: PixelTokens | None
) -> Iterator[np.ndarray]:
    """Batches (B, T) of a split's tokens or pixel values, up to about ``limit`` in total."""
    for raw in data.eval_dataloader(data.dataset(split)):
        x = data.transform({"input": raw["input"]}, None)["input"]
        tokens = (x if pixels is None else pixels(x)[:, 1:]).numpy()
        yield tokens
        limit -= tokens.size
        if limit <= 0:
            return


def frequency_entropies(
    data: SSLDataModule, split: Split = "test", pixels: PixelTokens | None = None
) -> dict[str, float]:
    """``unigram`` and ``bigram`` cross entropy of a split, in nats per token, from training-split counts.

    Special tokens are not counted if the data has padding (``pad_id`` 0). ``pixels`` converts images to
    tokens.
    """
    first = len(SPECIALS) if data.pad_id is not None else 0
    tokens, pairs = {}, {}
    parts: tuple[Split, Split] = ("bank", split)
    for part in parts:
        rows = list(_batches(data, part, COUNTED, pixels))
        tokens[part] = np.concatenate([row[row >= first] for row in rows])
        neighbors = np.concatenate([np.stack([row[:, :-1], row[:, 1:]], -1).reshape(-1, 2) for row in rows])
        pairs[part] = neighbors[(neighbors >= first).all(1)]
    vocab_size = data.vocab_size if pixels is None else pixels.levels
    assert vocab_size is not None
    return {
        "unigram": unigram_entropy(tokens["bank"], tokens[split], vocab_size),
        "bigram": bigram_entropy(pairs["bank"], pairs[split], vocab_size),
    }


@torch.no_grad()
def held_out_terms(
    module: SSLModule, data: SSLDataModule, device: torch.device, split: Split = "test"
) -> dict[str, float]:
    """The terms of ``losses`` on a split, averaged over its tokens or samples; masks have a fixed seed.

    ``perplexity`` is the exponential of the mean loss in nats per predicted token.
    """
    sums: dict[str, float] = {}
    totals: dict[str, float] = {}
    for index, raw in enumerate(data.eval_dataloader(data.dataset(split))):
        generator = torch.Generator(device).manual_seed(mix_seed(0, index))
        batch = data.transform({key: value.to(device) for key, value in raw.items()}, generator)
        counts = module.averaged_over(batch)
        for name, value in module.losses(batch).items():
            n = counts.get(name, len(batch["input"]))
            sums[name] = sums.get(name, 0.0) + float(value) * n
            totals[name] = totals.get(name, 0) + n
    means = {
        name: torch.tensor(value / max(totals[name], 1), dtype=torch.float64) for name, value in sums.items()
    }
    return {name: value.item() for name, value in (means | module.derived(means)).items()}


def words_per_token(data: SSLDataModule) -> float | None:
    """Words between white space, and ends of lines, of the test split, divided by its tokens.

    None for data other than text, for samples that are padded, and for text without words.
    """
    if not isinstance(data, TextDataModule) or data.characters_per_token is None:
        return None
    tokens = data.dataset("test").flat[:DECODED]  # type: ignore[attr-defined]
    text = data.tokenizer.decode(tokens)
    return (len(text.split()) + text.count("\n")) / len(tokens) or None


def language_report(module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
    """The section ``language`` of a report: held-out losses beside two frequency tables.

    Args:
        module: in eval mode, on ``device``; a method whose loss is in nats per token.
        data: token ids with ``vocab_size``, or images that the method's ``pixels`` converts to tokens.
        device: where to compute.

    Returns:
        ``test``: terms by name; ``nats_per_token``: ``model``, ``unigram``, ``bigram``;
        ``bits_per_character`` for methods that predict every token, if the data has ``characters_per_token``;
        for text also ``word_perplexity``, in which the end of a line is a word, as usual for WikiText.
    """
    terms = held_out_terms(module, data, device)
    model = terms.get("masked_word_loss", terms["loss"])
    pixels = module.pixels
    report: dict[str, Any] = {
        "test": terms,
        "nats_per_token": {"model": model, **frequency_entropies(data, pixels=pixels)},
    }
    characters = data.characters_per_token
    if characters and "masked_word_loss" not in terms:
        report["bits_per_character"] = model / math.log(2) / characters
        if words := words_per_token(data):
            report["word_perplexity"] = torch.tensor(model / words, dtype=torch.float64).exp().item()
    return report
