"""What a batch fit minimises: layers with point weights beside layers with variational ones.

The objective is E_q(v)[-log p(y | v, θ)] + β KL(q(v) ‖ p(v)) - log p(θ) for variational layers v and point layers θ.
With no variational layer it is the negative log posterior, whose minimum a Laplace approximation expands; with no point
layer it is, at β = 1, the negative evidence lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .network import Network

__all__ = ["Parameters", "Terms", "WeightPrior", "deviations_of", "gradient_of", "mean_field_kl", "normal_kl"]


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
        precision: p of each weight, in the form of the means, or one column that all have.
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


class _Moments(NamedTuple):
    """What the likelihood sees of :class:`Parameters`: variances in place of the logarithms of deviations."""

    mean: tuple[Array, ...]
    variance: tuple[Array, ...]
    likelihood: tuple[Array, ...]


def gradient_of(
    engine: Engine,
    network: Network,
    likelihood: Likelihood,
    variational: Sequence[bool],
    num_rows: float,
    members: bool = False,
) -> Callable[..., tuple[Terms, Parameters]]:
    """``gradient(parameters, prior, batch, noise, kl_weight) -> (terms, gradient)`` of the objective at given noise.

    The framework differentiates what the data says. What the prior says is differentiated here, at a third of the
    price::

        ∂KL/∂m = p m,    ∂KL/∂(log s) = p s² - 1

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: the observation model.
        variational: for each layer, whether its weights are variational.
        num_rows: N of the data set, of which a batch is a sample.
        members: whether there are several networks, whose arrays have a leading axis.

    Returns:
        A pure function of the parameters; the prior; a batch (inputs, targets, weight of each row); standard normal
        noise for each variational layer; and β.
    """
    misfit_at = _misfit_of(engine, network, likelihood, variational, num_rows)
    point: Callable[..., Any] = partial(_point, engine)
    normal: Callable[..., Any] = partial(_normal, engine)
    if members:
        misfit_at = engine.vmap(misfit_at)
        point, normal = engine.vmap(point, (0, 0, 0, None)), engine.vmap(normal, (0, 0, 0, 0, 0, None))

    def total(*arguments: Any) -> tuple[Array, Any]:
        misfit, fit = misfit_at(*arguments)
        return engine.xp.sum(misfit), (misfit, fit)

    of_misfit = engine.value_and_grad(total, has_aux=True)

    def gradient(
        parameters: Parameters, prior: WeightPrior, batch: Sequence[Array], noise: Any, kl_weight: Array
    ) -> tuple[Terms, Parameters]:
        variances = tuple(engine.exp2(2 / math.log(2) * log_s) for log_s in parameters.log_deviation)
        moments = _Moments(parameters.mean, variances, parameters.likelihood)
        (_, (objective, fit)), of_moments = of_misfit(moments, batch, noise)
        means, log_deviations = [], []
        spreads = (_spread(v, variational) for v in (parameters.log_deviation, variances, of_moments.variance))
        for mean, of_mean, precision, log_determinant, *spread in zip(
            parameters.mean, of_moments.mean, *prior, *spreads, strict=True
        ):
            share = kl_weight / num_rows if spread[0] is not None else 1 / num_rows
            value, of_mean = point(mean, of_mean, precision, share)
            objective = objective + value
            means.append(of_mean)
            if spread[0] is not None:
                value, of_log_deviation = normal(*spread, precision, log_determinant, share)
                objective = objective + value
                log_deviations.append(of_log_deviation)
        moved = Parameters(tuple(means), tuple(log_deviations), of_moments.likelihood)
        return Terms(objective, fit, objective + fit), moved

    return gradient


def _misfit_of(
    engine: Engine, network: Network, likelihood: Likelihood, variational: Sequence[bool], num_rows: float
) -> Callable[..., tuple[Array, Array]]:
    """``misfit(moments, batch, noise)``: the objective without the prior of the weights, and the log likelihood."""

    def misfit(moments: _Moments, batch: Sequence[Array], noise: Any) -> tuple[Array, Array]:
        rows, targets, row_weight = batch
        if any(variational):
            variances, draws = _spread(moments.variance, variational), _spread(noise, variational)
            outputs = network.apply_with_noise(engine, moments.mean, variances, rows, draws)
        else:
            outputs = network.apply(engine, moments.mean, rows)
        log_probs = likelihood.fit_log_prob(engine, outputs, targets, moments.likelihood)
        fit = engine.xp.sum(row_weight * log_probs) / rows.shape[0]
        return -likelihood.fit_log_prior(engine, moments.likelihood) / num_rows - fit, fit

    return misfit


def _point(engine: Engine, mean: Array, of_mean: Array, precision: Array, share: Any) -> tuple[Array, Array]:
    """What a prior adds to the objective by the means: ½ β p m² / N, and the gradient with it.

    As in :func:`_normal`, the price is that of moving arrays of the weights' size through memory.
    """
    pulled = (share * precision) * mean
    value = 0.5 * (engine.xp.reshape(pulled, (-1,)) @ engine.xp.reshape(mean, (-1,)))
    pulled += of_mean  # in place where the framework is eager
    return value, pulled


def _normal(
    engine: Engine,
    log_deviation: Array,
    variance: Array,
    of_variance: Array,
    precision: Array,
    log_determinant: Array,
    share: Array,
) -> tuple[Array, Array]:
    """What it adds by the standard deviations: ½ β (p s² - 1 - log p s²) / N, and the gradient by log s."""
    xp, pull = engine.xp, share * precision
    rows = xp.sum(variance, axis=-1, keepdims=True) if pull.shape != variance.shape else variance
    squares = xp.sum(pull * rows) - share * (math.prod(variance.shape) + log_determinant)
    gradient = engine.add_product(-share, variance, of_variance + 0.5 * pull, 2.0)
    return 0.5 * squares - share * xp.sum(log_deviation), gradient
