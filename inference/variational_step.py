"""The variational step: the normal distribution nearest to the outputs' posterior.

Of all normal distributions, the one of least KL divergence from the posterior of the linearised model has

    r = E[score(g)],  L Lᵀ = E[-score'(g)],  g ~ N(f + C r, V),  V = (C⁻¹ + L Lᵀ)⁻¹

(Lambert, Bonnabel and Bach 2022, "The recursive variational Gaussian approximation (R-VGA)", equations 8 and 9; they
hold for all weights at once, since the observations see the weights only through the outputs). The fixed point is found
by natural-gradient steps (Khan and Lin 2017, "Conjugate-computation variational inference").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .laplace_step import LaplaceStep
from .likelihoods.base import Likelihood
from .output_space import OutputProblem, OutputStep, Site, own_covariance
from .quadrature import normal_nodes

__all__ = ["VariationalStep"]

_RATE = 0.5  # of a natural-gradient step; halved where the fixed point comes no nearer
_LOWEST_RATE = 0.125
_JITTER = 1e-12
_JITTER_OF_FLOAT32 = 1e-6
_ROUNDING = 1e-14  # of an information matrix that is a difference of probabilities


class _Iterate(NamedTuple):
    """Where the iteration is.

    Attributes:
        residual: r.
        information: F, in place of L Lᵀ.
        error: of r, E[score] - r.
        change: of F, E[Fisher] - F.
        distance: from the fixed point, in standard deviations and relative precision.
        rate: of the next step.
        count: of the evaluations.
    """

    residual: Float[Array, " M"]
    information: Float[Array, "N K K"]
    error: Float[Array, " M"]
    change: Float[Array, "N K K"]
    distance: Float[Array, ""]
    rate: Float[Array, ""]
    count: Float[Array, ""]


@dataclass(frozen=True)
class VariationalStep(OutputStep):
    """The normal distribution of least KL divergence from the linearised model's posterior.

    Unlike at the mode, an event that the model gets right still narrows what is wide, so that the predictive
    distribution of a stream stays calibrated. Expectations are by fixed nodes. Where the mode is exact (normal noise),
    or nodes do not do (counts, scale mixtures, learned scales), it is :class:`LaplaceStep`.

    Args:
        tolerance: distance from the fixed point at which to stop, in standard deviations of the outputs and relative
            precision; positive.
        max_iterations: at least 1.
    """

    tolerance: float = 0.1
    max_iterations: int = 30

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise InvalidInput(f"VariationalStep.tolerance must be positive, got {self.tolerance!r}")
        if self.max_iterations < 1:
            raise InvalidInput(f"VariationalStep.max_iterations must be at least 1, got {self.max_iterations!r}")

    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        if not likelihood.averaged_by_nodes:
            return LaplaceStep().site(engine, likelihood, problem)
        xp = engine.xp
        outputs, covariance, y, weight, state = problem
        num_rows, num_outputs = outputs.shape
        size = num_rows * num_outputs
        identity = engine.eye(size, outputs)
        rows_of_covariance = xp.reshape(covariance, (num_rows, num_outputs, size))
        prior_spread = own_covariance(engine, covariance, outputs)
        host_nodes, host_weights = normal_nodes(num_outputs)
        nodes, node_weights = (engine.constant(values, outputs) for values in (host_nodes, host_weights))

        def system(information: Array) -> Array:
            """I + F C."""
            return identity + xp.reshape(information @ rows_of_covariance, (size, size))

        def at(residual: Array, information: Array, before: _Iterate | None) -> _Iterate:
            moved = outputs + xp.reshape(residual @ covariance, outputs.shape)
            spread = own_covariance(engine, engine.solve(system(information).mT, covariance), outputs)
            drawn = moved + xp.permute_dims(nodes @ _root(engine, spread, prior_spread).mT, (1, 0, 2))
            score, fisher = likelihood.expected_terms(engine, drawn, node_weights, y, state)
            error = xp.reshape(weight[:, None] * score, (size,)) - residual
            change = weight[:, None, None] * fisher - information
            precision = 1 + xp.abs(xp.sum(prior_spread * information))
            distance = xp.sqrt(xp.abs(error @ covariance @ error)) + xp.abs(xp.sum(prior_spread * change)) / precision
            if before is None:
                return _Iterate(residual, information, error, change, distance, half, one)
            slower = xp.where(before.rate > _LOWEST_RATE, 0.5 * before.rate, before.rate)
            rate = xp.where(distance > before.distance, slower, before.rate)
            return _Iterate(residual, information, error, change, distance, rate, before.count + 1)

        def moved_by(now: _Iterate, rate: Array) -> tuple[Array, Array]:
            information = now.information + rate * now.change
            step = engine.solve(system(information), (rate * now.error)[:, None])[:, 0]
            return now.residual + step, information

        def unfinished(now: _Iterate) -> Array:
            return (now.distance > self.tolerance) & (now.count < self.max_iterations)

        one, half = engine.constant(1.0, outputs), engine.constant(_RATE, outputs)
        start = at(engine.constant(np.zeros(size), outputs), xp.zeros_like(prior_spread), None)
        found = engine.while_loop(unfinished, lambda now: at(*moved_by(now, now.rate), now), start)
        # Where the fixed point is near, the whole step leads to it; a step that is cut off by its number stays careful.
        last = xp.where(found.distance > self.tolerance, found.rate, one)
        residual, information = moved_by(found, last)
        factor = _root(engine, information, information, _ROUNDING)
        return Site(residual, xp.where(weight[:, None, None] > 0, factor, 0.0), found.count)


def _root(
    engine: Engine, matrix: Float[Array, "N K K"], scale: Float[Array, "N K K"], floor: float = 1e-300
) -> Float[Array, "N K K"]:
    """Cholesky factor of matrices that may be singular, and are rounded relative to another one's size."""
    xp = engine.xp
    identity = engine.eye(matrix.shape[-1], matrix)
    size = xp.sum(xp.abs(scale * identity), axis=(-2, -1), keepdims=True)
    symmetric = 0.5 * (matrix + matrix.mT)
    factor, ok = engine.cholesky(symmetric + (_JITTER * size + floor) * identity)
    # Where the outputs' covariance came in float32, it is indefinite beyond float64's rounding.
    safe, _ = engine.cholesky(symmetric + (_JITTER_OF_FLOAT32 * size + floor) * identity)
    return xp.where(ok, factor, safe)
