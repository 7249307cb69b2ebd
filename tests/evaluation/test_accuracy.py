"""Accuracies against values worked out by hand and a sample-by-sample count."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

import evaluation.accuracy
from evaluation.accuracy import accuracies, top1


def test_top1_by_hand() -> None:
    assert top1(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 1])) == 0.5
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        top1(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        top1(torch.zeros(0), torch.zeros(0))


def test_always_the_common_class() -> None:
    """95 to 5: top-1 looks good, the macro accuracy shows that nothing is known."""
    scores = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    assert accuracies(scores, torch.tensor([0] * 95 + [1] * 5)) == {"top1": 0.95, "macro": 0.5}


def test_a_class_without_samples_does_not_count() -> None:
    """Also when it is predicted: torchmetrics' macro average would count it as 0."""
    scores = torch.eye(4)[[0, 0, 1, 3]]
    assert accuracies(scores, torch.tensor([0, 0, 1, 1])) == {"top1": 0.75, "macro": 0.75}


@pytest.mark.parametrize("chunk", [7, 4096])
def test_equal_to_scikit_learn(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.accuracy, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 30, (200,), generator=generator)
    scores = torch.randn(200, 30, generator=generator) + 2 * torch.eye(30)[labels]
    found = accuracies(scores, labels)
    assert found == {
        "top1": top1(scores.argmax(1), labels),
        "macro": pytest.approx(balanced_accuracy_score(labels, scores.argmax(1))),
        "top5": pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(30))),
    }
    assert 0.1 < found["top1"] < found["top5"] < 1


def test_top5_only_where_there_are_many_classes() -> None:
    labels = torch.arange(20)
    assert set(accuracies(torch.eye(20), labels)) == {"top1", "macro"}
    assert accuracies(torch.eye(21)[:20], labels) == {"top1": 1.0, "macro": 1.0, "top5": 1.0}
