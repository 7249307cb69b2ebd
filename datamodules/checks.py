"""Range checks for options, with one wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.errors import ConfigError


def check(holds: bool, name: str, expected: str, value: Any) -> None:
    """Raise ``ConfigError("NAME must be EXPECTED, got VALUE")`` unless ``holds``."""
    if not holds:
        raise ConfigError(f"{name} must be {expected}, got {value!r}", option=name)


def check_positive(**values: Any) -> None:
    """Check that each number, or each in a sequence, is above 0: ``check_positive(lr=lr)``."""
    for name, value in values.items():
        check(all(x > 0 for x in _numbers(value)), name, "positive", value)


def check_at_least(least: float, **values: Any) -> None:
    """Check that each number, or each in a sequence, is ``least`` or more."""
    for name, value in values.items():
        check(all(x >= least for x in _numbers(value)), name, f"at least {least}", value)


def check_within(low: float, high: float, ends: str = "[]", **values: Any) -> None:
    """Check that each number, or each in a sequence, is between ``low`` and ``high``.

    Args:
        low, high: the ends of the interval.
        ends: ``[`` and ``]`` include an end, ``(`` and ``)`` exclude it.
        values: the numbers by name.
    """
    expected = f"in {ends[0]}{low}, {high}{ends[1]}"
    for name, value in values.items():
        inside = all(
            low <= x <= high and (ends[0] == "[" or x > low) and (ends[1] == "]" or x < high)
            for x in _numbers(value)
        )
        check(inside, name, expected, value)


def check_layers(**widths: Sequence[int]) -> None:
    """Check that each sequence has at least one layer and each layer a width of at least 1."""
    for name, value in widths.items():
        check(len(value) > 0 and min(value) >= 1, name, "at least one width of 1 or more", value)


def check_one_of(choices: Sequence[Any], **values: Any) -> None:
    """Check that each value is one of ``choices``."""
    for name, value in values.items():
        check(value is None or value in choices, name, f"one of {', '.join(map(str, choices))}", value)


def _numbers(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) else (value,)
