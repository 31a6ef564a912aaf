"""Weights without uncertainty: a point for each, which nothing that comes later moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from .base import Factors, Grown, Layers, Structure

__all__ = ["Point", "PointState"]


class PointState(NamedTuple):
    """Attributes:
    mean: one array per layer, of any shape.
    """

    mean: Layers


@dataclass(frozen=True)
class Point(Structure):
    """No uncertainty: for layers that stay deterministic beside Bayesian ones.

    The limit of an infinite precision: a batch fit trains such weights, curvature adds nothing to them and the filter
    leaves them where they are. Their arrays may have any shape, and they need no layer factors.
    """

    state_type = PointState

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> PointState:
        return PointState(tuple(mean))

    def scaled(self, engine: Engine, state: PointState, factor: float) -> PointState:
        return state

    def unconstrained(self, engine: Engine, state: PointState) -> PointState:
        return state

    def constrained(self, engine: Engine, free: PointState) -> PointState:
        return free

    def output_covariance(self, engine: Engine, state: PointState, factors: Factors, *, joint: bool = False) -> Array:
        """Zero, in the shape of what is added to it; the number 0 where no layer has factors."""
        rows = next((factor.rows for factor in factors if factor is not None), None)
        if rows is None:
            return 0.0
        num_rows, num_outputs = rows.shape[:2]
        size = num_rows * num_outputs
        shape = (size, size) if joint else (num_rows, num_outputs, num_outputs)
        return engine.constant(np.zeros(shape), rows)

    def uses_factors(self, num_layers: int) -> tuple[bool, ...]:
        return (False,) * num_layers

    def predictive_variance(self, engine: Engine, prepared: PointState, factors: Factors) -> Array:
        rows = next((factor.rows for factor in factors if factor is not None), None)
        return 0.0 if rows is None else engine.constant(np.zeros(rows.shape[:2]), rows)

    def shift(self, engine: Engine, state: PointState, factors: Factors, residual: Float[Array, "N K"]) -> PointState:
        return state

    def add_precision(
        self, engine: Engine, state: PointState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> PointState:
        return state

    def transition(self, engine: Engine, state: PointState, prior: Any, retention: Array, growth: Layers) -> PointState:
        return state

    def noise_shapes(self, state: PointState) -> tuple[tuple[int, ...], ...]:
        return ()

    def sample(self, engine: Engine, state: PointState, noise: Sequence[Array]) -> Layers:
        return state.mean

    def marginal_variance(self, engine: Engine, state: PointState) -> Layers:
        return tuple(0 * mean for mean in state.mean)

    def log_determinant(self, engine: Engine, state: PointState) -> Array:
        """0: a point is no density; only differences between posteriors of one structure mean something."""
        return engine.constant(0.0, state.mean[0])

    def kl(self, engine: Engine, new: PointState, old: PointState) -> Array:
        """0: points do not move after a fit."""
        return engine.constant(0.0, new.mean[0])

    def natural(self, engine: Engine, state: PointState) -> tuple[Layers, Any]:
        """The points themselves; their precision is infinite and has no array."""
        return state.mean, ()

    def merged(self, engine: Engine, now: PointState, grown: Grown, gradient: Layers) -> PointState:
        return now
