"""The few-shot probe: known answers, the draws, and which statistics standardize."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import evaluation.probes.few_shot
from evaluation.accuracy import top1
from evaluation.probes.few_shot import FewShotProbe, fit_few_shot_probes
from evaluation.probes.linear import feature_statistics, fit_linear_probe


def few_shot_accuracy(train_features, train_labels, test_features, test_labels, num_classes, **options):
    """Top-1 accuracy of the probe of each draw."""
    fitted = fit_few_shot_probes(train_features, train_labels, num_classes, **options)
    return [top1(probe.predict(test_features), test_labels) for probe in fitted]


def two_blobs(n, distance, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return torch.randn(n, 8, generator=g) + distance * (2 * y.unsqueeze(1) - 1), y


@pytest.fixture
def fits(monkeypatch):
    """Records the (features, labels) of every probe that is fitted."""
    calls = []

    def record(features, labels, *args, **kwargs):
        calls.append((features, labels))
        return fit_linear_probe(features, labels, *args, **kwargs)

    monkeypatch.setattr(evaluation.probes.few_shot, "fit_linear_probe", record)
    return calls


def test_separable_classes_need_one_shot():
    accuracies = few_shot_accuracy(*two_blobs(50, 5.0, 0), *two_blobs(100, 5.0, 1), num_classes=2, shots=1)
    assert accuracies == [1.0] * 10


def test_no_signal_gives_chance():
    accuracies = few_shot_accuracy(*two_blobs(200, 0.0, 0), *two_blobs(1000, 0.0, 1), num_classes=2)
    assert sum(accuracies) / 10 == pytest.approx(0.5, abs=0.03)


def test_raw_digits_pixels_give_the_known_five_shot_accuracy():
    """An independent prototype measured 0.844 on raw pixels with the split 1077 / 360 / 360."""
    x, y = load_digits(return_X_y=True)
    means = []
    for seed in range(3):
        rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=360, stratify=y, random_state=seed)
        train_x, _, train_y, _ = train_test_split(
            rest_x, rest_y, test_size=360, stratify=rest_y, random_state=seed
        )
        arrays = [torch.tensor(a) for a in (train_x, train_y, test_x, test_y)]
        accuracies = few_shot_accuracy(*arrays, num_classes=10)
        means.append(sum(accuracies) / len(accuracies))
    assert sum(means) / 3 == pytest.approx(0.844, abs=0.02)


def test_every_draw_holds_the_shots_of_every_class(fits):
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    x[:, 0] = torch.arange(90)  # tells which sample it is
    few_shot_accuracy(x, y, x, y, num_classes=3, shots=7, draws=4)
    assert len(fits) == 4
    drawn = []
    for features, labels in fits:
        assert labels.bincount().tolist() == [7, 7, 7]
        samples = features[:, 0] * x[:, 0].std(correction=0) + x[:, 0].mean()
        assert len(samples.round().unique()) == 21  # without replacement
        assert torch.equal(samples.round().long() % 3, labels)  # features and labels still belong together
        drawn.append(frozenset(samples.round().tolist()))
    assert len(set(drawn)) == 4


def test_all_training_features_standardize(fits):
    """Not the shots, and not the test features, which have another scale and offset here."""
    x, y = two_blobs(100, 1.0, 0)
    mean, std = feature_statistics(x)
    few_shot_accuracy(x, y, 3 * x + 1, y, num_classes=2, shots=2, draws=1)
    restored = fits[0][0] * std + mean
    distances = (restored.unsqueeze(1) - x).norm(dim=2).min(dim=1).values  # to the nearest training sample
    assert distances.max() < 1e-4


def test_seed_decides_the_draws_and_more_draws_keep_the_first():
    arrays = (*two_blobs(60, 0.4, 0), *two_blobs(500, 0.4, 1))
    first = few_shot_accuracy(*arrays, num_classes=2, draws=3)
    torch.rand(7)  # the global generator plays no part
    assert few_shot_accuracy(*arrays, num_classes=2, draws=5)[:3] == first
    assert few_shot_accuracy(*arrays, num_classes=2, draws=3, seed=1) != first


def test_draws_do_not_depend_on_the_features(fits):
    y = torch.arange(40) % 2
    identity = torch.arange(40.0).unsqueeze(1)
    few_shot_accuracy(identity, y, identity, y, num_classes=2, draws=1)
    few_shot_accuracy(-8 * identity, y, identity, y, num_classes=2, draws=1)
    torch.testing.assert_close(fits[0][0], -fits[1][0])


def test_exactly_as_many_examples_as_shots_suffice():
    x, y = two_blobs(10, 5.0, 0)
    assert len(set(few_shot_accuracy(x, y, x, y, num_classes=2, shots=5))) == 1  # every draw is the whole set


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 6}, "class 0 has 5 training examples, 6-shot needs at least 6"),
        ({"num_classes": 3}, "class 2 has 0 training examples, 5-shot needs at least 5"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"l2": -1.0}, r"l2 must be in \[0, inf\), got"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, y = two_blobs(10, 5.0, 0)
    with pytest.raises(ValueError, match=message):
        fit_few_shot_probes(x, y, **({"num_classes": 2} | change))


def test_classes_with_too_few_samples_are_named():
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 5)
    probe, enough = FewShotProbe(), torch.arange(15) % 3
    needed = "labeled training samples, but 5 per class are needed"
    assert probe.obstacle(enough, "abc") is None
    assert probe.obstacle(labels, "abc") == f"class 'b' has 4 {needed}"
    assert probe.obstacle(labels, "abcd") == f"class 'b' has 4 {needed} (2 classes have too few)"
