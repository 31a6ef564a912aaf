"""What a setting may be, whatever was given."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["is_count", "is_number"]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer that is large enough."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
