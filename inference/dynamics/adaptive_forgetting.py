"""How fast to forget, learned from the predictions.

A filter runs for each of several dynamics, and their weights follow the prequential likelihood: Bayesian model
averaging over the rate of forgetting, with weights that are themselves forgotten a little, so that a rate that was
wrong for a thousand events can be right for the next (the fixed share of Herbster and Warmuth 1998, "Tracking the best
expert"; dynamic model averaging of Raftery, Kárný and Ettler 2010).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..checks import is_number
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import SMALLEST_WEIGHT, Dynamics, Hypotheses, Passed, Rates, check_time_unit
from .forgetting import Forgetting
from .random_walk import RandomWalk
from .static import Static

__all__ = ["AdaptiveForgetting"]


@dataclass(frozen=True)
class AdaptiveForgetting(Hypotheses):
    """A posterior under each of several dynamics, weighted by how well each predicts.

    Before every event the weights are drawn toward even ones, ``w ← κ w + (1-κ)/M`` with κ = (1 - share) per unit of
    time; each event multiplies them by the candidates' predictive densities.

    Args:
        candidates: the dynamics in question, at least two of ``Static``, ``Forgetting`` and ``RandomWalk``, without a
            time unit of their own.
        share: of the weight that is handed out evenly in a unit of time, in [0, 1): about one over the time between
            changes of the rate. 0 weighs by all the evidence there ever was.
        time_unit: seconds in a unit of time; None: every event is one unit.

    Raises:
        InvalidInput: an argument out of its range.
    """

    candidates: tuple[Dynamics, ...] = (
        Static(),
        RandomWalk(1e-5),
        RandomWalk(1e-4),
        RandomWalk(1e-3),
        RandomWalk(1e-2),
    )
    share: float = 1e-3
    time_unit: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.candidates, Iterable):
            object.__setattr__(self, "candidates", tuple(self.candidates))
        known = (Static, Forgetting, RandomWalk)
        given = self.candidates if isinstance(self.candidates, tuple) else ()
        if len(given) < 2 or not all(isinstance(one, known) for one in given):
            raise InvalidInput(
                "AdaptiveForgetting.candidates must be at least two of Static(), Forgetting() and RandomWalk(), "
                f"got {self.candidates!r}"
            )
        if any(one.time_unit is not None for one in self.candidates):
            raise InvalidInput("AdaptiveForgetting.candidates must have no time_unit: give it to AdaptiveForgetting")
        if not is_number(self.share) or not 0 <= self.share < 1:
            raise InvalidInput(f"AdaptiveForgetting.share must be in [0, 1), got {self.share!r}")
        check_time_unit(self)

    @property
    def num_hypotheses(self) -> int:
        """Number of the candidates."""
        return len(self.candidates)

    def rates(self, engine: Engine, elapsed: Any) -> Rates:
        """Those of every candidate."""
        each = [one.rates(engine, elapsed) or Rates(1.0, 0.0) for one in self.candidates]
        zero = 0 * elapsed
        return Rates(*(engine.xp.stack([zero + value for value in values]) for values in zip(*each, strict=True)))

    def before(self, engine: Engine, log_weights: Float[Array, " M"], state: Any, elapsed: Array) -> Passed:
        """Some of every weight is handed out evenly."""
        xp = engine.xp
        if self.share == 0:
            return Passed(log_weights, state, None)
        kept = (1 - self.share) ** xp.astype(elapsed, xp.float64)
        log_kept, handed_out = (
            xp.log(xp.clip(weight, SMALLEST_WEIGHT, None)) for weight in (kept, (1 - kept) / self.num_hypotheses)
        )
        return Passed(xp.logaddexp(log_kept + log_weights, handed_out), state, None)

    def average(self, weights: np.ndarray) -> Rates:
        """The rates of one unit of time, averaged over the weights of the candidates, (M,)."""
        each = [one.rates(None, 1.0) or Rates(1.0, 0.0) for one in self.candidates]  # type: ignore[arg-type]
        return Rates(*(float(np.dot(weights, values)) for values in zip(*each, strict=True)))
