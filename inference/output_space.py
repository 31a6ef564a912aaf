"""The Bayes step of a linearised network, solved in its outputs.

Around the mean m the network is f + J(θ - m), and the prior of the M = N·K outputs is N(f, C) with C = J Λ⁻¹ Jᵀ. The mode
of the posterior is θ = m + Λ⁻¹ Jᵀ r with r = score(f + C r): a system of M equations, whatever the number of weights.
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
_TOLERANCE = 1e-9  # relative; Newton's error after the last step is of its square


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
    lengths = engine.constant(_STEP_LENGTHS, outputs)
    weight_per_output = xp.repeat(weight, num_outputs)

    def fisher(at: Array) -> Array:
        return xp.sqrt(weight)[:, None, None] * likelihood.fisher_factor(engine, at)

    def moved(r: Array) -> Array:
        """Outputs for residuals (..., M)."""
        return outputs + xp.reshape(r @ covariance, (*r.shape[:-1], num_rows, num_outputs))

    def objective(r: Array) -> Array:
        fit = xp.sum(weight * likelihood.unit_log_prob(engine, moved(r), y), axis=-1)
        return fit - 0.5 * xp.sum(r * (r @ covariance), axis=-1)

    def iterate(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        r, count, _ = carry  # residuals, iterations so far, size of the last step relative to them
        at = moved(r)
        factor = fisher(at)
        gradient = weight_per_output * xp.reshape(likelihood.unit_score(engine, at, y), (size,)) - r
        rows = xp.reshape(covariance, (num_rows, num_outputs, size))
        system = identity + xp.reshape(factor @ (factor.mT @ rows), (size, size))
        direction = xp.linalg.solve(system, gradient[:, None])[:, 0]
        values = objective(r + lengths[:, None] * direction)
        values = xp.where(xp.isnan(values), -xp.inf, values)
        step = lengths[xp.argmax(values)] * direction
        return r + step, count + 1, xp.max(xp.abs(step)) / (1 + xp.max(xp.abs(r)))

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[2] > _TOLERANCE) & (carry[1] < _MAX_ITERATIONS)

    start = (
        engine.constant(np.zeros(size), outputs),
        engine.constant(0.0, outputs),
        engine.constant(math.inf, outputs),
    )
    r, iterations, _ = engine.while_loop(unfinished, iterate, start)

    factor = fisher(moved(r))
    after = likelihood.update_state(engine, state, outputs, covariance, y, weight)
    information, ok = _information(engine, likelihood, covariance, factor, r, after, state)
    log_predictive = _log_predictive(engine, likelihood, outputs, covariance, y, weight, state)
    finite = xp.all(xp.isfinite(r)) & xp.all(xp.isfinite(factor)) & xp.isfinite(log_predictive)
    return OutputSolution(
        xp.reshape(r, (num_rows, num_outputs)),
        factor,
        after,
        log_predictive,
        information,
        iterations,
        ok & finite & xp.isfinite(information),
    )


def _information(
    engine: Engine, likelihood: Likelihood, covariance: Array, factor: Array, r: Array, after: Any, before: Any
) -> tuple[Array, Array]:
    """½ (log det(I + G) - tr(G (I + G)⁻¹) + rᵀCr / φ) with G = LᵀCL, and what the likelihood's state gained."""
    xp = engine.xp
    num_rows, num_outputs, rank = factor.shape
    blocks = xp.reshape(covariance, (num_rows, num_outputs, num_rows, num_outputs))
    gram = xp.einsum("nkr,nkml,mls->nrms", factor, blocks, factor)
    gram = xp.reshape(gram, (num_rows * rank, num_rows * rank))
    identity = engine.eye(num_rows * rank, gram)
    root, ok = engine.cholesky(identity + 0.5 * (gram + gram.mT))
    inverse_root = engine.solve_triangular(root, identity)
    log_determinant = 2 * xp.sum(xp.log(xp.sum(root * identity, axis=-1)))
    shrinkage = num_rows * rank - xp.sum(inverse_root * inverse_root)
    squares = xp.sum(r * (r @ covariance)) / likelihood.dispersion(after)
    return 0.5 * (log_determinant - shrinkage + squares) + likelihood.state_information(engine, after, before), ok


def _log_predictive(
    engine: Engine, likelihood: Likelihood, outputs: Array, covariance: Array, y: Array, weight: Array, state: Any
) -> Array:
    xp = engine.xp
    num_rows, num_outputs = outputs.shape
    blocks = xp.reshape(covariance, (num_rows, num_outputs, num_rows, num_outputs))
    own = xp.einsum("nknl->nkl", blocks) * likelihood.dispersion(state)
    values = likelihood.predictive_log_prob(engine, outputs, own, y, state)
    return xp.sum(xp.where(weight > 0, values, 0.0))
