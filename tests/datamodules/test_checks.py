"""Range checks: one wording, NaN is never in range, what is not given passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from datamodules import checks
from datamodules.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.check_positive(lr=0), "lr must be positive, got 0"),
        (lambda: checks.check_positive(lr=NAN), "lr must be positive, got nan"),
        (lambda: checks.check_positive(std=(1, 0)), "std must be positive, got (1, 0)"),
        (lambda: checks.check_at_least(2, n=3, m=1), "m must be at least 2, got 1"),
        (lambda: checks.check_at_least(0, n=NAN), "n must be at least 0, got nan"),
        (lambda: checks.check_within(0, 1, p=1.5), "p must be in [0, 1], got 1.5"),
        (lambda: checks.check_within(0, 1, "[)", p=1), "p must be in [0, 1), got 1"),
        (lambda: checks.check_within(0, 1, "()", p=0), "p must be in (0, 1), got 0"),
        (lambda: checks.check_within(0, 1, p=NAN), "p must be in [0, 1], got nan"),
        (lambda: checks.check_one_of(("a", "b"), kind="c"), "kind must be one of a, b, got 'c'"),
        (lambda: checks.check_layers(hidden=()), "hidden must be at least one width of 1 or more, got ()"),
        (
            lambda: checks.check_layers(hidden=[2, 0]),
            "hidden must be at least one width of 1 or more, got [2, 0]",
        ),
        (lambda: checks.check(False, "n", "even", 3), "n must be even, got 3"),
    ],
)
def test_a_range_check_has_one_wording(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == message


def test_what_is_in_range_or_not_given_passes() -> None:
    checks.check_positive(lr=0.1, std=(1, 2), other=None)
    checks.check_at_least(0, n=0, m=None)
    checks.check_within(0, 1, p=0, q=1, r=None)
    checks.check_within(0, 1, "[)", p=0)
    checks.check_one_of(("a", "b"), kind="a", other=None)
    checks.check_layers(hidden=[1])
