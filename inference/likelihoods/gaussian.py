"""Regression with normal noise, of known or learned variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..host import as_host_array
from .base import Likelihood, invalid_target

__all__ = ["Gaussian", "NoiseState"]


class NoiseState(NamedTuple):
    """Inverse-gamma posterior of the noise variance φ: density ∝ φ^(-shape-1) exp(-rate/φ).

    Attributes:
        shape: half the number of observations seen, prior included.
        rate: half the sum of squares seen, prior included, in squared units of y.
    """

    shape: Float[Array, ""]
    rate: Float[Array, ""]


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y = outputs + noise, with noise ~ N(0, φ).

    With φ learned the model is conjugate: θ | φ ~ N(m, φ Λ⁻¹) and φ ~ InverseGamma(shape, rate). For a network that is
    linear in its weights, filtering is exact whatever the order of the data, and the predictive is Student-t with
    2·shape degrees of freedom (Bishop 2006, section 2.3.6; Murphy 2023, section 3.4.3.3).

    Args:
        num_outputs: number of targets K; all share one φ.
        noise_variance: φ where it is known, in squared units of y; None to learn it.
        prior_shape: shape of φ's prior; 1 is worth two observations.
        prior_rate: rate of φ's prior, in squared units of the (standardised) targets.

    Raises:
        InvalidInput: an argument that is not positive.
    """

    num_outputs: int = 1
    noise_variance: float | None = None
    prior_shape: float = 1.0
    prior_rate: float = 0.1

    scales_targets = True

    @property
    def shares_target_scale(self) -> bool:
        """A known φ is one number for all targets, so they must keep one scale."""
        return not self.learns_noise

    def __post_init__(self) -> None:
        if self.num_outputs < 1:
            raise InvalidInput(f"Gaussian.num_outputs must be at least 1, got {self.num_outputs!r}")
        for name in ("noise_variance", "prior_shape", "prior_rate"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"Gaussian.{name} must be positive and finite, got {value!r}")

    @property
    def learns_noise(self) -> bool:
        """Whether φ is learned."""
        return self.noise_variance is None

    def in_units_of(self, target_scale: np.ndarray) -> Gaussian:
        if self.noise_variance is None:
            return self
        return replace(self, noise_variance=self.noise_variance / float(target_scale[0]) ** 2)

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        values = as_host_array(y, argument)
        if values.dtype.kind not in "fiu":
            raise invalid_target(argument, "numbers", f"dtype {values.dtype}")
        values = values.astype(np.float64)
        if values.ndim == 1 and self.num_outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.num_outputs:
            raise invalid_target(argument, f"of shape (rows, {self.num_outputs})", f"shape {np.shape(y)}")
        if not np.all(np.isfinite(values)):
            raise invalid_target(argument, "finite", f"{values[~np.isfinite(values)][0]}")
        if np.any(np.abs(values) > 1e30):
            raise invalid_target(argument, "at most 1e30 in magnitude", f"{values[np.abs(values) > 1e30][0]:g}")
        return values + 0.0  # -0.0 is 0.0

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        noise = rng.standard_normal(outputs.shape)
        if not self.learns_noise:
            return outputs + np.sqrt(self._fixed) * noise
        precision = rng.gamma(float(state.shape), 1 / float(state.rate), outputs.shape[:-1])
        return outputs + noise / np.sqrt(precision)[..., None]

    def initial_state(self) -> Any:
        return NoiseState(np.float64(self.prior_shape), np.float64(self.prior_rate)) if self.learns_noise else ()

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        return NoiseState(*arrays) if self.learns_noise else ()

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        if not self.learns_noise:
            return ()
        shape = self.prior_shape + 0.5 * num_rows * self.num_outputs
        return NoiseState(np.float64(shape), np.float64(shape * math.exp(float(parameters[0]))))

    def dispersion(self, state: Any) -> Any:
        return state.rate / state.shape if self.learns_noise else 1.0

    def update_state(
        self, engine: Engine, state: Any, outputs: Array, covariance: Array, y: Array, weight: Array
    ) -> Any:
        if not self.learns_noise:
            return state
        xp = engine.xp
        root = xp.sqrt(xp.repeat(weight, self.num_outputs))
        error = root * xp.reshape(y - outputs, (-1,))
        identity = engine.eye(error.shape[0], error)
        spread = identity + root[:, None] * covariance * root[None, :]
        squares = error @ engine.solve(spread, error[:, None])[:, 0]
        return NoiseState(state.shape + 0.5 * self.num_outputs * xp.sum(weight), state.rate + 0.5 * squares)

    def state_information(self, engine: Engine, new: Any, old: Any) -> Any:
        if not self.learns_noise:
            return 0.0
        xp = engine.xp
        return (
            (new.shape - old.shape) * engine.digamma(new.shape)
            - engine.lgamma(new.shape)
            + engine.lgamma(old.shape)
            + old.shape * (xp.log(new.rate) - xp.log(old.rate))
            + new.shape * (old.rate - new.rate) / new.rate
        )

    @property
    def _fixed(self) -> float:
        """The variance that unit dispersion stands for."""
        return 1.0 if self.noise_variance is None else self.noise_variance

    def unit_log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array) -> Float[Array, "*S N"]:
        error = y - outputs
        constant = 0.5 * self.num_outputs * math.log(2 * math.pi * self._fixed)
        return -0.5 * engine.xp.sum(error * error, axis=-1) / self._fixed - constant

    def unit_score(self, engine: Engine, outputs: Float[Array, "N K"], y: Array) -> Float[Array, "N K"]:
        return (y - outputs) / self._fixed

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"]) -> Float[Array, "N K R"]:
        identity = engine.eye(self.num_outputs, outputs)
        factor = identity[None] / math.sqrt(self._fixed)
        return engine.xp.broadcast_to(factor, (outputs.shape[0], self.num_outputs, self.num_outputs))

    def log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any) -> Float[Array, "*S N"]:
        """Normal where φ is known; with φ learned and integrated out, a multivariate Student-t."""
        if not self.learns_noise:
            return self.unit_log_prob(engine, outputs, y)
        error = y - outputs
        return self._student_t(engine, engine.xp.sum(error * error, axis=-1), 0.0, state)

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"], y: Array, state: Any
    ) -> Float[Array, " N"]:
        """Closed form: normal with φ known, Student-t with φ learned; covariance is in the outputs' units."""
        xp = engine.xp
        identity = engine.eye(self.num_outputs, mean)
        unit = covariance / self.dispersion(state) + self._fixed * identity
        factor, _ = engine.cholesky(unit)
        whitened = engine.solve_triangular(factor, (y - mean)[:, :, None])[:, :, 0]
        squares = xp.sum(whitened * whitened, axis=-1)
        log_determinant = 2 * xp.sum(xp.log(xp.sum(factor * identity, axis=-1)), axis=-1)
        if self.learns_noise:
            return self._student_t(engine, squares, log_determinant, state)
        return -0.5 * (squares + log_determinant + self.num_outputs * math.log(2 * math.pi))

    def _student_t(self, engine: Engine, squares: Array, log_determinant: Any, state: Any) -> Array:
        """Log density of y with Mahalanobis ``squares`` and ``log_determinant`` of its unit-dispersion covariance."""
        half = 0.5 * self.num_outputs
        return (
            engine.lgamma(state.shape + half)
            - engine.lgamma(state.shape)
            - half * engine.xp.log(2 * math.pi * state.rate)
            - 0.5 * log_determinant
            - (state.shape + half) * engine.xp.log1p(0.5 * squares / state.rate)
        )

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"]) -> Array:
        return outputs

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """φ, or its posterior mean rate/(shape-1); infinite at shape ≤ 1, where the Student-t has no variance."""
        if not self.learns_noise:
            return engine.xp.zeros_like(outputs) + self._fixed
        xp = engine.xp
        tail = state.shape - 1
        mean = xp.where(tail > 0, state.rate / xp.where(tail > 0, tail, 1.0), math.inf)
        return xp.zeros_like(outputs) + mean

    def fit_parameters(self) -> tuple[float, ...]:
        """The logarithm of φ; the prior's mode is where it starts."""
        return (math.log(self.prior_rate / self.prior_shape),) if self.learns_noise else ()

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        if not self.learns_noise:
            return self.unit_log_prob(engine, outputs, y)
        error = y - outputs
        (log_variance,) = parameters
        squares = engine.xp.sum(error * error, axis=-1)
        constant = math.log(2 * math.pi)
        return -0.5 * (squares * engine.xp.exp(-log_variance) + self.num_outputs * (log_variance + constant))

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        if not self.learns_noise:
            return 0.0
        (log_variance,) = parameters  # the density of log φ
        return -self.prior_shape * log_variance - self.prior_rate * engine.xp.exp(-log_variance)
