"""What likelihoods share that are a normal distribution once their scale is given: the predictive.

Given the scale, y and the outputs are jointly normal and the outputs integrate out in closed form; the scale is left
to fixed nodes. So a predictive is a finite mixture of normal distributions, however narrow the noise is beside the
outputs' own uncertainty, which nodes for the outputs themselves would miss.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from .base import HOST, Likelihood, numeric_targets

__all__ = ["NormalComponents", "ScaleMixture"]


class NormalComponents(NamedTuple):
    """A mixture of S normal distributions for each row.

    Attributes:
        log_weights: of the components.
        mean: of y.
        covariance: of y.
    """

    log_weights: Float[Array, " S"]
    mean: Float[Array, "S N T"]
    covariance: Float[Array, "S N T T"]


class ScaleMixture(Likelihood):
    """A likelihood whose predictive is a mixture of normal distributions."""

    scales_targets = True
    is_concave = False

    @abstractmethod
    def components(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"], state: Any
    ) -> NormalComponents:
        """The predictive's components for outputs ~ N(mean, covariance)."""

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        return numeric_targets(y, self.num_targets, argument)

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, y: Array, state: Any
    ) -> Float[Array, " N"]:
        if covariance is None:
            return self.log_prob(engine, mean, y, state)
        xp = engine.xp
        log_weights, location, spread = self.components(engine, mean, covariance, state)
        size = location.shape[-1]
        factor, _ = engine.cholesky(spread)
        whitened = engine.solve_triangular(factor, (y - location)[..., None])[..., 0]
        log_determinant = 2 * xp.sum(xp.log(xp.sum(factor * engine.eye(size, mean), axis=-1)), axis=-1)
        log_prob = -0.5 * (xp.sum(whitened * whitened, axis=-1) + log_determinant + size * math.log(2 * math.pi))
        return engine.logsumexp(log_weights[:, None] + log_prob, axis=0)

    def predictive_cdf(self, mean: np.ndarray, covariance: np.ndarray | None, y: np.ndarray, state: Any) -> np.ndarray:
        from scipy.special import ndtr

        if covariance is None:
            return self.cdf(mean, y, state)
        log_weights, location, spread = self.components(HOST, mean, covariance, state)
        deviation = np.sqrt(np.einsum("sntt->snt", spread))
        return np.tensordot(np.exp(log_weights), ndtr((y - location) / deviation), axes=1)
