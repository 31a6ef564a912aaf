"""The variational step: the normal distribution nearest to the outputs' posterior.

Of all normal distributions, the one of least KL divergence from the posterior of the linearised model has

    r = E[score(g)],  L Lᵀ = E[-score'(g)],  g ~ N(f + C r, V),  V = (C⁻¹ + L Lᵀ)⁻¹

(Lambert, Bonnabel and Bach 2022, "The recursive variational Gaussian approximation (R-VGA)", equations 8 and 9; they
hold for all weights at once, since the observations see the weights only through the outputs). The fixed point is found
by natural-gradient steps (Khan and Lin 2017, "Conjugate-computation variational inference").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .checks import is_count, is_number
from .engines.base import Array, Engine
from .errors import InvalidInput
from .factors import among_directions
from .laplace_step import LaplaceStep
from .likelihoods.base import Likelihood, node_offsets
from .output_space import OutputProblem, OutputStep, Site, own_covariance
from .quadrature import normal_nodes

__all__ = ["VariationalStep"]

_RATE = 0.7  # of a natural-gradient step; halved where the fixed point comes no nearer
_LOWEST_RATE = 0.125  # from which it is halved no further
_JITTER = 1e-12
_JITTER_OF_FLOAT32 = 1e-6
_ROUNDING = 1e-14  # of a row's information, a difference of probabilities, relative to its weight
_NOTHING = 1e-300


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
        if not is_number(self.tolerance) or self.tolerance <= 0:
            raise InvalidInput(f"VariationalStep.tolerance must be positive, got {self.tolerance!r}")
        if not is_count(self.max_iterations):
            raise InvalidInput(
                f"VariationalStep.max_iterations must be an integer of at least 1, got {self.max_iterations!r}"
            )

    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        if not likelihood.averaged_by_nodes:
            return LaplaceStep().site(engine, likelihood, problem)
        xp = engine.xp
        outputs, covariance, y, weight, state = problem
        num_rows, num_outputs = outputs.shape
        size = num_rows * num_outputs
        prior_spread = own_covariance(engine, covariance, outputs)
        flat_spread = xp.reshape(prior_spread, (-1,))
        identity = engine.eye(num_outputs, outputs)
        rounding = _jitters(identity, _size(engine, prior_spread), _NOTHING)
        floor = _ROUNDING * weight[:, None, None] + _NOTHING
        host_nodes, host_weights = normal_nodes(num_outputs)
        nodes, node_weights = (engine.constant(values, outputs) for values in (host_nodes, host_weights))

        def errors(mean: Array, spread: Array) -> tuple[Array, Array]:
            """E[score] and E[Fisher] under N(mean, spread), times the rows' weights."""
            drawn = mean + node_offsets(engine, nodes, _root(engine, spread, *rounding))
            score, fisher = likelihood.expected_terms(engine, drawn, node_weights, y, state)
            return xp.reshape(weight[:, None] * score, (size,)), weight[:, None, None] * fisher

        def root_of(information: Array) -> Array:
            """L with L Lᵀ = F, up to rounding."""
            jitters = _jitters(identity, _size(engine, information), floor)
            return _root(engine, information, *jitters)[:, :, : likelihood.information_rank]

        def trace(information: Array) -> Array:
            """|tr(C F)| over the rows alone."""
            return xp.abs(flat_spread @ xp.reshape(information, (-1,)))

        def distance_of(information: Array, error: Array, change: Array) -> Array:
            in_deviations = xp.sqrt(xp.abs(error @ (covariance @ error)))
            return in_deviations + trace(change) / (1 + trace(information))

        def iterate(before: _Iterate) -> _Iterate:
            """A natural-gradient step, and where it has led."""
            information = before.information + before.rate * before.change
            step, spread = _settled(engine, covariance, prior_spread, information, before.rate * before.error, root_of)
            residual = before.residual + step
            moved = outputs + xp.reshape(residual @ covariance, outputs.shape)
            wanted_residual, wanted_information = errors(moved, spread)
            error, change = wanted_residual - residual, wanted_information - information
            distance = distance_of(information, error, change)
            slower = (distance > before.distance) & (before.rate > _LOWEST_RATE)
            rate = xp.where(slower, 0.5 * before.rate, before.rate)
            return _Iterate(residual, information, error, change, distance, rate, before.count + 1)

        def unfinished(now: _Iterate) -> Array:
            return (now.distance > self.tolerance) & (now.count < self.max_iterations)

        one, rate = engine.constant(1.0, outputs), engine.constant(_RATE, outputs)
        nothing = engine.constant(np.zeros(size), outputs), xp.zeros_like(prior_spread)
        wanted = errors(outputs, prior_spread)
        start = _Iterate(*nothing, *wanted, distance_of(nothing[1], *wanted), rate, one)
        found = engine.while_loop(unfinished, iterate, start)
        # Where the fixed point is near, the whole step leads to it; a step that is cut off by its number stays careful.
        last = xp.where(found.distance > self.tolerance, found.rate, one)
        information = found.information + last * found.change
        system = _system(engine, covariance, information)
        residual = found.residual + engine.solve(system, (last * found.error)[:, None])[:, 0]
        return Site(residual, xp.where(weight[:, None, None] > 0, root_of(information), 0.0), found.count)


