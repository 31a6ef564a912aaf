"""Robust regression: Student-t noise, whose tails let an outlier pass (Lange, Little and Taylor 1989)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..checks import is_count, is_number
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..quadrature import log_gamma_nodes
from .base import PredictiveMoments, per_row
from .scale_mixture import NormalComponents, ScaleMixture

__all__ = ["ScaleState", "StudentT"]


class ScaleState(NamedTuple):
    """Attributes:
    scale: σ, in units of the (standardised) targets.
    """

    scale: Float[Array, ""]


@dataclass(frozen=True)
class StudentT(ScaleMixture):
    """y ~ t_ν(outputs, σ² I), a multivariate Student-t: a row that is an outlier is one in all its targets.

    Given λ ~ Gamma(ν/2, ν/2) a row is N(outputs, σ²/λ); the predictive integrates λ by fixed nodes and the outputs in
    closed form. The Fisher information of the outputs is (ν + K) / ((ν + K + 2) σ²) I. σ is learned by a batch fit, at
    its posterior mode, and held fixed by online updates; before a fit it is the prior's mode, √(rate/shape).

    Args:
        num_outputs: number of targets K.
        degrees_of_freedom: ν > 1; the variance is infinite up to 2.
        scale: σ where it is known, in units of y; None to learn it.
        prior_shape: of the inverse-gamma prior of σ²; 1 is worth two observations.
        prior_rate: of that prior, in squared units of the (standardised) targets.

    Raises:
        InvalidInput: an argument outside its range.
    """

    num_outputs: int = 1
    degrees_of_freedom: float = 4.0
    scale: float | None = None
    prior_shape: float = 1.0
    prior_rate: float = 0.1

    def __post_init__(self) -> None:
        if not is_count(self.num_outputs):
            raise InvalidInput(f"StudentT.num_outputs must be an integer of at least 1, got {self.num_outputs!r}")
        if not is_number(self.degrees_of_freedom) or self.degrees_of_freedom <= 1:
            raise InvalidInput(
                f"StudentT.degrees_of_freedom must be finite and above 1, got {self.degrees_of_freedom!r}"
            )
        for name in ("scale", "prior_shape", "prior_rate"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise InvalidInput(f"StudentT.{name} must be positive and finite, got {value!r}")

    @property
    def shares_target_scale(self) -> bool:
        """A known σ is one number for all targets, so they must keep one scale."""
        return self.scale is not None

    def in_units_of(self, target_scale: np.ndarray) -> StudentT:
        if self.scale is None:
            return self
        return replace(self, scale=self.scale / float(target_scale[0]))

    # -- state ----------------------------------------------------------------------------------------------------
    def _scale(self, state: Any) -> Any:
        return state.scale if self.scale is None else self.scale

    def initial_state(self) -> Any:
        return self.state_from_fit(self.fit_parameters(), 0)

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        return ScaleState(np.exp(np.float64(parameters[0]))) if self.scale is None else ()

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        return ScaleState(*arrays) if self.scale is None else ()

    def fit_parameters(self) -> tuple[float, ...]:
        """The logarithm of σ."""
        return (0.5 * math.log(self.prior_rate / self.prior_shape),) if self.scale is None else ()

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        state = ScaleState(engine.xp.exp(parameters[0])) if self.scale is None else ()
        return self.unit_log_prob(engine, outputs, y, state)

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        if self.scale is not None:
            return 0.0
        (log_scale,) = parameters  # the density of log σ
        return -2 * self.prior_shape * log_scale - self.prior_rate * engine.xp.exp(-2 * log_scale)

    # -- densities ------------------------------------------------------------------------------------------------
    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        half = 0.5 * self.degrees_of_freedom
        precision = rng.gamma(half, 1 / half, outputs.shape[:-1])
        deviation = per_row(self._scale(state) / np.sqrt(precision), 1)
        return outputs + deviation * rng.standard_normal(outputs.shape)

    def cdf(self, outputs: np.ndarray, y: np.ndarray, state: Any) -> np.ndarray:
        from scipy.special import stdtr

        return np.asarray(stdtr(self.degrees_of_freedom, (y - outputs) / per_row(self._scale(state), 1)))

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        xp, size, freedom = engine.xp, self.num_outputs, self.degrees_of_freedom
        scale = self._scale(state)
        error = (y - outputs) / per_row(scale, 1)
        constant = math.lgamma(0.5 * (freedom + size)) - math.lgamma(0.5 * freedom)
        constant -= 0.5 * size * math.log(freedom * math.pi)
        log_scale = math.log(scale) if self.scale is not None else xp.log(scale)
        squares = xp.sum(error * error, axis=-1)
        return constant - size * log_scale - 0.5 * (freedom + size) * xp.log1p(squares / freedom)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        scale = per_row(self._scale(state), 1)
        error = y - outputs
        squares = engine.xp.sum(error * error, axis=-1, keepdims=True)
        freedom = self.degrees_of_freedom
        return (freedom + self.num_outputs) * error / (freedom * scale * scale + squares)

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        together = self.degrees_of_freedom + self.num_outputs
        root = math.sqrt(together / (together + 2)) / per_row(self._scale(state), 2)
        factor = root * engine.eye(self.num_outputs, outputs)
        return engine.xp.broadcast_to(factor, (outputs.shape[0], self.num_outputs, self.num_outputs))

    def observed_information(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K K"]:
        """W (I - 2 e eᵀ / (ν σ² + |e|²)) with the error e and w = (ν + K) / (ν σ² + |e|²): negative for outliers."""
        scale = per_row(self._scale(state), 1)
        error = y - outputs
        total = self.degrees_of_freedom * scale * scale + engine.xp.sum(error * error, axis=-1, keepdims=True)
        outer = 2 * error[:, :, None] * (error / total)[:, None, :]
        weight = (self.degrees_of_freedom + self.num_outputs) / total
        return weight[:, :, None] * (engine.eye(self.num_outputs, outputs) - outer)

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return outputs

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """ν σ² / (ν - 2); infinite at ν ≤ 2."""
        freedom, scale = self.degrees_of_freedom, per_row(self._scale(state), 1)
        inflation = freedom / (freedom - 2) if freedom > 2 else math.inf
        return engine.xp.zeros_like(outputs) + inflation * scale * scale

    # -- predictive -----------------------------------------------------------------------------------------------
    def components(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"], state: Any
    ) -> NormalComponents:
        """Nodes for λ; N(mean, covariance + σ²/λ I) each."""
        host_nodes, host_log_weights = log_gamma_nodes(0.5 * self.degrees_of_freedom)
        inverse = engine.constant(np.exp(-host_nodes)[:, None, None, None], mean)
        scale = per_row(self._scale(state), 2)
        spread = covariance + inverse * (scale * scale * engine.eye(self.num_outputs, mean))
        return NormalComponents(engine.constant(host_log_weights, mean), mean[None], spread)

    def predictive_moments(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, state: Any
    ) -> PredictiveMoments:
        aleatoric = self.variance(engine, mean, state)
        if covariance is None:
            return PredictiveMoments(mean, 0 * mean, aleatoric)
        epistemic = engine.xp.sum(covariance * engine.eye(self.num_outputs, mean), axis=-1)
        return PredictiveMoments(mean, epistemic, aleatoric)
