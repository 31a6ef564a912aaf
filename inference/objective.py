"""What a batch fit minimises: layers with point weights beside layers with variational ones.

The objective is E_q(v)[-log p(y | v, θ)] + β KL(q(v) ‖ p(v)) - log p(θ) for variational layers v and point layers θ.
With no variational layer it is the negative log posterior, whose minimum a Laplace approximation expands; with no point
layer it is, at β = 1, the negative evidence lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .network import Network

__all__ = ["Parameters", "Terms", "WeightPrior", "deviations_of", "mean_field_kl", "normal_kl", "objective_of"]


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


class WeightPrior(NamedTuple):
    """Independent normal weights around 0.

    Attributes:
        precision: p of each weight, in the form of the means.
        log_determinant: Σ log p of each layer; 0 where its weights are points, which don't ask for it.
    """

    precision: tuple[Array, ...]
    log_determinant: tuple[Array, ...]


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
    log_deviations = _spread(parameters.log_deviation, variational)
    return [None if log_s is None else engine.xp.exp(log_s) for log_s in log_deviations]


def _spread(values: Sequence[Array], variational: Sequence[bool]) -> list[Array | None]:
    """The values of variational layers, and None for the others."""
    remaining = iter(values)
    return [next(remaining) if flag else None for flag in variational]


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
    layers = zip(mean, log_deviation, prior_precision, strict=True)
    return sum(normal_kl(xp, m, xp.exp(2 * log_s), log_s, p, xp.sum(xp.log(p))) for m, log_s, p in layers)


def normal_kl(
    xp: Any, mean: Array, variance: Array, log_deviation: Array, prior_precision: Array, log_determinant: Array
) -> Array:
    """:func:`mean_field_kl` of one layer, given what need not be computed again.

    Args:
        xp: array namespace.
        mean: m.
        variance: s².
        log_deviation: log s.
        prior_precision: p.
        log_determinant: Σ log p.
    """
    squares = xp.sum(prior_precision * (xp.square(mean) + variance))
    return 0.5 * (squares - math.prod(mean.shape) - log_determinant) - xp.sum(log_deviation)


def objective_of(
    engine: Engine, network: Network, likelihood: Likelihood, variational: Sequence[bool], num_rows: float
) -> Callable[..., tuple[Array, Terms]]:
    """``objective(parameters, prior, batch, noise, kl_weight) -> (objective, terms)`` of one network.

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: the observation model.
        variational: for each layer, whether its weights are variational.
        num_rows: N of the data set, of which a batch is a sample.

    Returns:
        A pure function of the parameters; the prior; a batch (inputs, targets, weight of each row); standard normal
        noise for each variational layer; and β.
    """
    xp = engine.xp

    def objective(
        parameters: Parameters, prior: WeightPrior, batch: Sequence[Array], noise: Any, kl_weight: Array
    ) -> tuple[Array, Terms]:
        rows, targets, row_weight = batch
        log_deviations = _spread(parameters.log_deviation, variational)
        variances = [None if log_s is None else xp.exp(2 * log_s) for log_s in log_deviations]
        if any(variational):
            draws = _spread(noise, variational)
            outputs = network.apply_with_noise(engine, parameters.mean, variances, rows, draws)
        else:
            outputs = network.apply(engine, parameters.mean, rows)
        log_probs = likelihood.fit_log_prob(engine, outputs, targets, parameters.likelihood)
        fit = xp.sum(row_weight * log_probs) / rows.shape[0]
        complexity = -likelihood.fit_log_prior(engine, parameters.likelihood)
        for mean, variance, log_s, *of_prior in zip(parameters.mean, variances, log_deviations, *prior, strict=True):
            if variance is None:
                penalty = 0.5 * xp.sum(of_prior[0] * xp.square(mean))
            else:
                penalty = kl_weight * normal_kl(xp, mean, variance, log_s, *of_prior)
            complexity = complexity + penalty
        complexity = complexity / num_rows
        return complexity - fit, Terms(complexity - fit, fit, complexity)

    return objective
