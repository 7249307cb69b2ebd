"""Probes that run only if named: known answers."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from evaluation.measures import measures
from evaluation.probes import probes
from evaluation.probes.clustering import clusters
from evaluation.probes.retrieval import retrieval
from evaluation.report import evaluate, named_measures, named_probes
from tests.conftest import build
from tests.evaluation.test_report import shown

NAMES = ("clustering", "retrieval", "calibration")


def test_the_default_set_is_as_it_was() -> None:
    assert [probe.name for probe in named_probes(None)] == ["linear", "knn", "fewshot"]
    assert list(probes()) == ["linear", "knn", "fewshot", *NAMES]
    assert [name for name in named_measures(()) if measures()[name].by_name] == []
    with pytest.raises(ValueError, match=r"^measures must be one of .*, got 'colapse'"):
        named_measures(["colapse"])


def test_they_have_the_baselines_beside_them() -> None:
    module, data = build("configs/digits/simclr.yaml")
    report = evaluate(module, module, data, "x.ckpt", probes=NAMES)
    keys = ["clustering_nmi", "clustering_ari", "retrieval_recall1", "retrieval_map", "calibration_ece"]
    assert {name: list(row) for name, row in report["results"].items()} == {
        "pretrained": keys,
        "random_init": keys,
        "raw_input": keys,
    }
    assert report["failed"] == {}
    assert {name: report["protocol"][name] for name in ("clustering_starts", "calibration_bins")} == {
        "clustering_starts": 10,
        "calibration_bins": 15,
    }
    text = shown(report)
    for heading in ("NMI", "ARI", "recall@1", "mAP", "calibration error"):
        assert heading in text


# ---- clustering --------------------------------------------------------------------------------------------


def corners(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(3 n, 3) points near the axes, and the axis of each."""
    labels = torch.arange(3).repeat_interleave(n)
    return torch.eye(3)[labels] * 5 + 0.1 * torch.randn(3 * n, 3, generator=generator), labels


def test_clusters_that_are_the_classes_and_two_classes_in_one() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = corners(30, generator), corners(20, generator)
    found = clusters(train[0], test[0], 3)
    assert len({(int(a), int(b)) for a, b in zip(found, test[1], strict=True)}) == 3
    scores, _ = probes()["clustering"].score(train, train, test, 3)
    assert scores == {"clustering_nmi": pytest.approx(1), "clustering_ari": pytest.approx(1)}
    # of classes 0, 0, 1 in three clusters: H(labels) = ln 3 - 2/3 ln 2, H(clusters) = ln 3, both given once
    merged = (test[0], test[1].clamp(min=1) - 1)
    scores, _ = probes()["clustering"].score(train, train, merged, 3)
    entropy = math.log(3) - 2 / 3 * math.log(2)
    assert scores["clustering_nmi"] == pytest.approx(2 * entropy / (entropy + math.log(3)), abs=1e-5)
    # pairs: in one cluster 3 * C(20, 2) = 570, in one class C(40, 2) + C(20, 2) = 970, in both 570, of 1770
    chance = 570 * 970 / 1770
    assert scores["clustering_ari"] == pytest.approx((570 - chance) / ((570 + 970) / 2 - chance), abs=1e-5)


# ---- retrieval ---------------------------------------------------------------------------------------------


def test_retrieval_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]])
    labels = torch.tensor([1, 0, 0, 1])
    # the bank from the nearest: 1, 0, 0, 1. Class 0: (1/2 + 2/3) / 2; class 1: (1 + 2/4) / 2; class 2: none
    query = torch.tensor([[2.0, 0.0]] * 3)
    recall, precision = retrieval(query, torch.tensor([0, 1, 2]), bank, labels)
    assert recall == pytest.approx(1 / 3)
    assert precision == pytest.approx(((1 / 2 + 2 / 3) / 2 + (1 + 2 / 4) / 2 + 0) / 3)


def test_mean_average_precision_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, bank = torch.randn(11, 4, generator=generator), torch.randn(40, 4, generator=generator)
    wanted, labels = torch.arange(11) % 3, torch.arange(40) % 3
    similarity = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(bank).T
    rows = zip(wanted, similarity, strict=True)
    expected = [average_precision_score((labels == w).numpy(), s.numpy()) for w, s in rows]
    assert retrieval(query, wanted, bank, labels)[1] == pytest.approx(sum(expected) / 11)
    monkeypatch.setattr("evaluation.probes.retrieval.QUERIES", 4)
    assert retrieval(query, wanted, bank, labels)[1] == pytest.approx(sum(expected) / 11)


# ---- calibration -------------------------------------------------------------------------------------------


def test_calibration_of_a_probe_that_is_too_certain() -> None:
    """Fitted to classes that a feature separates without an error; in test a quarter of them are others."""
    x = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    y = torch.tensor([0, 1]).repeat(50)
    wrong = torch.where(torch.arange(100) < 25, 1 - y, y)
    right, _ = probes()["calibration"].score((x, y), (x, y), (x, y), 2)
    scores, chosen = probes()["calibration"].score((x, y), (x, y), (x, wrong), 2)
    certainty = 1 - right["calibration_ece"]  # all in one bin, and all right
    assert 0.9 < certainty < 1
    assert scores["calibration_ece"] == pytest.approx(certainty - 0.75, abs=1e-6)
    assert chosen == {"calibration_l2": 1e-2}
