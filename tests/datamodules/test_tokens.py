"""Masks and pairs of BERT against counting and slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.text.files import TextFiles
from datamodules.text.tokenizer import CLS, MASK, PAD, SEP, UNK, train_tokenizer
from datamodules.transforms.tokens import (
    MaskedTokens,
    bag_of_words,
    inverse_document_frequency,
    segments_of,
    swap_second_segments,
    tfidf,
)

V = 50


def row(first: list[int], second: list[int], length: int = 12) -> list[int]:
    ids = [CLS, *first, SEP, *second, SEP]
    return ids + [PAD] * (length - len(ids))


def many(rows: int = 2000, length: int = 32) -> Tensor:
    """Pairs of random length, with [UNK] among the words."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        a, b = rng.integers(1, 14, 2)
        words = rng.integers(5, V, a + b)
        words[rng.random(a + b) < 0.1] = UNK
        made.append(row(words[:a].tolist(), words[a:].tolist(), length))
    return torch.tensor(made)


def masked(
    tokens: Tensor, document: Tensor | None = None, seed: int = 0, **options: object
) -> dict[str, Tensor]:
    transform = MaskedTokens(**options)  # type: ignore[arg-type]
    transform.vocab_size = V
    generator = torch.Generator().manual_seed(seed)
    return transform(tokens, transform.draw(tokens, generator, document))  # type: ignore[return-value]


def test_shares_of_the_masking() -> None:
    """15 % of the tokens that are not special; of those 80 % [MASK], 10 % random, 10 % unchanged; by five
    deviations.
    """
    tokens = many()
    out = masked(tokens, next_sentence=False)
    words = tokens >= 5
    selected = out["target"] != -100
    assert not (selected & ~words).any(), "a special token was selected"
    assert torch.equal(out["target"][selected], tokens[selected])
    assert torch.equal(out["corrupted"][~selected], tokens[~selected])

    def near(share: float, expected: float, n: int) -> bool:
        return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)

    n = int(selected.sum())
    assert near(n / int(words.sum()), 0.15, int(words.sum()))
    got, true = out["corrupted"][selected], tokens[selected]
    assert near(float((got == MASK).float().mean()), 0.8, n)
    kept = 0.1 + 0.1 / (V - 5)  # a random token may be the true one
    assert near(float((got == true).float().mean()), kept, n)
    replaced = got[(got != MASK) & (got != true)]
    assert replaced.min() >= 5, "a random token is special"
    assert len(replaced.unique()) == V - 5  # every word may come


def test_masks_are_drawn_anew_and_repeat_with_the_generator() -> None:
    tokens = many(64)
    one, same, other = masked(tokens, seed=1), masked(tokens, seed=1), masked(tokens, seed=2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["target"] != -100, other["target"] != -100)


def test_segments_by_hand() -> None:
    tokens = torch.tensor([row([7, 8], [9, 10, 11]), row([7], [9])])
    assert segments_of(tokens).tolist() == [[0] * 4 + [1] * 4 + [0] * 4, [0] * 3 + [1] * 2 + [0] * 7]


def test_swapping_against_python() -> None:
    """The second segment of another row behind the own first one; cut at the end, where a [SEP] still closes
    it.
    """
    rng = np.random.default_rng(1)
    parts = [
        (rng.integers(5, V, rng.integers(1, 6)).tolist(), rng.integers(5, V, rng.integers(1, 5)).tolist())
        for _ in range(40)
    ]
    tokens = torch.tensor([row(a, b) for a, b in parts])
    partner, swap = torch.from_numpy(rng.integers(0, 40, 40)), torch.from_numpy(rng.random(40) < 0.7)
    got = swap_second_segments(tokens, partner, swap)
    for i, (a, b) in enumerate(parts):
        assert got[i].tolist() == row(a, parts[partner[i]][1] if swap[i] else b)
    long, short = row([5, 6, 7, 8, 9], [10], 9), row([5], [11, 12, 13, 14], 9)
    cut = swap_second_segments(torch.tensor([long, short]), torch.tensor([1, 0]), torch.tensor([True, True]))
    assert cut.tolist() == [[CLS, 5, 6, 7, 8, 9, SEP, 11, SEP], row([5], [10], 9)]


