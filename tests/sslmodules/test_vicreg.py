"""The three terms against a slow reference and closed forms; which of the conventions it is; the known
mistakes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sslmodules.base import Gathered
from sslmodules.networks import ConvEncoder
from sslmodules.vicreg import VICReg, covariance_term, variance_term, vicreg_loss


def slow_terms(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """The official code's terms, number by number in float64."""
    z1, z2 = z1.double(), z2.double()
    n, d = z1.shape
    invariance = sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = torch.zeros((), dtype=torch.float64)
    for z in (z1, z2):
        mean = z.sum(0) / n
        c = sum(torch.outer(row - mean, row - mean) for row in z) / (n - 1)
        variance = (
            variance + sum(torch.clamp(1 - torch.sqrt(c[j, j] + 1e-4), min=0) for j in range(d)) / d / 2
        )
        covariance = covariance + sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def slow_loss(z1: Tensor, z2: Tensor) -> Tensor:
    terms = slow_terms(z1, z2)
    return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]


def pair(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return 0.8 * z[0], 0.8 * z[0] + 0.3 * z[1]  # some dimensions below a standard deviation of 1, some above


def test_equals_the_slow_reference() -> None:
    z1, z2 = pair()
    terms = vicreg_loss(z1, z2)
    for name, slow in slow_terms(z1, z2).items():
        assert slow > 0
        torch.testing.assert_close(terms[name], slow, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms["loss"], slow_loss(z1, z2), rtol=1e-10, atol=1e-12)


def test_gradient_equals_the_slow_reference() -> None:
    gradients = []
    for loss in (lambda a, b: vicreg_loss(a, b)["loss"], slow_loss):
        a, b = (z.detach().requires_grad_() for z in pair())
        gradients.append(torch.autograd.grad(loss(a, b), (a, b)))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_closed_forms_tell_the_conventions_apart() -> None:
    """Paper, official code and solo-learn differ by D in the invariance and by 2 in the variance: this is the
    official one.
    """
    z = torch.zeros(4, 8)
    far = vicreg_loss(z, z + 3)
    assert far["invariance"].item() == 9  # mean over dimensions; the paper's sum would give 72
    # both views constant: each hinge is 1 - sqrt(eps) = 0.99; half their sum, where paper and solo-learn have
    # 1.98
    assert far["variance"].item() == pytest.approx(0.99)
    # two equal dimensions of unbiased variance 4/3: the two entries beside the diagonal squared, over D, of
    # both views
    z = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None].expand(4, 2)
    assert vicreg_loss(z, z)["covariance"].item() == pytest.approx(2 * 2 * (4 / 3) ** 2 / 2)


def test_variance_is_unbiased_and_eps_is_inside_the_root() -> None:
    z = torch.tensor([[0.5], [-0.5]])  # variance 0.5 with N - 1, 0.25 with N
    assert variance_term(z).item() == pytest.approx(1 - math.sqrt(0.5 + 1e-4))
    assert variance_term(torch.zeros(3, 2)).item() == pytest.approx(1 - 0.01)
    assert variance_term(10 * z).item() == 0  # a hinge: spread beyond 1 is free


def test_weights() -> None:
    z1, z2 = pair()
    terms = vicreg_loss(z1, z2, 2, 3, 5)
    torch.testing.assert_close(
        terms["loss"], 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    )


def test_symmetries() -> None:
    z1, z2 = pair(32)
    loss = vicreg_loss(z1, z2)["loss"]
    torch.testing.assert_close(vicreg_loss(z2, z1)["loss"], loss)
    order = torch.randperm(32)
    torch.testing.assert_close(vicreg_loss(z1[order], z2[order])["loss"], loss)
    torch.testing.assert_close(vicreg_loss(z1 + 3, z2 + 3)["loss"], loss)
    assert not torch.isclose(vicreg_loss(z1[order], z2)["loss"], loss)


