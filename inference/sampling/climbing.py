"""Where chains start: near modes, each at its own."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from ..engines.base import Engine
from .target import Data, Gradient

__all__ = ["climb"]

_RATE = 0.02


def climb(engine: Engine, gradient: Gradient, position: Any, data: Data, steps: int, key: Hashable) -> Any:
    """Positions (C, D) nearer to a mode: as many steps of Adam on the log density, in one compiled loop.

    Sommer et al. (2024, 2025): chains that start from an optimised ensemble need no long way to the typical set.
    """
    rates = engine.asarray(_RATE * 0.5 * (1 + np.cos(math.pi * np.arange(steps) / steps)))

    def run(position: Any, moments: Any, data: Data, rates: Any) -> Any:
        def step(state: Any, rate: Any) -> Any:
            position, moments = state
            value, slope = gradient(position, data, 1.0)
            return engine.adam(position, -slope, moments, rate), value

        return engine.scan(step, (position, moments), rates)[0][0]

    compiled = engine.compiled(("climb", key), run)
    return compiled(engine.asarray(position), engine.adam_moments(engine.asarray(position)), data, rates)
