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


def slow_terms(*z: Tensor) -> dict[str, Tensor]:
    """The official code's terms, number by number in float64; for more than two views VICRegL's, where the
    covariance is half of this: a mean.
    """
    views = [view.double() for view in z]
    n, d = views[0].shape
    pairs = [(g, v) for g in range(2) for v in range(len(views)) if v != g]
    assert len(pairs) == 2 * (len(views) - 1)
    places = [(views[g][i, j], views[v][i, j]) for g, v in pairs for i in range(n) for j in range(d)]
    invariance = sum((one - two) ** 2 for one, two in places) / len(places)
    variance = covariance = torch.zeros((), dtype=torch.float64)
    for view in views:
        mean = view.sum(0) / n
        c = sum(torch.outer(row - mean, row - mean) for row in view) / (n - 1)
        hinges = [torch.clamp(1 - torch.sqrt(c[j, j] + 1e-4), min=0) for j in range(d)]
        variance = variance + sum(hinges) / d / len(views)
        squares = [c[i, j] ** 2 for i in range(d) for j in range(d) if i != j]
        covariance = covariance + 2 * sum(squares) / d / len(views)
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def slow_loss(*z: Tensor) -> Tensor:
    terms = slow_terms(*z)
    return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]


def several(v: int, n: int = 6, d: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(v, n, d, generator=generator, dtype=torch.float64)
    # some dimensions below a standard deviation of 1, some above
    return [0.8 * z[0], *(0.8 * z[0] + 0.3 * other for other in z[1:])]


def pair(n: int = 6, d: int = 5, seed: int = 0) -> list[Tensor]:
    return several(2, n, d, seed)


@pytest.mark.parametrize("v", [2, 3, 4])
def test_value_and_gradient_equal_the_slow_reference(v: int) -> None:
    terms = vicreg_loss(several(v))
    for name, slow in slow_terms(*several(v)).items():
        assert slow > 0
        torch.testing.assert_close(terms[name], slow, rtol=1e-10, atol=1e-12)
    gradients = []
    for loss in (lambda *z: vicreg_loss(z)["loss"], slow_loss):
        z = [view.requires_grad_() for view in several(v)]
        value = loss(*z)
        torch.testing.assert_close(value, terms["loss"], rtol=1e-10, atol=1e-12)
        gradients.append(torch.autograd.grad(value, z))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_two_views_are_as_before_bit_for_bit() -> None:
    """The loss of two views as it was written for two, whose results are published."""

    def two_views(z1: Tensor, z2: Tensor) -> Tensor:
        invariance = nn.functional.mse_loss(z1, z2)
        variance = (variance_term(z1) + variance_term(z2)) / 2
        covariance = covariance_term(z1) + covariance_term(z2)
        return 25.0 * invariance + 25.0 * variance + 1.0 * covariance

    results = []
    for loss in (two_views, lambda *z: vicreg_loss(z)["loss"]):
        z = [view.float().requires_grad_() for view in pair(64, 32)]
        value = loss(*z)
        results.append((value, *torch.autograd.grad(value, z)))
    for before, now in zip(*results, strict=True):
        assert torch.equal(before, now)


def test_more_views_in_closed_form() -> None:
    """Views at 0, 1, 3 and 6: the pairs with one of the first two are (0, 1) twice, (0, 3), (0, 6), (1, 3)
    and (1, 6).
    """
    terms = vicreg_loss([torch.full((4, 8), float(place)) for place in (0, 1, 3, 6)])
    assert terms["invariance"].item() == pytest.approx((2 * 1 + 9 + 36 + 4 + 25) / 6)
    assert terms["variance"].item() == pytest.approx(0.99) and terms["covariance"].item() == 0
    z = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None].expand(4, 2)
    assert vicreg_loss([z] * 5)["covariance"].item() == pytest.approx(2 * 2 * (4 / 3) ** 2 / 2)


def test_equal_views_add_nothing() -> None:
    """With the weights of two views, more copies of a pair's views leave every term but the invariance."""
    z1, z2 = pair()
    two, four = vicreg_loss((z1, z2)), vicreg_loss((z1, z2, z1, z2))
    for term in ("variance", "covariance"):
        torch.testing.assert_close(four[term], two[term])
    torch.testing.assert_close(four["invariance"], two["invariance"] * 4 / 6)