def test_pairs_come_from_another_document_and_half_are_true() -> None:
    """Every token tells its document: in a false pair the two segments never share one."""
    rows = 400
    document = torch.arange(rows) // 40  # ten documents
    tokens = torch.tensor([row([5 + d], [20 + d] * (1 + i % 4)) for i, d in enumerate(document.tolist())])
    true_pairs = 0
    for seed in range(10):
        out = masked(tokens, document, seed, ratio=1e-6)
        first, second = out["corrupted"][:, 1] - 5, out["corrupted"][:, 3] - 20
        assert torch.equal(first, document)
        assert torch.equal((first == second).long(), out["is_next"])
        true_pairs += int(out["is_next"].sum())
    assert abs(true_pairs / (10 * rows) - 0.5) < 5 * 0.5 / math.sqrt(10 * rows)


def test_one_document_gives_true_pairs_only() -> None:
    """A second segment from the same document must not be called a false pair."""
    tokens = many(30)
    out = masked(tokens, torch.zeros(30, dtype=torch.long), ratio=1e-6)
    assert out["is_next"].all() and torch.equal(out["corrupted"], tokens)


def test_the_length_does_not_tell_the_pair() -> None:
    """Samples packed to a full length would be told from pairs of chance by their size alone."""
    rng = np.random.default_rng(2)
    tokens = torch.tensor(
        [row([6] * (a := int(rng.integers(4, 25))), [7] * (28 - a), 32) for _ in range(1000)]
    )
    parts = [masked(batch, ratio=1e-6) for batch in tokens.split(100)]
    length = torch.cat([part["corrupted"].ne(PAD).sum(1) for part in parts])
    truth = torch.cat([part["is_next"] for part in parts])
    best = max(((length >= cut) == (truth == 1)).float().mean().item() for cut in range(20, 33))
    assert best < 0.65, f"lengths alone tell {best:.2f} of the pairs"


def test_whole_words() -> None:
    """All pieces of a word or none, and still 15 % of the tokens."""
    texts = ["walking talking walked talked stalking"] * 9
    tokenizer = train_tokenizer("wordpiece", texts, 100, specials=True)
    continues = torch.from_numpy(tokenizer.continuations())
    ids = torch.from_numpy(tokenizer.encode(["stalk walkin tinked wild stead"])[0])
    assert continues[ids].any() and ids.min() >= 5
    tokens = torch.cat([torch.tensor([CLS]), ids, torch.tensor([SEP, PAD])]).repeat(3000, 1)
    transform = MaskedTokens(whole_words=True, next_sentence=False)
    transform.set_tokenizer(tokenizer)
    out = transform(tokens, transform.draw(tokens, torch.Generator().manual_seed(0)))
    selected = out["target"] != -100  # type: ignore[operator]
    inner = torch.nonzero(continues[tokens[0]])[:, 0]
    assert torch.equal(selected[:, inner], selected[:, inner - 1])  # type: ignore[index]
    assert abs(selected[:, 1:-2].float().mean() - 0.15) < 0.01  # type: ignore[index]
    assert not selected[:, [0, -2, -1]].any()  # type: ignore[index]


def test_whole_words_need_word_pieces() -> None:
    with pytest.raises(ValueError, match="only wordpiece marks the pieces"):
        TextFiles(
            layout="pairs", tokenizer="bpe", vocab_size=300, views=MaskedTokens(whole_words=True)
        ).prepare_data()
    with pytest.raises(ValueError, match="no second segment"):
        TextFiles(layout="documents", views=MaskedTokens())
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\), got 0"):
        MaskedTokens(0.0)


def test_counts_and_tfidf_by_hand() -> None:
    """Two samples; token 6 is in both, 7 in one: idf ln(3/3) + 1 = 1 and ln(3/2) + 1."""
    tokens = torch.tensor([[CLS, 6, 6, SEP], [6, 7, SEP, PAD]])
    assert bag_of_words(tokens, 8, PAD).tolist() == [[0] * 6 + [2, 0], [0] * 6 + [1, 1]]
    assert bag_of_words(tokens, 8, None)[0].tolist() == [0, 0, 1, 1, 0, 0, 2, 0]
    idf = inverse_document_frequency(iter([tokens[:1], tokens[1:]]), 8, PAD)
    assert idf[6] == 1 and idf[7] == pytest.approx(math.log(1.5) + 1)
    rows = tfidf(tokens, idf, PAD)
    rare = math.log(1.5) + 1
    torch.testing.assert_close(rows[1, 6:], torch.tensor([1.0, rare]) / math.hypot(1, rare))
    assert rows[0].tolist() == [0] * 6 + [1, 0]
