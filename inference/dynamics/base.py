"""The contract of the dynamics: what happens to the posterior between events.

Between events the weights follow ``θ ← γ θ + (1-γ) m₀ + noise``, with noise of variance ``g`` times that of the prior.
Every kind of dynamics says what γ (the retention) and g (the growth) are after some time; the structures do the rest.
Passing time twice is passing the sum of the times once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput

__all__ = ["SMALLEST_WEIGHT", "Dynamics", "Hypotheses", "Passed", "Rates", "check_time_unit"]

SMALLEST_WEIGHT = 1e-300
"""Of a hypothesis, so that its logarithm is finite."""


class Rates(NamedTuple):
    """A transition; for :class:`Hypotheses` each is an array (M,), one for each of them.

    Attributes:
        retention: γ, in [0, 1].
        growth: g, at least 0: variance that every weight gains, as a share of its prior variance.
    """

    retention: Any
    growth: Any


class Passed(NamedTuple):
    """What time did to a set of hypotheses.

    Attributes:
        log_weights: of the hypotheses, (M,), float64.
        state: of the dynamics.
        restarted: which hypotheses begin again at the prior, (M,); None where none ever do.
    """

    log_weights: Float[Array, " M"]
    state: Any
    restarted: Bool[Array, " M"] | None


def check_time_unit(dynamics: Any) -> None:
    """Raises :class:`InvalidInput` unless ``time_unit`` is None or a positive number of seconds."""
    unit = dynamics.time_unit
    if unit is not None and not (isinstance(unit, Real) and 0 < float(unit) < math.inf):
        raise InvalidInput(
            f"{type(dynamics).__name__}.time_unit must be a positive number of seconds or None, got {unit!r}"
        )


@dataclass(frozen=True)
class Dynamics(ABC):
    """What happens to the weights between events."""

    @property
    def time_unit(self) -> float | None:
        """Seconds in one unit of time, so that an updater lets pass what the events' time stamps say.

        None: every event is one unit, whenever it came.
        """
        return None

    @property
    def is_static(self) -> bool:
        """Whether nothing happens between events."""
        return False

    @abstractmethod
    def rates(self, engine: Engine, elapsed: Any) -> Rates | None:
        """The transition over ``elapsed`` units of time, a number or a 0-d array, at least 0; None if weights stay."""


@dataclass(frozen=True)
class Hypotheses(Dynamics):
    """Dynamics that are not known: M hypotheses, each a posterior of its own, weighted by how well they predict.

    A model with such dynamics holds a mixture of M posteriors in its structure; each event costs M Bayes steps.
    """

    @property
    @abstractmethod
    def num_hypotheses(self) -> int:
        """M, at least 2."""

    def initial_weights(self) -> np.ndarray:
        """Weights of the hypotheses before any event, (M,)."""
        return np.full(self.num_hypotheses, 1 / self.num_hypotheses)

    def initial_state(self) -> Any:
        """State before any event: a named tuple of float64 arrays, or ``()``."""
        return ()

    @abstractmethod
    def before(self, engine: Engine, log_weights: Float[Array, " M"], state: Any, elapsed: Array) -> Passed:
        """What ``elapsed`` units of time do to the weights of the hypotheses."""

    def after(self, engine: Engine, state: Any) -> Any:
        """The state after an event was learned."""
        return state

    def restore_state(self, arrays: list[Array]) -> Any:
        """The state from its arrays, in order."""
        return ()