def test_closed_forms_tell_the_conventions_apart() -> None:
    """Paper, official code and solo-learn differ by D in the invariance and by 2 in the variance: this is the
    official one.
    """
    z = torch.zeros(4, 8)
    far = vicreg_loss((z, z + 3))
    assert far["invariance"].item() == 9  # mean over dimensions; the paper's sum would give 72
    # both views constant: each hinge is 1 - sqrt(eps) = 0.99; half their sum, where paper and solo-learn have
    # 1.98
    assert far["variance"].item() == pytest.approx(0.99)
    # two equal dimensions of unbiased variance 4/3: the two entries beside the diagonal squared, over D, of
    # both views
    z = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None].expand(4, 2)
    assert vicreg_loss((z, z))["covariance"].item() == pytest.approx(2 * 2 * (4 / 3) ** 2 / 2)


def test_variance_is_unbiased_and_eps_is_inside_the_root() -> None:
    z = torch.tensor([[0.5], [-0.5]])  # variance 0.5 with N - 1, 0.25 with N
    assert variance_term(z).item() == pytest.approx(1 - math.sqrt(0.5 + 1e-4))
    assert variance_term(torch.zeros(3, 2)).item() == pytest.approx(1 - 0.01)
    assert variance_term(10 * z).item() == 0  # a hinge: spread beyond 1 is free


def test_weights() -> None:
    z1, z2 = pair()
    terms = vicreg_loss((z1, z2), 2, 3, 5)
    torch.testing.assert_close(
        terms["loss"], 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    )


def test_symmetries() -> None:
    z1, z2 = pair(32)
    loss = vicreg_loss((z1, z2))["loss"]
    torch.testing.assert_close(vicreg_loss((z2, z1))["loss"], loss)
    order = torch.randperm(32)
    torch.testing.assert_close(vicreg_loss((z1[order], z2[order]))["loss"], loss)
    torch.testing.assert_close(vicreg_loss((z1 + 3, z2 + 3))["loss"], loss)
    assert not torch.isclose(vicreg_loss((z1[order], z2))["loss"], loss)


def test_projections_are_not_normalized() -> None:
    """Unit vectors of D dimensions have a standard deviation of about 1 / sqrt(D): the hinge would never be
    met.
    """
    z1, _ = pair(64, 16)
    assert variance_term(3 * z1).item() == 0
    assert variance_term(nn.functional.normalize(3 * z1, dim=1)).item() > 0.7


@pytest.mark.parametrize("v", [2, 4])
def test_shares_of_two_ranks_average_to_the_whole(v: int) -> None:
    """Invariance is of the rank's own rows, statistics are of everybody's; a rank's own statistics are
    others.
    """
    z = several(v, 8)
    whole, halves = vicreg_loss(z)["loss"], [[view[:4] for view in z], [view[4:] for view in z]]
    torch.testing.assert_close(sum(vicreg_loss(half, gathered=z)["loss"] for half in halves) / 2, whole)
    assert not torch.isclose(sum(vicreg_loss(half)["loss"] for half in halves) / 2, whole)


@pytest.mark.parametrize("n", [1, 3])
def test_a_short_batch_divides_by_its_own_size(n: int) -> None:
    """The last validation batch may have one sample; the official code divides by the configured batch
    size.
    """
    z = torch.randn(n, 4, dtype=torch.float64)
    assert vicreg_loss((z, z))["loss"].isfinite()
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
        loss = vicreg_loss((z1, z2))["loss"]
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


def test_fewer_than_two_views_are_refused() -> None:
    with pytest.raises(ValueError, match="views must be at least 2, got 1"):
        vicreg_loss(pair()[:1])


@pytest.mark.parametrize("v", [2, 4])
def test_the_loss_gathers_with_gradients(v: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, played one after the other: the mean of their gradients is that of one process."""
    module = module_with().double().eval()  # batch statistics of the network would differ between the halves
    views = [torch.randn(16, 1, 8, 8, dtype=torch.float64) for _ in range(v)]
    parameters = list(module.parameters())
    whole = module.losses({"views": views})["loss"]
    z = [module.projector(module.encoder(view)) for view in views]
    torch.testing.assert_close(whole, vicreg_loss(z)["loss"])
    expected = torch.autograd.grad(whole, parameters)
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
            vicreg_loss(pair(), **{knob: value})


def test_projector_ends_bare() -> None:
    """No batch norm after the last layer: it would fix every variance at 1 and leave the hinge nothing to
    do.
    """
    kinds = [type(layer).__name__ for layer in module_with().projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert module_with().projector[-1].bias is None
