"""Ordered levels, such as star ratings: the cumulative logit model (McCullagh 1980)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..host import as_host_array
from .base import HOST, Likelihood, invalid_target
from .bounds import log_sigmoid, sigmoid

__all__ = ["Ordinal", "Thresholds"]

_PRIOR_DEVIATION = 2.0


class Thresholds(NamedTuple):
    """Attributes:
    thresholds: increasing, (L-1,); level k lies between the k-th and the next.
    """

    thresholds: Float[Array, " L-1"]


@dataclass(frozen=True)
class Ordinal(Likelihood):
    """P(y ≤ k | u) = σ(b_k - u): one output u, the utility, and increasing thresholds b shared by all rows.

    The thresholds start where equally probable levels have them at u = 0. A batch fit learns them beside the weights,
    at their posterior mode, and online updates hold them fixed. Its parameters are the first threshold and the
    logarithms of the increments, normal around their starting values with standard deviation 2.

    The mean and variance are of the level as a number; ``Predictive.probabilities`` gives the levels themselves.

    Args:
        num_levels: L; targets are the integers 0 (the lowest) to L-1.

    Raises:
        InvalidInput: fewer than two levels.
    """

    num_levels: int

    num_outputs = 1
    has_classes = True
    is_discrete = True
    averaged_by_nodes = True

    def __post_init__(self) -> None:
        if not isinstance(self.num_levels, int | np.integer) or self.num_levels < 2:
            raise InvalidInput(f"Ordinal.num_levels must be an integer of at least 2, got {self.num_levels!r}")

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        levels = as_host_array(y, argument)
        if levels.dtype.kind not in "iu":
            raise invalid_target(argument, "integer levels", f"dtype {levels.dtype}")
        if levels.ndim != 1:
            raise invalid_target(argument, "one level for each row, shape (rows,)", f"shape {levels.shape}")
        unknown = (levels < 0) | (levels >= self.num_levels)
        if np.any(unknown):
            raise invalid_target(argument, f"a level from 0 to {self.num_levels - 1}", f"{levels[unknown][0]}")
        return levels.astype(np.int32)

    # -- state ----------------------------------------------------------------------------------------------------
    def initial_state(self) -> Any:
        return self.state_from_fit(self.fit_parameters(), 0)

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        first, *increments = (np.float64(value) for value in parameters)
        return Thresholds(np.cumsum([first, *np.exp(increments)]))

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        return Thresholds(*arrays)

    def fit_parameters(self) -> tuple[float, ...]:
        """The first threshold and the logarithms of the increments of equally probable levels."""
        shares = [(k + 1) / self.num_levels for k in range(self.num_levels - 1)]
        thresholds = [math.log(share / (1 - share)) for share in shares]
        increments = [math.log(b - a) for a, b in zip(thresholds[:-1], thresholds[1:], strict=True)]
        return (thresholds[0], *increments)

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        thresholds = [parameters[0]]
        for log_increment in parameters[1:]:
            thresholds.append(thresholds[-1] + engine.xp.exp(log_increment))
        return self.unit_log_prob(engine, outputs, y, Thresholds(engine.xp.stack(thresholds)))

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        total = 0.0
        for value, start in zip(parameters, self.fit_parameters(), strict=True):
            total = total - 0.5 * ((value - start) / _PRIOR_DEVIATION) ** 2
        return total

    # -- the levels -----------------------------------------------------------------------------------------------
    def _ends(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any, function: Any) -> tuple[Array, Array]:
        """``function`` of b - u at the upper ends of the levels and of u - b at the lower, where they have such an end.

        Each of shape (..., N, L-1).
        """
        upper = state.thresholds - outputs
        return function(engine, upper), function(engine, -upper)

    def _log_probabilities(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Float[Array, "*S N L"]:
        """Log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)) for a level from a to b: nothing cancels."""
        xp = engine.xp
        upper, lower = self._ends(engine, outputs, state, log_sigmoid)
        b = state.thresholds
        gaps = xp.log(-xp.expm1(b[..., :-1] - b[..., 1:]))
        none = xp.zeros_like(outputs)
        inner = upper[..., 1:] + lower[..., :-1] + gaps
        return xp.concat([upper[..., :1] + none, inner, lower[..., -1:] + none], axis=-1)

    def _scores(self, engine: Engine, outputs: Float[Array, "N K"], state: Any) -> Float[Array, "N L"]:
        """Derivative of each level's log probability with respect to u: σ(a - u) - σ(u - b)."""
        upper, lower = self._ends(engine, outputs, state, sigmoid)
        none = engine.xp.zeros_like(outputs)
        return engine.xp.concat([none, upper], axis=-1) - engine.xp.concat([lower, none], axis=-1)

    def _chosen(self, engine: Engine, values: Float[Array, "*S N L"], y: Array) -> Float[Array, "*S N"]:
        levels = engine.constant(np.arange(self.num_levels), y)
        return engine.xp.sum(engine.xp.where(y[:, None] == levels, values, 0.0), axis=-1)

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        return self._chosen(engine, self._log_probabilities(engine, outputs, state), y)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        return self._chosen(engine, self._scores(engine, outputs, state), y)[:, None]

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        """√p · d log p / du for each level: their squares sum to Σ (dp/du)² / p."""
        root = engine.xp.sqrt(self.class_probabilities(engine, outputs, state))
        return (root * self._scores(engine, outputs, state))[:, None, :]

    def observed_information(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K K"]:
        """The slopes σ(1 - σ) at both ends of the level."""
        upper, lower = self._ends(engine, outputs, state, sigmoid)
        slope, none = upper * lower, engine.xp.zeros_like(outputs)
        ends = engine.xp.concat([none, slope], axis=-1) + engine.xp.concat([slope, none], axis=-1)
        return self._chosen(engine, ends, y)[:, None, None]

    def class_probabilities(
        self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()
    ) -> Float[Array, "*S N C"]:
        return engine.xp.exp(self._log_probabilities(engine, outputs, state))

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        levels = engine.constant(np.arange(self.num_levels), outputs)
        probabilities = self.class_probabilities(engine, outputs, state)
        return engine.xp.sum(levels * probabilities, axis=-1, keepdims=True)

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        levels = engine.constant(np.arange(self.num_levels), outputs)
        squares = (levels - self.mean(engine, outputs, state)) ** 2
        probabilities = self.class_probabilities(engine, outputs, state)
        return engine.xp.sum(squares * probabilities, axis=-1, keepdims=True)

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        noisy = outputs + rng.logistic(size=outputs.shape)
        return np.asarray((noisy > state.thresholds).sum(axis=-1))

    def cdf(self, outputs: np.ndarray, y: np.ndarray, state: Any) -> np.ndarray:
        upper, _ = self._ends(HOST, outputs, state, sigmoid)
        ends = np.concatenate([np.zeros_like(outputs), upper, np.ones_like(outputs)], axis=-1)
        index = np.clip(y.astype(int) + 1, 0, self.num_levels)
        return np.take_along_axis(ends, np.broadcast_to(index, outputs.shape), axis=-1)