def test_projections_are_not_normalized() -> None:
    """Unit vectors of D dimensions have a standard deviation of about 1 / sqrt(D): the hinge would never be
    met.
    """
    z1, _ = pair(64, 16)
    assert variance_term(3 * z1).item() == 0
    assert variance_term(nn.functional.normalize(3 * z1, dim=1)).item() > 0.7


def test_shares_of_two_ranks_average_to_the_whole() -> None:
    """Invariance is of the rank's own rows, statistics are of everybody's; a rank's own statistics are
    others.
    """
    z1, z2 = pair(8)
    whole = vicreg_loss(z1, z2)["loss"]
    halves = [slice(0, 4), slice(4, 8)]
    torch.testing.assert_close(
        sum(vicreg_loss(z1[h], z2[h], gathered=(z1, z2))["loss"] for h in halves) / 2, whole
    )
    assert not torch.isclose(sum(vicreg_loss(z1[h], z2[h])["loss"] for h in halves) / 2, whole)


@pytest.mark.parametrize("n", [1, 3])
def test_a_short_batch_divides_by_its_own_size(n: int) -> None:
    """The last validation batch may have one sample; the official code divides by the configured batch
    size.
    """
    z = torch.randn(n, 4, dtype=torch.float64)
    assert vicreg_loss(z, z)["loss"].isfinite()
    if n > 1:
        torch.testing.assert_close(covariance_term(z), slow_terms(z, z)["covariance"] / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_also_where_features_are_constant(dtype: torch.dtype) -> None:
    """The root's gradient at variance 0 is infinite without eps inside, and a covariance of 900 squared
    overflows float16.
    """
    z1, z2 = ((30 * z).to(dtype).detach() for z in pair(64, 8))
    z1[:, 0] = z2[:, 0] = 1
    z1.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vicreg_loss(z1, z2)["loss"]
    loss.backward()
    assert (
        loss.dtype == torch.float32 and loss.isfinite() and z1.grad is not None and z1.grad.isfinite().all()
    )
    torch.testing.assert_close(loss.double(), slow_loss(z1, z2), rtol=1e-4, atol=0)


def module_with(**options: object) -> VICReg:
    knobs = {
        "projector_hidden": 16,
        "projector_out": 8,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        **options,
    }
    return VICReg(ConvEncoder(1, (4, 8)), **knobs)  # type: ignore[arg-type]


def test_the_loss_gathers_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, played one after the other: the mean of their gradients is that of one process."""
    module = module_with().double().eval()  # batch statistics of the network would differ between the halves
    views = [torch.randn(16, 1, 8, 8, dtype=torch.float64) for _ in range(2)]
    parameters = list(module.parameters())
    expected = torch.autograd.grad(module.losses({"views": views})["loss"], parameters)
    total = [torch.zeros_like(p) for p in parameters]
    for half in (slice(0, 8), slice(8, 16)):
        everyone = iter([module.projector(module.encoder(view)) for view in views])
        monkeypatch.setattr(module, "gather", lambda z, everyone=everyone: Gathered(next(everyone), 0))
        loss = module.losses({"views": [view[half] for view in views]})["loss"]
        total = [t + g / 2 for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
    for got, right in zip(total, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("invariance_weight", -1.0),
        ("variance_weight", -2.0),
        ("covariance_weight", -0.5),
        ("projector_hidden", 0),
        ("projector_out", 1),
        ("projector_layers", 0),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module_with(**{knob: value})
    if knob.endswith("weight"):
        with pytest.raises(ValueError, match=rf"{knob} must be at least 0, got {value}"):
            vicreg_loss(*pair(), **{knob: value})


def test_projector_ends_bare() -> None:
    """No batch norm after the last layer: it would fix every variance at 1 and leave the hinge nothing to
    do.
    """
    kinds = [type(layer).__name__ for layer in module_with().projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert module_with().projector[-1].bias is None
