"""The Bayes step of a linearised network, solved in its outputs.

Around the mean m the network is f + J(θ - m), and the prior of the M = N·K outputs is N(f, C) with C = J Λ⁻¹ Jᵀ. The
mode of the posterior is θ = m + Λ⁻¹ Jᵀ r with r = score(f + C r): a system of M equations, whatever the number of
weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood

__all__ = ["OutputSolution", "solve_in_output_space"]

_STEP_LENGTHS = 0.5 ** np.arange(10.0)  # candidates of the line search
_MAX_ITERATIONS = 50
_ROUNDING = 1e-10  # relative differences of the objective below this are rounding
_TOLERANCE = 1e-11  # of score(f + C r) - r, which bounds the error of r, relative to r


class _Newton(NamedTuple):
    """Where the iteration is: r, C r, the gradient and √weight · L there, and how many steps were taken."""

    r: Float[Array, " M"]
    shift: Float[Array, " M"]
    gradient: Float[Array, " M"]
    factor: Float[Array, "N K R"]
    count: Float[Array, ""]


class OutputSolution(NamedTuple):
    """What a Bayes step needs to know, all of it in output space; float64.

    Attributes:
        residual: r, shape (N, K): every block of weights moves by Λ⁻¹ Jᵀ r.
        fisher_factor: √weight · L at the mode, shape (N, K, R): every block's precision grows by Jᵀ L Lᵀ J.
        state: of the likelihood, after the batch.
        log_predictive: Σ over the rows of the log predictive density of y before it was learned.
        information: KL divergence in nats of the posterior of the linearised model from its prior; for a structure
            that holds every correlation this is its own KL.
        iterations: Newton iterations taken.
        ok: whether all of it is finite and the system was positive definite.

    """

    residual: Float[Array, "N K"]
    fisher_factor: Float[Array, "N K R"]
    state: Any
    log_predictive: Float[Array, ""]
    information: Float[Array, ""]
    iterations: Float[Array, ""]
    ok: Bool[Array, ""]


def solve_in_output_space(
    engine: Engine,
    likelihood: Likelihood,
    largest: float,
    outputs: Float[Array, "N K"],
    covariance: Float[Array, "M M"],
    y: Array,
    weight: Float[Array, " N"],
    state: Any,
) -> OutputSolution:
    """Mode, Fisher information and diagnostics of the linearised posterior, by damped Newton steps.

    A single step (the extended Kalman filter's) overshoots on confident mistakes, where the Fisher information is near
    0 and the score near 1; at the mode the two agree with the linearised model.

    Args:
        engine: of float64 arrays.
        likelihood: the observation model.
        largest: magnitude that r, L², LᵀCL and rᵀCr must stay below for the step to be taken, so that the weights'
            own arithmetic does not overflow: (LᵀCL) bounds what is added to each precision, relative to it, and rᵀCr
            the move of each weight, relative to its standard deviation.
        outputs: f, the network's outputs at the mean.
        covariance: C at unit dispersion, M = N·K.
        y: targets, as the likelihood prepared them.
        weight: of each row, at least 0; a row of weight 0 (padding) changes nothing.
        state: of the likelihood.

    """
    xp = engine.xp
    num_rows, num_outputs = outputs.shape
    size = num_rows * num_outputs
    identity = engine.eye(size, outputs)
    lengths = engine.constant(_STEP_LENGTHS, outputs)[:, None]
    root_weight = xp.sqrt(weight)[:, None, None]
    rows_of_covariance = xp.reshape(covariance, (num_rows, num_outputs, size))

    def moved(shift: Array) -> Array:
        """Outputs for shifts C r, (..., M)."""
        return outputs + xp.reshape(shift, (*shift.shape[:-1], num_rows, num_outputs))

    def derivatives(r: Array, shift: Array) -> tuple[Array, Array]:
        """score(f + C r) - r, which is 0 at the mode, and √weight · L there."""
        score, factor = likelihood.unit_derivatives(engine, moved(shift), y)
        return xp.reshape(weight[:, None] * score, (size,)) - r, root_weight * factor

    def objective(r: Array, shift: Array) -> Array:
        """Log p(y | f + C r) - ½ rᵀ C r."""
        fit = likelihood.unit_log_prob(engine, moved(shift), y) @ weight
        return fit - 0.5 * xp.sum(r * shift, axis=-1)

    def iterate(carry: _Newton) -> _Newton:
        system = identity + xp.reshape(carry.factor @ (carry.factor.mT @ rows_of_covariance), (size, size))
        direction = xp.linalg.solve(system, carry.gradient[:, None])[:, 0]
        candidates = carry.r + lengths * direction
        shifts = candidates @ covariance
        values = objective(candidates, shifts)
        values = xp.where(xp.isnan(values), -math.inf, values)
        highest = xp.max(values)
        as_good = values >= highest - _ROUNDING * (1 + xp.abs(highest))
        best = xp.argmax(xp.astype(as_good, xp.int32))  # the longest step among the best
        r, shift = candidates[best], shifts[best]
        return _Newton(r, shift, *derivatives(r, shift), carry.count + 1)

    def unfinished(carry: _Newton) -> Array:
        size_of_gradient = xp.max(xp.abs(carry.gradient))
        return (size_of_gradient > _TOLERANCE * (1 + xp.max(xp.abs(carry.r)))) & (carry.count < _MAX_ITERATIONS)

    zero = engine.constant(np.zeros(size), outputs)
    start = _Newton(zero, zero, *derivatives(zero, zero), engine.constant(0.0, outputs))
    r, shift, _, factor, iterations = engine.while_loop(unfinished, iterate, start)

    after = likelihood.update_state(engine, state, outputs, covariance, y, weight)
    squares = r @ shift
    information, growth, ok = _information(engine, likelihood, covariance, factor, squares, after, state)
    log_predictive = _log_predictive(engine, likelihood, outputs, covariance, y, weight, state)
    size_of_step = xp.max(xp.abs(r)) + xp.sum(factor * factor) + growth + squares
    representable = xp.isfinite(size_of_step + log_predictive + information) & (size_of_step <= largest)
    return OutputSolution(
        xp.reshape(r, (num_rows, num_outputs)),
        factor,
        after,
        log_predictive,
        information,
        iterations,
        ok & representable,
    )


def _information(
    engine: Engine, likelihood: Likelihood, covariance: Array, factor: Array, squares: Array, after: Any, before: Any
) -> tuple[Array, Array, Array]:
    """½ (log det(I + G) - tr(G (I + G)⁻¹) + rᵀCr / φ) with G = LᵀCL, and what the likelihood's state gained; tr G; ok.

    ``squares`` is rᵀCr.
    """
    xp = engine.xp
    num_rows, num_outputs, rank = factor.shape
    left = factor.mT @ xp.reshape(covariance, (num_rows, num_outputs, -1))  # Lᵀ C, by rows of the batch
    right = factor.mT @ xp.reshape(xp.reshape(left, (num_rows * rank, -1)).mT, (num_rows, num_outputs, -1))
    gram = xp.reshape(right, (num_rows * rank, num_rows * rank))
    identity = engine.eye(num_rows * rank, gram)
    root, ok = engine.cholesky(identity + 0.5 * (gram + gram.mT))
    inverse_root = engine.solve_triangular(root, identity)
    log_determinant = 2 * xp.sum(xp.log(xp.sum(root * identity, axis=-1)))
    shrinkage = num_rows * rank - xp.sum(inverse_root * inverse_root)
    moved = squares / likelihood.dispersion(after)
    gained = 0.5 * (log_determinant - shrinkage + moved) + likelihood.state_information(engine, after, before)
    return gained, xp.sum(gram * identity), ok


def _log_predictive(
    engine: Engine, likelihood: Likelihood, outputs: Array, covariance: Array, y: Array, weight: Array, state: Any
) -> Array:
    xp = engine.xp
    num_rows, num_outputs = outputs.shape
    own = xp.reshape(covariance, (num_rows, num_outputs, num_rows, num_outputs))
    own = own[:, :, 0, :] if num_rows == 1 else xp.einsum("nknl->nkl", own)
    own = own * likelihood.dispersion(state)
    values = likelihood.predictive_log_prob(engine, outputs, own, y, state)
    return xp.sum(xp.where(weight > 0, values, 0.0))
