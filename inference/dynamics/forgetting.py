"""Exponential forgetting toward the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import is_number
from ..engines.base import Engine
from ..errors import InvalidInput
from .base import Dynamics, Rates, check_time_unit

__all__ = ["Forgetting"]


@dataclass(frozen=True)
class Forgetting(Dynamics):
    """Weights that relax toward the prior: ``θ ← γθ + (1-γ)m₀ + noise``, with noise of variance ``(1-γ²)/λ₀``.

    The prior is stationary under it, so the variance of every weight is capped at the prior's by construction: in units
    of the noise variance where that is learned, as the prior is (conjugate), and so moves as its estimate moves.

    Args:
        factor: γ per unit of time, in (0, 1]; a weight's memory lasts about 1/(1-γ) units.
        time_unit: seconds in a unit of time; None: every event is one unit.

    Raises:
        InvalidInput: an argument out of its range.
    """

    factor: float = 0.999
    time_unit: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.factor) or not 0 < self.factor <= 1:
            raise InvalidInput(f"Forgetting.factor must be in (0, 1], got {self.factor!r}")
        check_time_unit(self)

    @property
    def is_static(self) -> bool:
        return bool(self.factor == 1)

    def retention(self, elapsed: Any) -> Any:
        """γ after ``elapsed`` units of time."""
        return self.factor**elapsed

    def rates(self, engine: Engine, elapsed: Any) -> Rates:
        """γ and 1-γ²."""
        retention = self.retention(elapsed)
        return Rates(retention, 1 - retention * retention)
