"""Regression with normal noise whose variance the network predicts (Nix and Weigend 1994)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..quadrature import normal_nodes
from .base import HOST, PredictiveMoments, covariance_root, per_row
from .bounds import bend, bounded
from .scale_mixture import NormalComponents, ScaleMixture

__all__ = ["LOG_VARIANCE_BOUNDS", "HeteroscedasticGaussian", "LevelState"]


class LevelState(NamedTuple):
    """Attributes:
    log_variance: level around which the network predicts the log variances of all targets.
    """

    log_variance: Float[Array, ""]


_LEVEL_MEAN, _LEVEL_DEVIATION = -2.0, 3.0  # of the level's normal prior

LOG_VARIANCE_BOUNDS = (math.log(1e-8), math.log(1e4))
"""Of the noise variance in squared units of the (standardised) targets: a hundredth of a per cent of their standard
deviation to a hundred times it."""


@dataclass(frozen=True)
class HeteroscedasticGaussian(ScaleMixture):
    """y ~ N(m, exp(s)): the network's outputs are the means m of all targets, then their log variances s.

    s is the network's output plus a level that a batch fit learns, at its posterior mode; online updates hold the level
    fixed and learn through the output's bias. s is brought smoothly between :data:`LOG_VARIANCE_BOUNDS`; well inside of
    them the Fisher information of (m, s) is diag(exp(-s), 1/2). The predictive integrates m in closed form given s, and
    s by fixed nodes.

    Args:
        num_targets: number of targets T; the network has 2 T outputs.

    Raises:
        InvalidInput: fewer than one target.
    """

    num_targets: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_targets, int | np.integer) or self.num_targets < 1:
            raise InvalidInput(
                f"HeteroscedasticGaussian.num_targets must be an integer of at least 1, got {self.num_targets!r}"
            )

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        return 2 * self.num_targets

    @property
    def dispersion_outputs(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self.num_targets, 2 * self.num_targets))

    # -- state ----------------------------------------------------------------------------------------------------
    def initial_state(self) -> LevelState:
        return LevelState(np.float64(_LEVEL_MEAN))

    def restore_state(self, arrays: Sequence[Any]) -> LevelState:
        return LevelState(*arrays)

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> LevelState:
        return LevelState(np.float64(parameters[0]))

    def fit_parameters(self) -> tuple[float, ...]:
        """The level."""
        return (_LEVEL_MEAN,)

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        return self.unit_log_prob(engine, outputs, y, LevelState(*parameters))

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        return -0.5 * ((parameters[0] - _LEVEL_MEAN) / _LEVEL_DEVIATION) ** 2

    # -- densities ------------------------------------------------------------------------------------------------
    def _log_variance(self, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """Of each target, before it is brought between the bounds."""
        return outputs[..., self.num_targets :] + (per_row(state.log_variance, 1) if len(state) else 0.0)

    def _split(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> tuple[Array, Array, Array]:
        """Means, log variances within the bounds, and how these change with the outputs."""
        return outputs[..., : self.num_targets], *bounded(
            engine, self._log_variance(outputs, state), *LOG_VARIANCE_BOUNDS
        )

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        deviation = np.sqrt(self.variance(HOST, outputs, state))
        return outputs[..., : self.num_targets] + deviation * rng.standard_normal(deviation.shape)

    def cdf(self, outputs: np.ndarray, y: np.ndarray, state: Any) -> np.ndarray:
        from scipy.special import ndtr

        error = y - outputs[..., : self.num_targets]
        return np.asarray(ndtr(error / np.sqrt(self.variance(HOST, outputs, state))))

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        mean, log_variance, _ = self._split(engine, outputs, state)
        error = y - mean
        squares = error * error * engine.xp.exp(-log_variance)
        return -0.5 * engine.xp.sum(squares + log_variance + math.log(2 * math.pi), axis=-1)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        mean, log_variance, slope = self._split(engine, outputs, state)
        error = y - mean
        precision = engine.xp.exp(-log_variance)
        return engine.xp.concat([error * precision, 0.5 * (error * error * precision - 1) * slope], axis=-1)

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        _, log_variance, slope = self._split(engine, outputs, state)
        roots = engine.xp.concat([engine.xp.exp(-0.5 * log_variance), math.sqrt(0.5) * slope], axis=-1)
        return roots[:, :, None] * engine.eye(self.num_outputs, outputs)

    def observed_information(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K K"]:
        """Well inside the bounds, [[1, e], [e, e²/2]] / variance for each target's (m, s), with the error e."""
        xp = engine.xp
        mean, log_variance, slope = self._split(engine, outputs, state)
        error, precision = y - mean, xp.exp(-log_variance)
        squares = error * error * precision
        curve = bend(engine, self._log_variance(outputs, state), *LOG_VARIANCE_BOUNDS)
        squares = 0.5 * (squares * slope * slope - (squares - 1) * curve)
        identity = engine.eye(self.num_targets, outputs)
        own, mixed, last = (v[:, :, None] * identity for v in (precision, error * precision * slope, squares))
        upper = xp.concat([own, mixed], axis=-1)
        return xp.concat([upper, xp.concat([mixed, last], axis=-1)], axis=-2)

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return outputs[..., : self.num_targets]

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        return engine.xp.exp(self._split(engine, outputs, state)[1])

    def components(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"], state: Any
    ) -> NormalComponents:
        """Nodes for s ~ N(s̄, C_ss), and m | s ~ N(m̄ + C_ms C_ss⁻¹ (s - s̄), C_mm - C_ms C_ss⁻¹ C_sm)."""
        xp, size = engine.xp, self.num_targets
        host_nodes, host_weights = normal_nodes(size)
        if size == 1:  # half of the trapezium rule's nodes: log variances are smooth in what they do
            host_nodes, host_weights = host_nodes[::2], 2 * host_weights[::2]
        nodes, weights = engine.constant(host_nodes, mean), engine.constant(host_weights, mean)
        root = covariance_root(engine, covariance[:, size:, size:])
        gain = engine.solve_triangular(root, covariance[:, size:, :size])  # of the standard nodes, (N, T, T)
        deviations = xp.permute_dims(nodes @ root.mT, (1, 0, 2))
        location = mean[:, :size] + xp.permute_dims(nodes @ gain, (1, 0, 2))
        noise = self.variance(engine, xp.concat([location, mean[:, size:] + deviations], axis=-1), state)
        conditional = covariance[:, :size, :size] - gain.mT @ gain
        return NormalComponents(xp.log(weights), location, conditional + noise[..., None] * engine.eye(size, mean))

    def predictive_moments(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, state: Any
    ) -> PredictiveMoments:
        """The mean and its variance in closed form; E[exp(s)] by nodes for each target's own s."""
        size = self.num_targets
        location = mean[:, :size]
        if covariance is None:
            return PredictiveMoments(location, 0 * location, self.variance(engine, mean, state))
        variances = engine.xp.sum(covariance * engine.eye(2 * size, mean), axis=-1)
        host_nodes, host_weights = normal_nodes(1)
        nodes, weights = engine.constant(host_nodes[:, :, None], mean), engine.constant(host_weights, mean)
        log_variances = self._log_variance(mean, state) + nodes * engine.xp.sqrt(variances[:, size:])
        noise = engine.xp.exp(bounded(engine, log_variances, *LOG_VARIANCE_BOUNDS)[0])
        aleatoric = engine.xp.sum(weights[:, None, None] * noise, axis=0)
        return PredictiveMoments(location, variances[:, :size], aleatoric)
