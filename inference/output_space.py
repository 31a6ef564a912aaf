"""The Bayes step of a linearised network, solved in its outputs.

Around the mean m the network is f + J(θ - m), and the prior of the M = N·K outputs is N(f, C) with C = J Λ⁻¹ Jᵀ. The
mode of the posterior is θ = m + Λ⁻¹ Jᵀ r with r = score(f + C r): a system of M equations, whatever the number of
weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood

__all__ = ["OutputSolution", "solve_at_another_dispersion", "solve_in_output_space"]

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

    flat_outputs = xp.reshape(outputs, (size,))
    norm_of_outputs, norm_of_covariance = flat_outputs @ flat_outputs, xp.sum(covariance * covariance)

    def unfinished(now: _Newton) -> Array:
        curvature = xp.sum(now.factor * now.factor)
        squares = now.r @ now.r
        rounding = (_EPSILON * curvature) ** 2 * (norm_of_outputs + norm_of_covariance * squares)
        wanted = _TOLERANCE**2 * (1 + squares) + rounding
        return (now.gradient @ now.gradient > wanted) & (now.count < _MAX_ITERATIONS)

    one, zero = engine.constant(1.0, outputs), engine.constant(0.0, outputs)
    found = engine.while_loop(unfinished, iterate, at(engine.constant(np.zeros(size), outputs), one, zero))

    after = likelihood.update_state(engine, state, outputs, covariance, y, weight)
    squares = found.r @ found.shift
    information, growth, ok = _information(engine, likelihood, covariance, found.factor, squares, after, state)
    log_predictive = _log_predictive(engine, likelihood, outputs, covariance, y, weight, state)
    size_of_step = xp.sqrt(found.r @ found.r) + xp.sum(found.factor * found.factor) + growth + squares
    representable = xp.isfinite(log_predictive + information) & (size_of_step <= largest)
    return OutputSolution(
        xp.reshape(found.r, (num_rows, num_outputs)),
        found.factor,
        after,
        log_predictive,
        information,
        found.count,
        ok & representable,
    )


def solve_at_another_dispersion(
    engine: Engine,
    likelihood: Likelihood,
    largest: float,
    ratio: Float[Array, ""],
    outputs: Float[Array, "N K"],
    covariance: Float[Array, "M M"],
    *rest: Any,
) -> OutputSolution:
    """As :func:`solve_in_output_space`, where the weights are held at ``ratio`` times the likelihood's dispersion.

    In the likelihood's units C is ``ratio`` times as large; in the weights', what was learned weighs ``ratio`` times as
    much: Λ⁻¹ Jᵀ (ratio · r) moves them, and (ratio · L Lᵀ) sharpens them. Both dispersions are at their estimates.
    """
    solved = solve_in_output_space(engine, likelihood, largest, outputs, ratio * covariance, *rest)
    factor = engine.xp.sqrt(ratio) * solved.fisher_factor
    return solved._replace(residual=ratio * solved.residual, fisher_factor=factor)


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
