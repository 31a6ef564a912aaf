"""The Bayes step of a linearised network, taken in its outputs.

Around the mean m the network is f + J(θ - m), and the prior of the M = N·K outputs is N(f, C) with C = J Λ⁻¹ Jᵀ. The
posterior's mean is θ = m + Λ⁻¹ Jᵀ r, and its precision Λ + Jᵀ L Lᵀ J, for some r and L of the outputs' size, whatever
the number of weights. An :class:`OutputStep` finds them; there is one for each way to approximate the outputs'
posterior by a normal distribution, and for normal noise all of them are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool, Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood

__all__ = ["OutputProblem", "OutputSolution", "OutputStep", "Site", "solve_at_another_dispersion"]


class OutputProblem(NamedTuple):
    """What a step is given, in float64.

    Attributes:
        outputs: f, the network's outputs at the mean.
        covariance: C at unit dispersion, M = N·K.
        y: targets, as the likelihood prepared them.
        weight: of each row, at least 0; a row of weight 0 (padding) changes nothing.
        state: of the likelihood.
    """

    outputs: Float[Array, "N K"]
    covariance: Float[Array, "M M"]
    y: Array
    weight: Float[Array, " N"]
    state: Any


class Site(NamedTuple):
    """What the observations say of the outputs, as a normal distribution would.

    Attributes:
        residual: r: every block of weights moves by Λ⁻¹ Jᵀ r.
        factor: L, √weight included: every block's precision grows by Jᵀ L Lᵀ J.
        iterations: taken to find it.
    """

    residual: Float[Array, " M"]
    factor: Float[Array, "N K R"]
    iterations: Float[Array, ""]


class OutputSolution(NamedTuple):
    """What a Bayes step needs to know, all of it in output space; float64.

    Attributes:
        residual: r, shape (N, K); see :class:`Site`.
        fisher_factor: L, shape (N, K, R); see :class:`Site`.
        state: of the likelihood, after the batch.
        log_predictive: Σ over the rows of the log predictive density of y before it was learned.
        information: KL divergence in nats of the posterior of the linearised model from its prior; for a structure
            that holds every correlation this is its own KL.
        iterations: taken.
        ok: whether all of it is finite and the system was positive definite.
    """

    residual: Float[Array, "N K"]
    fisher_factor: Float[Array, "N K R"]
    state: Any
    log_predictive: Float[Array, ""]
    information: Float[Array, ""]
    iterations: Float[Array, ""]
    ok: Bool[Array, ""]


@dataclass(frozen=True)
class OutputStep(ABC):
    """A way to approximate the posterior of the outputs by a normal distribution."""

    @abstractmethod
    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        """What the observations say, as r and L."""

    def solve(self, engine: Engine, likelihood: Likelihood, largest: float, *problem: Any) -> OutputSolution:
        """The site, the likelihood's state after the batch, and the diagnostics.

        Args:
            engine: of float64 arrays.
            likelihood: the observation model.
            largest: magnitude that r, L², LᵀCL and rᵀCr must stay below for the step to be taken, so that the weights'
                own arithmetic does not overflow: (LᵀCL) bounds what is added to each precision, relative to it, and
                rᵀCr the move of each weight, relative to its standard deviation.
            problem: the fields of an :class:`OutputProblem`.
        """
        xp = engine.xp
        outputs, covariance, y, weight, state = given = OutputProblem(*problem)
        residual, factor, iterations = self.site(engine, likelihood, given)
        after = likelihood.update_state(engine, state, outputs, covariance, y, weight)
        squares = residual @ (residual @ covariance)
        information, growth, ok = _information(engine, likelihood, covariance, factor, squares, after, state)
        log_predictive = _log_predictive(engine, likelihood, outputs, covariance, y, weight, state)
        size_of_step = xp.sqrt(residual @ residual) + xp.sum(factor * factor) + growth + squares
        representable = xp.isfinite(log_predictive + information) & (size_of_step <= largest)
        return OutputSolution(
            xp.reshape(residual, outputs.shape),
            factor,
            after,
            log_predictive,
            information,
            iterations,
            ok & representable,
        )


def solve_at_another_dispersion(
    step: OutputStep,
    engine: Engine,
    likelihood: Likelihood,
    largest: float,
    ratio: Float[Array, ""],
    outputs: Float[Array, "N K"],
    covariance: Float[Array, "M M"],
    *rest: Any,
) -> OutputSolution:
    """As :meth:`OutputStep.solve`, where the weights are held at ``ratio`` times the likelihood's dispersion.

    In the likelihood's units C is ``ratio`` times as large; in the weights', what was learned weighs ``ratio`` times as
    much: Λ⁻¹ Jᵀ (ratio · r) moves them, and (ratio · L Lᵀ) sharpens them. Both dispersions are at their estimates.
    """
    solved = step.solve(engine, likelihood, largest, outputs, ratio * covariance, *rest)
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
