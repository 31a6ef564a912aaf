"""What happens to the posterior between events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput

__all__ = ["Dynamics", "Forgetting", "Static"]


@dataclass(frozen=True)
class Dynamics(ABC):
    """Weights that relax toward the prior: ``θ ← γθ + (1-γ)m₀ + noise``, with noise of variance ``(1-γ²)/λ₀``.

    The prior is stationary under it, so the variance of every weight is capped at the prior's by construction.
    """

    @property
    def is_static(self) -> bool:
        """Whether nothing happens between events."""
        return bool(self.retention(1.0) == 1.0)

    @abstractmethod
    def retention(self, elapsed: Any) -> Any:
        """γ after ``elapsed`` events, at most 1; ``elapsed`` is a number or a 0-d array, at least 0."""


@dataclass(frozen=True)
class Static(Dynamics):
    """The weights do not change; the posterior of a static model only ever sharpens."""

    def retention(self, elapsed: Any) -> Any:
        return 1.0


@dataclass(frozen=True)
class Forgetting(Dynamics):
    """Exponential forgetting toward the prior.

    Args:
        factor: γ per event, in (0, 1]; a weight's memory lasts about 1/(1-γ) events.
    """

    factor: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise InvalidInput(f"Forgetting.factor must be in (0, 1], got {self.factor!r}")

    def retention(self, elapsed: Any) -> Any:
        return self.factor**elapsed
