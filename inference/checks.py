"""What a setting may be, whatever was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from .errors import InvalidInput

__all__ = ["check_count", "is_count", "is_number", "positive_numbers"]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond all floats
        return False


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer that is large enough."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def check_count(argument: str, value: Any, least: int = 1) -> None:
    """Raises :class:`InvalidInput` unless a value is an integer that is large enough."""
    if not is_count(value, least):
        raise InvalidInput(f"{argument} must be an integer of at least {least}, got {value!r}")


def positive_numbers(argument: str, value: Any) -> tuple[float, ...]:
    """At least one positive, finite number.

    Raises:
        InvalidInput: something else.
    """
    numbers = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else ()
    if not numbers or not all(is_number(number) and number > 0 for number in numbers):
        raise InvalidInput(f"{argument} must be positive numbers, got {value!r}")
    return tuple(map(float, numbers))
