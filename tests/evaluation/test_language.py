"""Tables of frequencies against counting by hand, and their place in the report."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.text.files import TextFiles
from evaluation.measures.language import (
    bigram_entropy,
    frequency_entropies,
    held_out_terms,
    language_report,
    unigram_entropy,
    words_per_token,
)
from sslmodules import GPT
from sslmodules.networks import GPTEncoder
from tests.conftest import build


def test_unigram_by_hand() -> None:
    """Counts 2 and 1 and 0, each one higher: 3/6, 2/6, 1/6."""
    train, test = np.array([0, 0, 1]), np.array([0, 2])
    assert unigram_entropy(train, test, 3) == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


def test_bigram_against_python() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 6, (300, 2)), rng.integers(0, 7, (80, 2))  # token 6 never comes in train
    pairs, firsts = Counter(map(tuple, train.tolist())), Counter(train[:, 0].tolist())
    kinds = Counter(a for a, _ in pairs)
    seconds = Counter(train[:, 1].tolist())

    def probability(a: int, b: int) -> float:
        back_off = (seconds[b] + 1) / (len(train) + 7)
        return (pairs[a, b] + kinds[a] * back_off) / (firsts[a] + kinds[a]) if firsts[a] else back_off

    for a in range(7):
        assert sum(probability(a, b) for b in range(7)) == pytest.approx(1)
    expected = -np.mean([math.log(probability(a, b)) for a, b in test.tolist()])
    assert bigram_entropy(train, test, 7) == pytest.approx(expected)


def test_a_chain_is_known_to_the_pairs_only(tmp_path: Path) -> None:
    """abcabc...: any letter is as likely as another, and certain after the one before."""
    (tmp_path / "a.txt").write_text("abc" * 2000)
    entropies = frequency_entropies(TextFiles(root=str(tmp_path), length=31, batch_size=16))
    assert entropies["unigram"] == pytest.approx(math.log(3), abs=1e-2)
    assert entropies["bigram"] < 0.01


def test_padding_and_special_tokens_are_not_counted() -> None:
    """Short texts in long samples: with the padding counted nearly everything would be certain."""
    short = TextFiles(
        synthetic=True, layout="documents", tokenizer="wordpiece", vocab_size=300, length=64, batch_size=16
    )
    long = TextFiles(
        synthetic=True, layout="documents", tokenizer="wordpiece", vocab_size=300, length=256, batch_size=16
    )
    assert frequency_entropies(long)["unigram"] == pytest.approx(
        frequency_entropies(short)["unigram"], rel=0.02
    )


def test_held_out_terms_are_the_mean_over_samples_and_repeat() -> None:
    module, data = build("configs/text/bert.yaml")
    module.eval()
    terms = held_out_terms(module, data, torch.device("cpu"))
    assert terms == held_out_terms(module, data, torch.device("cpu"))
    assert terms["masked_word_loss"] == pytest.approx(math.log(2000), abs=0.3)
    assert terms["perplexity"] == pytest.approx(math.exp(terms["masked_word_loss"]))
    assert terms["loss"] == pytest.approx(terms["masked_word_loss"] + terms["next_sentence_loss"], rel=1e-5)


def test_perplexity_of_a_word(tmp_path: Path) -> None:
    """Four words and the ends of two lines in 14 characters. Padded samples have none."""
    (tmp_path / "train.txt").write_text("to be or not\n\n" * 40)
    (tmp_path / "test.txt").write_text("not to be or\n\n" * 20)
    data = TextFiles(root=str(tmp_path), length=15, batch_size=16)
    assert words_per_token(data) == pytest.approx(6 / 14)
    assert words_per_token(TextFiles(synthetic=True, layout="documents")) is None
    module = GPT(
        GPTEncoder(data.vocab_size, block_size=14, width=8, depth=1, heads=1), optimizer=torch.optim.SGD
    )
    report = language_report(module.eval(), data, torch.device("cpu"))
    assert report["word_perplexity"] == pytest.approx(math.exp(report["nats_per_token"]["model"] * 14 / 6))
