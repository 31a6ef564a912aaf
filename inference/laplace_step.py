"""Laplace's step: the mode of the outputs' posterior, and the Fisher information there.

The mode is f + C r with r = score(f + C r): a system of M equations, solved by damped Newton steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .output_space import OutputProblem, OutputStep, Site

__all__ = ["LaplaceStep"]

_SHORTEST = 2.0**-12  # a step is halved no further
_MAX_ITERATIONS = 50
_EPSILON = 1e-15  # relative rounding of f + C r, which the score magnifies by its curvature
_ROUNDING = 1e-10  # relative differences of the objective below this are rounding
_TOLERANCE = 1e-11  # of |score(f + C r) - r|, which bounds the error of r, relative to |r|


class _Newton(NamedTuple):
    """Where the iteration is.

    Attributes:
        r: the residuals.
        shift: C r.
        objective: log p(y | f + C r) - ½ rᵀ C r, which is largest at the mode.
        gradient: score(f + C r) - r, which is 0 at the mode.
        factor: √weight · L.
        curvature: weight times the observed information; () where that is the Fisher information.
        length: of the last step, as a share of Newton's.
        count: of the steps.
    """

    r: Float[Array, " M"]
    shift: Float[Array, " M"]
    objective: Float[Array, ""]
    gradient: Float[Array, " M"]
    factor: Float[Array, "N K R"]
    curvature: Any
    length: Float[Array, ""]
    count: Float[Array, ""]


@dataclass(frozen=True)
class LaplaceStep(OutputStep):
    """The mode of the linearised posterior (online Gauss-Newton Laplace, the fully iterated filter in the outputs).

    A single step (the extended Kalman filter's) overshoots on confident mistakes, where the Fisher information is near
    0 and the score near 1; at the mode the two agree with the linearised model. But where the model is right, the
    Fisher information at the mode is near 0 too, however wide the outputs' distribution: events that are right narrow
    nothing, and the predictive stays too wide.
    """

    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        xp = engine.xp
        outputs, covariance, y, weight, state = problem
        num_rows, num_outputs = outputs.shape
        size = num_rows * num_outputs
        identity = engine.eye(size, outputs)
        root_weight = xp.sqrt(weight)[:, None, None]
        rows_of_covariance = xp.reshape(covariance, (num_rows, num_outputs, size))

        def at(r: Array, length: Array, count: Array) -> _Newton:
            """Everything that is needed at r."""
            shift = r @ covariance
            moved = outputs + xp.reshape(shift, (num_rows, num_outputs))
            fit, score, factor = likelihood.unit_terms(engine, moved, y, state)
            gradient = xp.reshape(weight[:, None] * score, (size,)) - r
            observed = likelihood.observed_information(engine, moved, y, state)
            curvature = () if observed is None else weight[:, None, None] * observed
            objective = fit @ weight - 0.5 * (r @ shift)
            return _Newton(r, shift, objective, gradient, root_weight * factor, curvature, length, count)

        def newton(information_of_outputs: Array, gradient: Array) -> Array:
            system = identity + xp.reshape(information_of_outputs, (size, size))
            return engine.solve(system, gradient[:, None])[:, 0]

        def direction_at(old: _Newton) -> Array:
            """By the observed information where that leads uphill, else by Fisher's, which always does."""
            safe = newton(old.factor @ (old.factor.mT @ rows_of_covariance), old.gradient)
            if isinstance(old.curvature, tuple):
                return safe
            quick = newton(old.curvature @ rows_of_covariance, old.gradient)
            return xp.where(quick @ (covariance @ old.gradient) > 0, quick, safe)

        def iterate(old: _Newton) -> _Newton:
            """A Newton step, halved until the objective rises by a quarter of what its slope promises (Armijo)."""
            direction = direction_at(old)
            rounding = _ROUNDING * (1 + xp.abs(old.objective))

            def too_far(new: _Newton) -> Array:
                promised = old.gradient @ (new.shift - old.shift)
                rises = new.objective - old.objective >= 0.25 * promised - rounding
                return ~rises & (new.length > _SHORTEST)

            def halve(new: _Newton) -> _Newton:
                length = 0.5 * new.length
                return at(old.r + length * direction, length, new.count)

            return engine.while_loop(too_far, halve, at(old.r + direction, one, old.count + 1))

        seen = xp.reshape(xp.where(weight[:, None] > 0, xp.ones_like(outputs), 0.0), (size,))
        norm_of_outputs = seen @ xp.reshape(outputs * outputs, (size,))
        norm_of_covariance = seen @ (covariance * covariance) @ seen

        def unfinished(now: _Newton) -> Array:
            curvature = xp.sum(now.factor * now.factor)
            squares = now.r @ now.r
            rounding = (_EPSILON * curvature) ** 2 * (norm_of_outputs + norm_of_covariance * squares)
            wanted = _TOLERANCE**2 * (1 + squares) + rounding
            return (now.gradient @ now.gradient > wanted) & (now.count < _MAX_ITERATIONS)

        one, zero = engine.constant(1.0, outputs), engine.constant(0.0, outputs)
        found = engine.while_loop(unfinished, iterate, at(engine.constant(np.zeros(size), outputs), one, zero))
        return Site(found.r, found.factor, found.count)
