"""Regression with normal noise, of known or learned variance."""

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
from .base import Likelihood, PredictiveMoments, numeric_targets, per_row

__all__ = ["FixedNoise", "Gaussian", "NoiseState"]


class FixedNoise(NamedTuple):
    """A learned noise variance that is given, as in one draw of a sampler.

    Attributes:
        variance: φ, in squared units of y.
    """

    variance: Float[Array, ""]


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
        noise_window: how many rows' worth of evidence of φ is held at most; what is older fades as more comes, and φ
            follows what the newest rows show. For a network that is far from linear, whose first errors are no noise.
            The weights stay N(m, φ Λ⁻¹): whatever φ was when a row came, the row counts as one of the φ of now. None:
            every row counts for good, which is exact where φ is one number.

    Raises:
        InvalidInput: an argument that is not positive; a window of no more than the prior is worth.
    """

    num_outputs: int = 1
    noise_variance: float | None = None
    prior_shape: float = 1.0
    prior_rate: float = 0.1
    noise_window: float | None = None

    scales_targets = True

    @property
    def shares_target_scale(self) -> bool:
        """A known φ is one number for all targets, so they must keep one scale."""
        return not self.learns_noise

    def __post_init__(self) -> None:
        if not is_count(self.num_outputs):
            raise InvalidInput(f"Gaussian.num_outputs must be an integer of at least 1, got {self.num_outputs!r}")
        for name in ("noise_variance", "prior_shape", "prior_rate"):
            value = getattr(self, name)
            if value is None and name == "noise_variance":
                continue
            if not is_number(value) or value <= 0:
                raise InvalidInput(f"Gaussian.{name} must be positive and finite, got {value!r}")
        window = self.noise_window
        if window is None:
            return
        if not self.learns_noise:
            raise InvalidInput("Gaussian.noise_window is for noise that is learned: it does not go with noise_variance")
        least = 2 * max(1.0, self.prior_shape) / self.num_outputs  # at a shape of 1 the variance is infinite
        if not is_number(window) or not window > least:
            raise InvalidInput(f"Gaussian.noise_window must be finite and above {least:g} rows, got {window!r}")

    @property
    def learns_noise(self) -> bool:
        """Whether φ is learned."""
        return self.noise_variance is None

    def in_units_of(self, target_scale: np.ndarray) -> Gaussian:
        if self.noise_variance is None:
            return self
        return replace(self, noise_variance=self.noise_variance / float(target_scale[0]) ** 2)

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        return numeric_targets(y, self.num_outputs, argument)

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        noise = rng.standard_normal(outputs.shape)
        if isinstance(state, NoiseState):
            state = self.draw_state(rng, NoiseState(*(np.broadcast_to(a, outputs.shape[:-1]) for a in state)))
        return outputs + np.sqrt(per_row(self._variance(state), 1)) * noise

    def estimated_state(self, state: Any) -> Any:
        return FixedNoise(self.dispersion(state)) if isinstance(state, NoiseState) else state

    def draw_state(self, rng: np.random.Generator, state: Any) -> Any:
        return FixedNoise(state.rate / rng.gamma(state.shape)) if isinstance(state, NoiseState) else state

    def predictive_cdf(self, mean: np.ndarray, covariance: np.ndarray | None, y: np.ndarray, state: Any) -> np.ndarray:
        """Normal, or Student-t with φ learned."""
        from scipy.special import ndtr, stdtr

        spread = 0.0 if covariance is None else np.einsum("nkk->nk", covariance)
        error = y - mean
        if isinstance(state, NoiseState):
            scale = np.sqrt(spread + per_row(self.dispersion(state), 1))
            return np.asarray(stdtr(2 * per_row(state.shape, 1), error / scale))
        return np.asarray(ndtr(error / np.sqrt(spread + per_row(self._variance(state), 1))))

    def initial_state(self) -> Any:
        return NoiseState(np.float64(self.prior_shape), np.float64(self.prior_rate)) if self.learns_noise else ()

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        return NoiseState(*arrays) if self.learns_noise else ()

    def with_dispersion(self, state: Any, factor: float) -> Any:
        return NoiseState(state.shape, np.float64(factor * state.rate)) if self.learns_noise else state

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        if not self.learns_noise:
            return ()
        shape = self.prior_shape + 0.5 * num_rows * self.num_outputs
        return NoiseState(np.float64(shape), np.float64(shape * math.exp(float(parameters[0]))))

    def state_at_mode(self, state: Any, outputs: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Any | None:
        """φ = (rate + ½ Σ r²) / (shape + ½ N K), which an optimiser approaches only slowly where φ is small."""
        if not self.learns_noise:
            return None
        squares = float(np.sum(weight[:, None] * (y - outputs) ** 2))
        return NoiseState(state.shape, np.float64(self.prior_rate + 0.5 * squares))

    def discount(self, state: Any, effective_parameters: float) -> Any:
        """Residuals of a fit are smaller than the noise: φ = Σ r² / (N - γ) (MacKay 1992, equation 4.9)."""
        if not self.learns_noise:
            return state
        least = self.prior_shape + 1.0
        return NoiseState(np.maximum(state.shape - 0.5 * effective_parameters, least), state.rate)

    def merged_state(self, now: Any, grown: Sequence[tuple[Any, Any]], surplus: float) -> Any:
        """Shapes and rates add up; no merge takes away what was there."""
        if not self.learns_noise:
            return now
        shape = now.shape + sum(end.shape - start.shape for end, start in grown)
        rate = now.rate + sum(end.rate - start.rate for end, start in grown) + surplus
        return NoiseState(shape, np.maximum(rate, now.rate))

    def dispersion(self, state: Any) -> Any:
        if isinstance(state, FixedNoise):
            return state.variance
        return state.rate / state.shape if self.learns_noise else 1.0

    def update_state(
        self,
        engine: Engine,
        state: Any,
        outputs: Array,
        covariance: Array,
        y: Array,
        weight: Array,
        influence: Any = None,
    ) -> Any:
        if not self.learns_noise:
            return state
        of_outputs, total = self._weights(engine, y, weight)
        error = self._error(engine, outputs, y)[0]
        if influence is not None:
            error = influence.residual[:, None] * error
            _, total = self._weights(engine, y, influence.count * weight)
        error, spread = self._weighed(engine, error, covariance, of_outputs)
        squares = error @ engine.solve(spread, error[:, None])[:, 0]
        return self.held(engine, NoiseState(state.shape + 0.5 * total, state.rate + 0.5 * squares))

    @property
    def streams_add_up(self) -> bool:
        return self.noise_window is None

    def held(self, engine: Engine, state: Any) -> Any:
        """Worth no more rows than the window has; φ stays."""
        if self.noise_window is None or not isinstance(state, NoiseState):
            return state
        shape = engine.xp.clip(state.shape, None, 0.5 * self.noise_window * self.num_outputs)
        return NoiseState(shape, state.rate * (shape / state.shape))

    def log_evidence(
        self,
        engine: Engine,
        densities: Array,
        outputs: Array,
        covariance: Array,
        y: Array,
        weight: Array,
        state: Any,
    ) -> Array:
        """Closed form: with W the weights, C the covariance and e the residuals, at unit dispersion:

        - A = I + W^½ C W^½,  S = eᵀ W^½ A⁻¹ W^½ e,  n = tr W
        - known φ: -½ (n log 2πφ + log det A + S / φ)
        - learned φ: with φ integrated out under its inverse-gamma density
        """
        xp = engine.xp
        of_outputs, total = self._weights(engine, y, weight)
        error, spread = self._weighed(engine, self._error(engine, outputs, y)[0], covariance, of_outputs)
        factor, _ = engine.cholesky(spread)
        whitened = engine.solve_triangular(factor, error[:, None])[:, 0]
        squares = whitened @ whitened
        half_determinant = xp.sum(xp.log(xp.linalg.diagonal(factor)))
        if isinstance(state, NoiseState):
            shape = state.shape + 0.5 * total
            ratio = engine.lgamma(shape) - engine.lgamma(state.shape)
            rates = state.shape * xp.log(state.rate) - shape * xp.log(state.rate + 0.5 * squares)
            return ratio + rates - 0.5 * total * math.log(2 * math.pi) - half_determinant
        variance = self._fixed * self.dispersion(state)
        constant = total * xp.log(2 * math.pi * engine.constant(variance, total))
        return -0.5 * (constant + squares / variance) - half_determinant

    def _weighed(
        self, engine: Engine, error: Array, covariance: Array, of_outputs: Float[Array, " M"]
    ) -> tuple[Float[Array, " M"], Float[Array, "M M"]]:
        """W^½ e and I + W^½ C W^½, in units of the noise, for the weights W of the outputs."""
        root = engine.xp.sqrt(of_outputs)
        error = root * engine.xp.reshape(error, (-1,))
        return error, engine.eye(error.shape[0], error) + root[:, None] * covariance * root[None, :] / self._fixed

    def prior_share(self, state: Any) -> Any:
        return self.prior_shape / state.shape if self.learns_noise else 0.0

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

    def _variance(self, state: Any) -> Any:
        """φ where it is given."""
        return state.variance if isinstance(state, FixedNoise) else self._fixed

    # -- what a row tells of: all outputs here, some where they are masked ----------------------------------------
    def _error(self, engine: Engine, outputs: Array, y: Any) -> tuple[Array, Any]:
        """Residuals, 0 where nothing was observed, and the number of observed outputs."""
        return y - outputs, self.num_outputs

    def _weights(self, engine: Engine, y: Any, weight: Array) -> tuple[Array, Array]:
        """The weight of each output of each row, (N K,), and their sum."""
        return engine.xp.repeat(weight, self.num_outputs), self.num_outputs * engine.xp.sum(weight)

    def _observed(self, engine: Engine, covariance: Array, y: Any) -> Array:
        """A covariance of all outputs as one of the observed outputs."""
        return covariance

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        error, size = self._error(engine, outputs, y)
        constant = 0.5 * size * math.log(2 * math.pi * self._fixed)
        return -0.5 * engine.xp.sum(error * error, axis=-1) / self._fixed - constant

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        return self._error(engine, outputs, y)[0] / self._fixed

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        identity = engine.eye(self.num_outputs, outputs)
        factor = identity[None] / math.sqrt(self._fixed)
        return engine.xp.broadcast_to(factor, (outputs.shape[0], self.num_outputs, self.num_outputs))

    def log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any) -> Float[Array, "*S N"]:
        """Normal where φ is given; with φ learned and integrated out, a multivariate Student-t."""
        error, size = self._error(engine, outputs, y)
        squares = engine.xp.sum(error * error, axis=-1)
        if isinstance(state, FixedNoise):
            constant = size * engine.xp.log(2 * math.pi * state.variance)
            return -0.5 * (squares / state.variance + constant)
        if self.learns_noise:
            return self._student_t(engine, squares, 0.0, size, state)
        return self.unit_log_prob(engine, outputs, y)

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, y: Array, state: Any
    ) -> Float[Array, " N"]:
        """Closed form: normal with φ given, Student-t with φ learned; covariance is in the outputs' units."""
        if covariance is None:
            return self.log_prob(engine, mean, y, state)
        xp = engine.xp
        identity = engine.eye(self.num_outputs, mean)
        learned = isinstance(state, NoiseState)
        noise = 1.0 if learned else per_row(self._variance(state), 2)
        unit = covariance / (per_row(self.dispersion(state), 2) if learned else 1.0) + noise * identity
        factor, _ = engine.cholesky(self._observed(engine, unit, y))
        error, size = self._error(engine, mean, y)
        whitened = engine.solve_triangular(factor, error[:, :, None])[:, :, 0]
        squares = xp.sum(whitened * whitened, axis=-1)
        log_determinant = 2 * xp.sum(xp.log(xp.sum(factor * identity, axis=-1)), axis=-1)
        if learned:
            return self._student_t(engine, squares, log_determinant, size, state)
        return -0.5 * (squares + log_determinant + size * math.log(2 * math.pi))

    def predictive_moments(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, state: Any
    ) -> PredictiveMoments:
        """Closed form; with φ learned, weights and noise share it: both variances are E[φ] at unit dispersion."""
        aleatoric = self.variance(engine, mean, state)
        if covariance is None:
            return PredictiveMoments(mean, engine.xp.zeros_like(mean), aleatoric)
        epistemic = engine.xp.sum(covariance * engine.eye(self.num_outputs, mean), axis=-1)
        if isinstance(state, NoiseState):
            epistemic = epistemic * (aleatoric / per_row(self.dispersion(state), 1))
        return PredictiveMoments(mean, epistemic, aleatoric)

    def _student_t(self, engine: Engine, squares: Array, log_determinant: Any, size: Any, state: Any) -> Array:
        """Log density of ``size`` numbers y with Mahalanobis ``squares`` and the ``log_determinant`` of their
        unit-dispersion covariance.
        """
        half = 0.5 * size
        return (
            engine.lgamma(state.shape + half)
            - engine.lgamma(state.shape)
            - half * engine.xp.log(2 * math.pi * state.rate)
            - 0.5 * log_determinant
            - (state.shape + half) * engine.xp.log1p(0.5 * squares / state.rate)
        )

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return outputs

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """φ, or its posterior mean rate/(shape-1); infinite at shape ≤ 1, where the Student-t has no variance."""
        xp = engine.xp
        if not isinstance(state, NoiseState):
            return xp.zeros_like(outputs) + per_row(self._variance(state), 1)
        tail = state.shape - 1
        mean = xp.where(tail > 0, state.rate / xp.where(tail > 0, tail, 1.0), math.inf)
        return xp.zeros_like(outputs) + per_row(mean, 1)

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
