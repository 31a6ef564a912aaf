"""Weights that wander."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import is_number
from ..engines.base import Engine
from ..errors import InvalidInput
from .base import Dynamics, Rates, check_time_unit

__all__ = ["RandomWalk"]


@dataclass(frozen=True)
class RandomWalk(Dynamics):
    """Weights that drift without a place to return to: ``θ ← θ + noise``, with noise of variance ``q/λ₀``.

    Means stay, so that nothing learned is given up before an event contradicts it; variances grow without a cap: the
    walk has no stationary distribution, and a cap would be a relaxation, which is what :class:`Forgetting` is. What
    events speak of settles where they tell as much as is lost. A weight of which no event speaks gains a prior variance
    every 1/q units: take a q below one over the length of such silences, or forget. (``Kronecker`` alone is back at the
    prior's variance where it has lost all that rows told, since it is derived from their sums.)

    Args:
        growth: q, at least 0: variance gained in a unit of time, as a share of the prior's.
        time_unit: seconds in a unit of time; None: every event is one unit.

    Raises:
        InvalidInput: an argument out of its range.
    """

    growth: float = 1e-4
    time_unit: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.growth) or self.growth < 0:
            raise InvalidInput(f"RandomWalk.growth must be finite and at least 0, got {self.growth!r}")
        check_time_unit(self)

    @property
    def is_static(self) -> bool:
        return bool(self.growth == 0)

    def rates(self, engine: Engine, elapsed: Any) -> Rates:
        """1 and q times the time."""
        return Rates(1.0, self.growth * elapsed)