def _system(engine: Engine, covariance: Float[Array, "M M"], information: Float[Array, "N K K"]) -> Array:
    """I + F C."""
    xp, size = engine.xp, covariance.shape[0]
    product = information @ xp.reshape(covariance, (*information.shape[:2], size))
    return engine.eye(size, covariance) + xp.reshape(product, (size, size))


def _settled(
    engine: Engine,
    covariance: Array,
    prior_spread: Array,
    information: Array,
    error: Array,
    root_of: Callable[[Array], Array],
) -> tuple[Float[Array, " M"], Float[Array, "N K K"]]:
    """(I + F C)⁻¹ error, and each row's own block of V = C (I + F C)⁻¹; for several rows by a root of F."""
    xp, (num_rows, num_outputs, _), size = engine.xp, information.shape, covariance.shape[0]
    if num_rows == 1:  # so small that few operations count for more than little arithmetic
        inverse = engine.solve(_system(engine, covariance, information), engine.eye(size, covariance))
        return inverse @ error, (covariance @ inverse)[None]
    root = root_of(information)
    pulled, within = among_directions(engine, covariance, root)
    factor, ok = engine.cholesky(engine.eye(within.shape[0], within) + within)
    factor = xp.where(ok, factor, xp.nan)
    narrowed = engine.solve_triangular(factor, pulled)
    columns = xp.permute_dims(xp.reshape(narrowed, (-1, num_rows, num_outputs)), (1, 2, 0))
    back = engine.solve_triangular(factor, (narrowed @ error)[:, None], transpose=True)
    step = error - xp.reshape(root @ xp.reshape(back, (num_rows, -1, 1)), (size,))
    return step, prior_spread - columns @ columns.mT


def _size(engine: Engine, matrix: Float[Array, "N K K"]) -> Float[Array, "N 1 1"]:
    """The sum of the diagonal's magnitudes, which rounding is relative to."""
    xp = engine.xp
    return xp.sum(xp.abs(xp.linalg.diagonal(matrix)), axis=-1)[:, None, None]


def _jitters(identity: Array, size: Float[Array, "N 1 1"], floor: Array | float) -> tuple[Array, Callable[[], Array]]:
    """What is added to matrices of which the roots are taken, as a matter of course and where that is not enough."""
    return (_JITTER * size + floor) * identity, lambda: (_JITTER_OF_FLOAT32 * size + floor) * identity


def _root(
    engine: Engine, matrix: Float[Array, "N K K"], jitter: Float[Array, "N K K"], larger: Callable[[], Array]
) -> Float[Array, "N K K"]:
    """Cholesky factor of matrices that may be singular, and are rounded relative to another one's size."""
    symmetric = 0.5 * (matrix + matrix.mT)
    factor, ok = engine.cholesky(symmetric + jitter)

    def safer() -> Array:
        """Where the outputs' covariance came in float32, it is indefinite beyond float64's rounding."""
        return engine.cholesky(symmetric + larger())[0]

    return engine.guarded(~ok, safer, factor)
