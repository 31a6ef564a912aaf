"""A block that takes no part in learning: its uncertainty stays as it is.

The consider filter of Schmidt (1966): what a frozen block does not know widens every prediction, so that the other
blocks learn from an event with the caution that it calls for; the block itself is left alone, and so are its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from .base import Factors, Grown, Layers, Structure

__all__ = ["Frozen"]


@dataclass(frozen=True)
class Frozen(Structure):
    """A structure whose posterior events and time leave as it is; its state is the structure's own.

    Args:
        of: the structure.
    """

    of: Structure

    @property
    def state_type(self) -> type[Any]:  # type: ignore[override]
        return self.of.state_type

    @property
    def chunk_columns(self) -> int:  # type: ignore[override]
        return self.of.chunk_columns

    def resolve(self, num_layers: int) -> Structure:
        return replace(self, of=self.of.resolve(num_layers))

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> Any:
        return self.of.initial(engine, mean, precision)

    def initial_like(self, engine: Engine, state: Any, mean: Layers, precision: Layers) -> Any:
        return self.of.initial_like(engine, state, mean, precision)

    def scaled(self, engine: Engine, state: Any, factor: float) -> Any:
        return self.of.scaled(engine, state, factor)

    def mean(self, state: Any) -> Layers:
        return self.of.mean(state)

    def replace_mean(self, state: Any, mean: Layers) -> Any:
        return self.of.replace_mean(state, mean)

    def is_light(self, state: Any) -> bool:
        return self.of.is_light(state)

    # -- what would learn -----------------------------------------------------------------------------------------
    def shift(self, engine: Engine, state: Any, factors: Factors, residual: Float[Array, "N K"]) -> Any:
        return state

    def add_precision(
        self, engine: Engine, state: Any, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> Any:
        return state

    def learn(
        self,
        engine: Engine,
        state: Any,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> Any:
        return state

    def transition(self, engine: Engine, state: Any, prior: Any, retention: Array, growth: Layers) -> Any:
        return state

    def merged(self, engine: Engine, now: Any, grown: Grown, gradient: Layers) -> Any:
        return self.of.merged(engine, now, grown, gradient)

    # -- what is asked --------------------------------------------------------------------------------------------
    def output_covariance(self, engine: Engine, state: Any, factors: Factors, *, joint: bool = False) -> Array:
        return self.of.output_covariance(engine, state, factors, joint=joint)

    def joint_covariances(self, engine: Engine, state: Any, factors: Factors) -> tuple[Array, Any]:
        return self.of.joint_covariances(engine, state, factors)

    def uses_factors(self, num_layers: int) -> tuple[bool, ...]:
        return self.of.uses_factors(num_layers)

    def rows_worth_preparing(self, state: Any, output_layer: int | None) -> int | None:
        return self.of.rows_worth_preparing(state, output_layer)

    def prepare(self, engine: Engine, state: Any, output_layer: int | None) -> Any:
        return self.of.prepare(engine, state, output_layer)

    def predictive_covariance(self, engine: Engine, prepared: Any, factors: Factors) -> Array:
        return self.of.predictive_covariance(engine, prepared, factors)

    def predictive_variance(self, engine: Engine, prepared: Any, factors: Factors) -> Array:
        return self.of.predictive_variance(engine, prepared, factors)

    def noise_shapes(self, state: Any) -> tuple[tuple[int, ...], ...]:
        return self.of.noise_shapes(state)

    def sample(self, engine: Engine, state: Any, noise: Sequence[Array]) -> Layers:
        return self.of.sample(engine, state, noise)

    def marginal_variance(self, engine: Engine, state: Any) -> Layers:
        return self.of.marginal_variance(engine, state)

    def log_determinant(self, engine: Engine, state: Any) -> Array:
        return self.of.log_determinant(engine, state)

    def kl(self, engine: Engine, new: Any, old: Any) -> Array:
        return self.of.kl(engine, new, old)

    def natural(self, engine: Engine, state: Any) -> tuple[Layers, Any]:
        return self.of.natural(engine, state)

    # -- storage --------------------------------------------------------------------------------------------------
    def to_arrays(self, engine: Engine, state: Any) -> dict[str, np.ndarray]:
        return self.of.to_arrays(engine, state)

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> Any:
        return self.of.from_arrays(engine, arrays)
