"""Weighted kNN against a slow float64 loop and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits

from evaluation.accuracy import top1
from evaluation.probes.knn import knn_predict


def loop_knn(query, bank, labels, num_classes, k, temperature):
    """The definition, one query and one neighbor at a time, in float64."""
    predictions = []
    for q in query.double():
        similarity = [(q @ b / (q.norm() * b.norm())).item() for b in bank.double()]
        votes = [0.0] * num_classes
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[int(labels[i])] += math.exp(similarity[i] / temperature)
        predictions.append(max(range(num_classes), key=lambda c: votes[c]))
    return torch.tensor(predictions)


def random_problem(seed=0, queries=60, samples=150, dim=6, classes=5):
    g = torch.Generator().manual_seed(seed)
    query, bank = torch.randn(queries, dim, generator=g), 3 * torch.randn(samples, dim, generator=g)
    return query, bank, torch.randint(classes, (samples,), generator=g)


def at_cosine(*cosines):
    """Points (n, 2) at the given cosine similarity to (1, 0), of different lengths."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines]) * torch.arange(
        1, len(cosines) + 1
    ).unsqueeze(1)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (150, 0.5)])
def test_equals_the_definition(k, temperature):
    query, bank, labels = random_problem()
    expected = loop_knn(query, bank, labels, 5, k, temperature)
    predictions = knn_predict(query, bank, labels, 5, k, temperature)
    assert predictions.dtype == torch.int64 and torch.equal(predictions, expected)


def test_temperature_decides_between_one_near_and_two_far_neighbors():
    """exp(0.9 / T) against 2 exp(0.5 / T): equal at T = 0.4 / ln 2 = 0.577."""
    query, bank, labels = torch.tensor([[1.0, 0.0]]), at_cosine(0.5, 0.9, 0.5), torch.tensor([0, 1, 0])
    assert knn_predict(query, bank, labels, 2, k=3, temperature=0.55).item() == 1
    assert knn_predict(query, bank, labels, 2, k=3, temperature=0.60).item() == 0


def test_only_the_k_nearest_vote():
    query, bank, labels = (
        torch.tensor([[1.0, 0.0]]),
        at_cosine(0.9, 0.8, 0.7, 0.6, 0.5),
        torch.tensor([1, 0, 0, 2, 2]),
    )
    votes_by_heads = [knn_predict(query, bank, labels, 3, k=k, temperature=100.0).item() for k in (1, 3)]
    assert votes_by_heads == [1, 0]


def test_temperature_extremes():
    query, bank, labels = random_problem()
    nearest = knn_predict(query, bank, labels, 5, k=1)
    assert torch.equal(
        knn_predict(query, bank, labels, 5, k=20, temperature=1e-6), nearest
    )  # exp(1 / T) overflows
    majority = knn_predict(query, bank, labels, 5, k=150, temperature=1e6)
    assert set(majority.tolist()) == {labels.bincount().argmax().item()}


def test_nearest_neighbor_of_a_bank_sample_is_itself():
    _, bank, labels = random_problem()
    assert torch.equal(knn_predict(bank, bank, labels, 5, k=1), labels)


def test_chunk_size_changes_nothing():
    query, bank, labels = random_problem(queries=100)
    expected = knn_predict(query, bank, labels, 5)
    for chunk_size in (1, 7, 99, 100, 101):
        assert torch.equal(knn_predict(query, bank, labels, 5, chunk_size=chunk_size), expected)


def test_length_of_features_and_order_of_bank_do_not_matter():
    query, bank, labels = random_problem()
    expected = knn_predict(query, bank, labels, 5)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    lengths = 10 ** (4 * torch.rand(150, 1, generator=torch.Generator().manual_seed(2)) - 2)
    assert torch.equal(knn_predict(1000 * query, (bank * lengths)[order], labels[order], 5), expected)


def test_known_accuracies():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    assert top1(knn_predict(x[1200:], x[:1200], y[:1200], 10), y[1200:]) > 0.94
    noise = torch.randint(10, y.shape, generator=torch.Generator().manual_seed(0))
    assert top1(knn_predict(x[1200:], x[:1200], noise[:1200], 10), noise[1200:]) == pytest.approx(
        0.1, abs=0.06
    )


def test_float32_inside_autocast_and_inference_mode():
    query, bank, labels = random_problem(queries=300)
    expected = knn_predict(query, bank, labels, 5)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_predict(query, bank, labels, 5), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 151}, "k must be between 1 and the bank's N = 150 samples, got 151"),
        ({"k": 0}, "k must be between 1 and the bank's N = 150 samples, got 0"),
        ({"temperature": 0.0}, r"temperature must be in \(0, inf\), got 0.0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_classes": 4}, "found label 4, but num_classes is 4"),
        ({"bank_labels": torch.full((150,), -1)}, "bank features: 150 of 150 labels are negative"),
        ({"query": torch.zeros(3, 5)}, "query features are 5 wide, bank features 6"),
        ({"query": torch.empty(0, 6)}, "query features: expected a non-empty"),
        ({"query": torch.full((2, 6), math.nan)}, "query features: 2 of 2 rows contain NaN"),
    ],
)
def test_bad_input_is_refused(change, message):
    query, bank, labels = random_problem()
    arguments = {"query": query, "bank": bank, "bank_labels": labels, "num_classes": 5} | change
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)
