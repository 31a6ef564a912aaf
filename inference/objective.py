"""What a batch fit minimises: layers with point weights beside layers with variational ones.

The objective is E_q(v)[-log p(y | v, θ)] + β KL(q(v) ‖ p(v)) - log p(θ) for variational layers v and point layers θ.
With no variational layer it is the negative log posterior, whose minimum a Laplace approximation expands; with no point
layer it is, at β = 1, the negative evidence lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .network import Network

__all__ = ["Parameters", "Terms", "deviations_of", "mean_field_kl", "objective_of"]


class Parameters(NamedTuple):
    """What a fit moves.

    Attributes:
        mean: of each layer's weights.
        log_deviation: logarithm of the standard deviation of each variational layer's weights, in order.
        likelihood: see :meth:`Likelihood.fit_parameters`.
    """

    mean: tuple[Array, ...]
    log_deviation: tuple[Array, ...]
    likelihood: tuple[Array, ...]


class Terms(NamedTuple):
    """The objective and its parts, each per row of the data set.

    Attributes:
        objective: what is minimised, -log_likelihood + complexity.
        log_likelihood: E_q[log p(y | weights)].
        complexity: β KL(q ‖ p) of the variational layers, minus the log prior of everything else.
    """

    objective: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    complexity: Float[Array, ""]


def deviations_of(engine: Engine, parameters: Parameters, variational: Sequence[bool]) -> list[Array | None]:
    """Standard deviation of each layer's weights; None where they are points."""
    remaining = iter(parameters.log_deviation)
    return [engine.xp.exp(next(remaining)) if flag else None for flag in variational]


def mean_field_kl(
    xp: Any, mean: Sequence[Array], log_deviation: Sequence[Array], prior_precision: Sequence[Array]
) -> Array:
    """KL(q ‖ p) of independent normal weights: Σ ½ (p m² + p s² - 1 - log p s²).

    Args:
        xp: array namespace.
        mean: m of every weight.
        log_deviation: log s of every weight.
        prior_precision: p of every weight; the prior mean is 0.
    """
    total = 0.0
    for m, log_s, p in zip(mean, log_deviation, prior_precision, strict=True):
        log_scaled = 2 * log_s + xp.log(p)
        total = total + 0.5 * xp.sum(p * m * m + xp.exp(log_scaled) - 1 - log_scaled)
    return total


def objective_of(
    engine: Engine, network: Network, likelihood: Likelihood, variational: Sequence[bool], num_rows: float
) -> Callable[..., tuple[Array, Terms]]:
    """``objective(parameters, prior_precision, batch, noise, kl_weight) -> (objective, terms)`` of one network.

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: the observation model.
        variational: for each layer, whether its weights are variational.
        num_rows: N of the data set, of which a batch is a sample.

    Returns:
        A pure function of the parameters; the precision of each weight's prior, whose mean is 0; a batch (inputs,
        targets, weight of each row); standard normal noise for each variational layer; and β.
    """
    xp = engine.xp

    def objective(
        parameters: Parameters, prior_precision: Sequence[Array], batch: Sequence[Array], noise: Any, kl_weight: Array
    ) -> tuple[Array, Terms]:
        rows, targets, row_weight = batch
        deviations = deviations_of(engine, parameters, variational)
        if any(variational):
            draws = iter(noise)
            per_layer = [next(draws) if flag else None for flag in variational]
            outputs = network.apply_with_noise(engine, parameters.mean, deviations, rows, per_layer)
        else:
            outputs = network.apply(engine, parameters.mean, rows)
        log_probs = likelihood.fit_log_prob(engine, outputs, targets, parameters.likelihood)
        fit = xp.sum(row_weight * log_probs) / rows.shape[0]
        complexity = -likelihood.fit_log_prior(engine, parameters.likelihood)
        log_deviations = iter(parameters.log_deviation)
        for mean, precision, flag in zip(parameters.mean, prior_precision, variational, strict=True):
            if flag:
                penalty = kl_weight * mean_field_kl(xp, [mean], [next(log_deviations)], [precision])
            else:
                penalty = 0.5 * xp.sum(precision * mean * mean)
            complexity = complexity + penalty
        complexity = complexity / num_rows
        return complexity - fit, Terms(complexity - fit, fit, complexity)

    return objective
