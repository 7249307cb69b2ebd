"""The linear probe against known answers, the first-order condition of its objective, and scikit-learn."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from evaluation.accuracy import top1
from evaluation.probes.linear import feature_statistics, fit_linear_probe, select_linear_probe


def gaussian_classes(n, dim=16, classes=4, distance=1.0, seed=0):
    """Overlapping Gaussian classes: features (n, dim) and labels (n,). Means depend on neither n nor seed."""
    means = distance * torch.randn(classes, dim, generator=torch.Generator().manual_seed(1234))
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return means[labels] + torch.randn(n, dim, generator=g), labels


def sklearn_split(loader, seed=0):
    """Half of a scikit-learn data set to fit on, half to score: (train x, train y, test x, test y)."""
    x, y = loader(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    half = len(x) // 2
    return x[order[:half]], y[order[:half]], x[order[half:]], y[order[half:]]


def test_separable_classes_are_learnt_perfectly():
    x, y = gaussian_classes(400, distance=10)
    probe = fit_linear_probe(x, y, 4)
    assert top1(probe.predict(x), y) == 1.0
    test_x, test_y = gaussian_classes(400, distance=10, seed=1)
    assert top1(probe.predict(test_x), test_y) == 1.0


def test_labels_without_any_signal_give_chance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 20, generator=g), torch.randint(10, (4000,), generator=g)
    probe = fit_linear_probe(x[:2000], y[:2000], 10)
    assert top1(probe.predict(x[2000:]), y[2000:]) == pytest.approx(0.1, abs=0.03)  # 4.5 standard errors


def test_no_features_to_use_gives_the_class_frequencies():
    """With constant features only the bias acts, and its optimum is the log of the class frequencies."""
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    probe = fit_linear_probe(torch.full((10, 3), 0.1), y, 3)
    p = probe.logits(torch.full((1, 3), 0.1)).softmax(dim=1)
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.3, 0.2]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [300, 1024, 2500])  # below, equal to and above one block of rows
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_gradient_of_the_stated_objective_vanishes_at_the_solution(n, l2):
    """Mean cross-entropy + l2/2 ||W||^2, bias free, written with autograd in float64: the second
    implementation.
    """
    x, y = gaussian_classes(n)
    probe = fit_linear_probe(x, y, 4, l2=l2)
    standardized = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    weight, bias = (t.double().requires_grad_() for t in (probe.weight, probe.bias))
    loss = F.cross_entropy(standardized @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    assert weight.abs().max() > 0.05


@pytest.mark.parametrize("loader", [load_digits, load_iris, load_wine, load_breast_cancer])
@pytest.mark.parametrize("l2", [1e-1, 1e-2])
def test_weights_and_accuracy_equal_scikit_learn(loader, l2):
    x, y, test_x, test_y = sklearn_split(loader)
    classes = int(y.max()) + 1
    probe = fit_linear_probe(x, y, classes, l2=l2)
    mean, std = feature_statistics(x)
    # scikit-learn minimizes C * summed loss + ||W||^2 / 2; for two classes W is one vector, the difference of
    # ours.
    c = (2 if classes == 2 else 1) / (l2 * len(x))
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(((x - mean) / std).numpy(), y.numpy())
    weight = probe.weight if classes > 2 else probe.weight[1:] - probe.weight[:1]
    bias = probe.bias - probe.bias.mean() if classes > 2 else probe.bias[1:] - probe.bias[:1]
    expected = torch.tensor(theirs.coef_, dtype=torch.float32)
    assert (weight - expected).norm() < 3e-3 * expected.norm()
    intercept = torch.tensor(theirs.intercept_, dtype=torch.float32)
    torch.testing.assert_close(bias, intercept - intercept.mean() * (classes > 2), atol=5e-3, rtol=5e-3)
    accuracy = theirs.score(((test_x - mean) / std).numpy(), test_y.numpy())
    assert top1(probe.predict(test_x), test_y) == pytest.approx(accuracy, abs=0.003)


@pytest.mark.parametrize("l2", [1e-3, 1e-5])
def test_accuracy_equals_scikit_learn_on_digits_with_weak_l2(l2):
    x, y, test_x, test_y = sklearn_split(load_digits)
    mean, std = feature_statistics(x)
    # Its default tolerance stops far from the optimum when l2 is weak.
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-7, max_iter=2000).fit(
        ((x - mean) / std).numpy(), y.numpy()
    )
    accuracy = theirs.score(((test_x - mean) / std).numpy(), test_y.numpy())
    assert top1(fit_linear_probe(x, y, 10, l2=l2).predict(test_x), test_y) == pytest.approx(
        accuracy, abs=0.003
    )


def test_scale_and_offset_of_each_feature_do_not_matter_when_standardized():
    x, y = gaussian_classes(600)
    g = torch.Generator().manual_seed(2)
    scale, shift = 10 ** (6 * torch.rand(16, generator=g) - 3), 5 * torch.randn(16, generator=g)
    moved = (x + shift) * scale
    logits = fit_linear_probe(x, y, 4, l2=1e-2).logits(x)
    torch.testing.assert_close(
        fit_linear_probe(moved, y, 4, l2=1e-2).logits(moved), logits, atol=5e-3, rtol=1e-2
    )
    raw = fit_linear_probe(moved, y, 4, l2=1e-2, standardize=False).logits(moved)
    assert (raw - logits).abs().max() > 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_constant_feature_changes_nothing(value):
    x, y = gaussian_classes(600)
    with_constant = torch.cat([x, torch.full((600, 1), value)], dim=1)
    probe = fit_linear_probe(with_constant, y, 4)
    assert probe.weight.isfinite().all() and probe.weight[:, -1].abs().max() < 1e-2
    shifted = with_constant.clone()
    shifted[:, -1] += 1e-3 * value  # not blown up by a division by (almost) zero
    torch.testing.assert_close(probe.logits(shifted), probe.logits(with_constant), atol=2e-2, rtol=0)


def test_tiny_but_varying_features_count():
    x, y = gaussian_classes(400, distance=10)
    assert top1(fit_linear_probe(x * 1e-12, y, 4).predict(x * 1e-12), y) == 1.0


def test_class_without_training_examples_is_never_predicted():
    x, y = gaussian_classes(400, distance=10)
    probe = fit_linear_probe(x, y, 7)
    assert probe.weight.shape == (7, 16) and set(probe.predict(x).tolist()) == {0, 1, 2, 3}


def test_same_result_in_validation_contexts():
    """Lightning validates in inference mode and autocast; neither may change the probe, nor the probe the
    features.
    """
    x, y = gaussian_classes(300)
    expected = fit_linear_probe(x, y, 4)
    expected_logits = expected.logits(x)
    torch.manual_seed(99)  # the global generator is neither used nor moved
    state = torch.get_rng_state()
    with torch.inference_mode():
        inside = fit_linear_probe(x.clone(), y.clone(), 4)
        assert torch.equal(inside.weight, expected.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fit_linear_probe(x, y, 4)
        assert torch.equal(inside.weight, expected.weight)
        assert torch.equal(inside.logits(x), expected_logits)
    leaf = x.clone().requires_grad_()
    probe = fit_linear_probe(leaf, y, 4)
    assert torch.equal(probe.weight, expected.weight)
    assert leaf.grad is None and torch.equal(leaf, x)
    assert (
        not probe.weight.requires_grad and probe.weight.grad is None and not probe.logits(leaf).requires_grad
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_features():
    x, y = gaussian_classes(400, distance=10)
    probe = fit_linear_probe(x.bfloat16(), y.int(), 4)
    assert probe.weight.dtype == torch.float32
    assert top1(probe.predict(x.bfloat16()), y) == 1.0


def test_selection_follows_the_validation_split():
    """Few samples with noisy labels: weak l2 learns the noise by heart, validation sees through it."""
    g = torch.Generator().manual_seed(0)
    x, y = gaussian_classes(300, dim=100, distance=0.3)
    y = torch.where(torch.rand(300, generator=g) < 0.3, torch.randint(4, (300,), generator=g), y)
    val_x, val_y = gaussian_classes(2000, dim=100, distance=0.3, seed=1)
    grid = (1e-5, 1.0, 1e-1)
    accuracies = {l2: top1(fit_linear_probe(x, y, 4, l2=l2).predict(val_x), val_y) for l2 in grid}
    probe, l2 = select_linear_probe(x, y, val_x, val_y, 4, grid)
    assert l2 == max(accuracies, key=accuracies.get) and l2 > 1e-5
    assert top1(probe.predict(val_x), val_y) == pytest.approx(accuracies[l2], abs=0.003)
    # With the training split itself as the validation split, the weakest one would have won.
    assert select_linear_probe(x, y, x, y, 4, grid)[1] == 1e-5


def test_selection_gives_ties_to_the_stronger_l2():
    x, y = gaussian_classes(400, distance=10)
    probe, l2 = select_linear_probe(x, y, x, y, 4, (1e-4, 1e-2, 1e-3))
    assert l2 == 1e-2
    assert torch.equal(
        probe.weight, fit_linear_probe(x, y, 4, l2=1e-2).weight
    )  # the strongest starts from zero


def test_selection_standardizes_by_the_training_split():
    x, y = gaussian_classes(400)
    probe, _ = select_linear_probe(x, y, 5 * x[:50] + 3, y[:50], 4)
    assert torch.equal(probe.mean, feature_statistics(x)[0]) and torch.equal(
        probe.std, feature_statistics(x)[1]
    )


def test_selection_cannot_see_a_test_split():
    parameters = list(inspect.signature(select_linear_probe).parameters)
    assert not any("test" in name for name in parameters)
    assert parameters[:5] == ["train_features", "train_labels", "val_features", "val_labels", "num_classes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["labels"].__setitem__(slice(0, 3), -1), "3 of 8 labels are negative"),
        (lambda a: a["labels"].__setitem__(0, 4), "found label 4, but num_classes is 4"),
        (lambda a: a["features"].__setitem__((0, 1), math.nan), "1 of 8 rows contain NaN"),
        (lambda a: a["features"].__setitem__((2, 1), math.inf), "1 of 8 rows contain NaN or infinity"),
        (
            lambda a: a.update(features=torch.empty(0, 3), labels=torch.empty(0, dtype=torch.long)),
            "non-empty",
        ),
        (lambda a: a.update(features=torch.zeros(8)), "non-empty"),
        (lambda a: a.update(features=torch.zeros(8, 3, dtype=torch.long)), "floating-point"),
        (lambda a: a.update(labels=torch.zeros(7, dtype=torch.long)), r"expected 8 labels, got shape \(7,\)"),
        (lambda a: a.update(labels=torch.zeros(8)), "must be integers"),
        (lambda a: a.update(features=1e25 * torch.randn(8, 3)), "too large to standardize"),
        (lambda a: a.update(l2=-1.0), r"l2 must be in \[0, inf\), got"),
        (lambda a: a.update(l2=math.nan), r"l2 must be in \[0, inf\), got"),
        (lambda a: a.update(max_iterations=0), "max_iterations must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"features": torch.randn(8, 3), "labels": torch.arange(8) % 4, "num_classes": 4}
    change(arguments)
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(**arguments)


def test_bad_selection_input_is_refused():
    x, y = gaussian_classes(20)
    with pytest.raises(ValueError, match="l2_grid must be at least one value, got"):
        select_linear_probe(x, y, x, y, 4, ())
    with pytest.raises(ValueError, match="train features are 16 wide, val features 15"):
        select_linear_probe(x, y, x[:, :15], y, 4)
    with pytest.raises(ValueError, match="val features: 20 of 20 labels are negative"):
        select_linear_probe(x, y, x, torch.full_like(y, -1), 4)
