"""How much any one event may do to the posterior: robust filtering by generalised Bayes.

Duran-Martin et al. (2024), "Outlier-robust Kalman filtering through generalised Bayes": the log likelihood of an event
is multiplied by a weight that falls with the distance of what was seen from what was expected. The filter keeps its
closed form, and what an event can do to the mean is bounded.

The distance is taken under the *predictive* covariance, of the noise and of the outputs: what comes before anything was
learned is far from the mean, but not far for how little the model claims to know. Under the model's own predictive the
squared distance has mean 1, for every likelihood:

- numbers, counts, levels, and yes or no: d² = eᵀ Σ⁻¹ e / T with e = y - E[y] and Σ = Cov[y], of T targets.
- one of C classes: the same of the classes' indicators, whose covariance is diag(π) - π πᵀ with the predictive
  probabilities π: d² = (1/π_y - 1) / (C - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .likelihoods.base import Likelihood
from .likelihoods.masked import MaskedTargets

__all__ = ["InverseMultiquadric", "RowFactors", "squared_distance"]


_FAR = 4.0
"""Squared distance, in thresholds, from which ignorance is no excuse."""


class RowFactors(NamedTuple):
    """What the influence function makes of the rows of a batch: factors, at most 1.

    Attributes:
        weight: of the rows' weights in the posterior of the network.
        residual: of the residuals from which noise is learned.
        count: of the number of observations of the noise that the rows count as.
    """

    weight: Float[Array, " N"]
    residual: Float[Array, " N"]
    count: Float[Array, " N"]


@dataclass(frozen=True)
class InverseMultiquadric:
    """An event at squared distance d² weighs (1 + q + ρ q max(0, q - 4))⁻¹ with q = d²/c².

    ρ is the ratio of the two variances in its prediction, that of the outputs over that of the noise. Once the outputs
    are known better than the noise this is the inverse multiquadric (1 + d²/c²)⁻¹: the pull on the mean is largest at
    d = c and then falls. Before that a likelihood of small weight would still move the mean nearly all the way, since
    there is little to hold it: beyond d = 2 c the last term shrinks the gain too.

    Noise that is learned takes the weight to the power 2 - s, where s is the share of what is known of the noise that
    was its prior's: squares grow as fast as the weight falls, so that an outlier would add c² noise variances for
    ever; but where nothing is known of the noise yet, outliers are how it is found. The weighted squares are counted as
    fewer observations than they are, so that normal noise is estimated without bias.

    Args:
        threshold: c, in predictive standard deviations; at 2.385 a mean of normal data keeps 95% of its efficiency
            (Holland and Welsch 1977).

    Raises:
        InvalidInput: a threshold that is not positive.
    """

    threshold: float = 2.385

    def __post_init__(self) -> None:
        if not (isinstance(self.threshold, int | float) and 0 < self.threshold < math.inf):
            raise InvalidInput(f"InverseMultiquadric.threshold must be positive and finite, got {self.threshold!r}")

    def row_factors(
        self, engine: Engine, likelihood: Likelihood, outputs: Array, covariance: Array, y: Array, state: Any
    ) -> RowFactors:
        """The factors of a batch's rows, each by its own predictive.

        Args:
            engine: of float64 arrays.
            likelihood: the observation model.
            outputs: at the mean, (N, K).
            covariance: of each row's outputs, in the outputs' units, (N, K, K).
            y: targets, as the likelihood prepared them.
            state: of the likelihood.
        """
        square, ignorance = squared_distance(engine, likelihood, outputs, covariance, y, state)
        relative = square / self.threshold**2
        weight = 1 / (1 + relative)
        power = 2 - likelihood.prior_share(state)
        beyond = engine.xp.where(relative > _FAR, relative - _FAR, 0.0)
        steeper = 1 / (1 + relative + ignorance * relative * beyond)
        return RowFactors(steeper, weight ** (0.5 * power), (self._unbiased * weight) ** power)

    @cached_property
    def _unbiased(self) -> float:
        """The g with E[w²z²] = g² E[w²] for a standard normal z of weight w; E[w z²] is g E[w] to two hundredths."""
        z = np.linspace(-12, 12, 4801)
        share = np.exp(-0.5 * z * z) / (1 + z * z / self.threshold**2) ** 2
        return math.sqrt(float((share @ (z * z)) / np.sum(share)))


def squared_distance(
    engine: Engine, likelihood: Likelihood, outputs: Array, covariance: Array, y: Array, state: Any
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """d² and ρ of each row; arguments as for :meth:`InverseMultiquadric.row_factors`.

    Noise that is learned is taken at its estimate. Of a row that tells of some outputs, these count.
    """
    xp = engine.xp
    mean, epistemic, aleatoric = likelihood.predictive_moments(
        engine, outputs, covariance, likelihood.estimated_state(state)
    )
    y, mask = y if isinstance(y, MaskedTargets) else (y, None)
    size = mean.shape[-1]
    told: Any = size if mask is None else xp.sum(xp.astype(mask, mean.dtype), axis=-1)
    noise = xp.sum(aleatoric, axis=-1)
    ratio = xp.where(noise > 0, xp.sum(epistemic, axis=-1) / xp.where(noise > 0, noise, 1.0), 0.0)
    if y.ndim == 1 and size > 1:
        chosen = y[:, None] == engine.constant(np.arange(size), y)
        possible = mean if mask is None else xp.where(mask, mean, 0.0)
        share = xp.sum(xp.where(chosen, mean, 0.0), axis=-1) / xp.sum(possible, axis=-1)
        return (1 / share - 1) / (told - 1 + (told == 1)), ratio
    error = xp.reshape(y, mean.shape) - mean
    if mask is not None:
        error = xp.where(mask, error, 0.0)
    if size == 1:
        return (error * error / (epistemic + aleatoric))[:, 0], ratio
    identity = engine.eye(size, mean)
    between = covariance[:, :size, :size] * (1 - identity) if likelihood.scales_targets else 0 * identity
    if mask is not None:
        between = xp.where(mask[:, :, None] & mask[:, None, :], between, 0.0)
    spread = between + (epistemic + aleatoric)[:, :, None] * identity
    factor, _ = engine.cholesky(spread)
    whitened = engine.solve_triangular(factor, error[:, :, None])[:, :, 0]
    return xp.sum(whitened * whitened, axis=-1) / told, ratio
