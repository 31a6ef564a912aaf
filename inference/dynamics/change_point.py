"""Abrupt changes: how long ago was the last one?

Adams and MacKay (2007), "Bayesian online changepoint detection": a posterior over the run length, with a filter for
every run that began at a possible change; here pruned to a fixed number of runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..checks import is_count, is_number
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import SMALLEST_WEIGHT, Hypotheses, Passed, check_time_unit

__all__ = ["ChangePoint", "ChangePointState"]


class ChangePointState(NamedTuple):
    """Attributes:
    run_length: how many events each hypothesis has learned from since it began at the prior, (M,), float64.
    """

    run_length: Float[Array, " M"]


@dataclass(frozen=True)
class ChangePoint(Hypotheses):
    """Weights that stay as they are until, all of a sudden, they are drawn anew from the prior.

    A change comes in a unit of time with the hazard's probability. The hypothesis that one has just come takes the
    place of the least likely run, unless there is one already that no event has spoken of; the pruned run's weight goes
    to the others. So it is exact for as many events as there are hypotheses, and two spans of time without an event
    between them are one. What the likelihood has learned (noise) outlasts a change of the weights.

    Args:
        hazard: probability of a change in a unit of time, in (0, 1).
        hypotheses: how many runs are kept, at least 2; each event costs as many Bayes steps.
        time_unit: seconds in a unit of time; None: every event is one unit.

    Raises:
        InvalidInput: an argument out of its range.
    """

    hazard: float = 1e-3
    hypotheses: int = 4
    time_unit: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.hazard) or not 0 < self.hazard < 1:
            raise InvalidInput(f"ChangePoint.hazard must be in (0, 1), got {self.hazard!r}")
        if not is_count(self.hypotheses, 2):
            raise InvalidInput(f"ChangePoint.hypotheses must be an integer of at least 2, got {self.hypotheses!r}")
        check_time_unit(self)

    @property
    def num_hypotheses(self) -> int:
        """As many as were asked for."""
        return self.hypotheses

    def initial_weights(self) -> np.ndarray:
        """There is one run so far; the other places are free."""
        weights = np.full(self.hypotheses, SMALLEST_WEIGHT)
        weights[0] = 1.0
        return weights

    def initial_state(self) -> ChangePointState:
        """Every run begins now."""
        return ChangePointState(np.zeros(self.hypotheses))

    def restore_state(self, arrays: list[Array]) -> ChangePointState:
        return ChangePointState(*arrays)

    def rates(self, engine: Engine, elapsed: Any) -> None:
        """None: within a run weights stay."""
        return

    def before(
        self, engine: Engine, log_weights: Float[Array, " M"], state: ChangePointState, elapsed: Array
    ) -> Passed:
        """A share of all weight begins again."""
        xp = engine.xp
        kept = (1 - self.hazard) ** xp.astype(elapsed, xp.float64)
        weights, runs = xp.exp(log_weights), state.run_length
        places = engine.constant(np.arange(self.hypotheses), runs)
        # fresh runs first, then those of the least weight
        chosen = places == xp.argmin(xp.where(runs == 0, -1.0, weights))
        begins = chosen & (kept < 1)
        fresh = begins & (runs == 0)
        others = xp.where(begins & ~fresh, 0.0, weights)
        total = kept * others / xp.sum(others) + xp.where(begins, 1 - kept, 0.0)
        return Passed(
            xp.log(xp.clip(total, SMALLEST_WEIGHT, None)), ChangePointState(xp.where(begins, 0.0, runs)), begins
        )

    def after(self, engine: Engine, state: ChangePointState) -> ChangePointState:
        """Every run is an event longer."""
        return ChangePointState(state.run_length + 1)
