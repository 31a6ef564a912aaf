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
from .factors import among_directions
from .influence import RowFactors
from .likelihoods.base import Likelihood

__all__ = ["OutputProblem", "OutputSolution", "OutputStep", "Site", "own_covariance"]


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
        evidence: what the batch, as it is weighted, says of the model, in nats; see :meth:`Likelihood.log_evidence`.
            ``log_predictive`` where models are not compared.
        information: KL divergence in nats of the posterior of the linearised model from its prior; for a structure
            that holds every correlation this is its own KL.
        iterations: taken.
        ok: whether all of it is finite and the system was positive definite.
    """

    residual: Float[Array, "N K"]
    fisher_factor: Float[Array, "N K R"]
    state: Any
    log_predictive: Float[Array, ""]
    evidence: Float[Array, ""]
    information: Float[Array, ""]
    iterations: Float[Array, ""]
    ok: Bool[Array, ""]


@dataclass(frozen=True)
class OutputStep(ABC):
    """A way to approximate the posterior of the outputs by a normal distribution."""

    @abstractmethod
    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        """What the observations say, as r and L."""

    def solve(
        self,
        engine: Engine,
        likelihood: Likelihood,
        largest: float,
        *problem: Any,
        influence: RowFactors | None = None,
        compared: bool = False,
    ) -> OutputSolution:
        """The site, the likelihood's state after the batch, and the diagnostics.

        Args:
            engine: of float64 arrays.
            likelihood: the observation model.
            largest: magnitude that r, L², LᵀCL and rᵀCr must stay below for the step to be taken, so that the weights'
                own arithmetic does not overflow: (LᵀCL) bounds what is added to each precision, relative to it, and
                rᵀCr the move of each weight, relative to its standard deviation.
            problem: the fields of an :class:`OutputProblem`.
            influence: what is made of the rows, where their influence is bounded.
            compared: whether the evidence is asked for.
        """
        xp = engine.xp
        outputs, covariance, y, weight, state = given = OutputProblem(*problem)
        if influence is not None:
            given = given._replace(weight=weight * influence.weight)
        residual, factor, iterations = self.site(engine, likelihood, given)
        after = likelihood.update_state(engine, state, outputs, covariance, y, weight, influence)
        squares = residual @ (residual @ covariance)
        information, growth, ok = _information(engine, likelihood, covariance, factor, squares, after, state)
        densities = _log_densities(engine, likelihood, outputs, covariance, y, state)
        log_predictive = evidence = xp.sum(xp.where(weight > 0, densities, 0.0))
        if compared:
            evidence = likelihood.log_evidence(engine, densities, outputs, covariance, y, given.weight, state)
        size_of_step = xp.sqrt(residual @ residual) + xp.sum(factor * factor) + growth + squares
        representable = xp.isfinite(log_predictive + evidence + information) & (size_of_step <= largest)
        return OutputSolution(
            xp.reshape(residual, outputs.shape),
            factor,
            after,
            log_predictive,
            evidence,
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
    gram = among_directions(engine, covariance, factor)[1]
    identity = engine.eye(gram.shape[0], gram)
    root, ok = engine.cholesky(identity + 0.5 * (gram + gram.mT))
    inverse_root = engine.solve_triangular(root, identity)
    log_determinant = 2 * xp.sum(xp.log(xp.sum(root * identity, axis=-1)))
    shrinkage = gram.shape[0] - xp.sum(inverse_root * inverse_root)
    moved = squares / likelihood.dispersion(after)
    gained = 0.5 * (log_determinant - shrinkage + moved) + likelihood.state_information(engine, after, before)
    return gained, xp.sum(gram * identity), ok


def _log_densities(
    engine: Engine, likelihood: Likelihood, outputs: Array, covariance: Array, y: Array, state: Any
) -> Float[Array, " N"]:
    own = own_covariance(engine, covariance, outputs) * likelihood.dispersion(state)
    return likelihood.predictive_log_prob(engine, outputs, own, y, state)


def own_covariance(engine: Engine, covariance: Float[Array, "M M"], outputs: Float[Array, "N K"]) -> Array:
    """The covariance of each row's outputs alone, (N, K, K)."""
    num_rows, num_outputs = outputs.shape
    own = engine.xp.reshape(covariance, (num_rows, num_outputs, num_rows, num_outputs))
    return own[:, :, 0, :] if num_rows == 1 else engine.xp.einsum("nknl->nkl", own)
