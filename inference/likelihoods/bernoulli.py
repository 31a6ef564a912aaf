"""Yes or no: the logistic function of one logit (or of K independent ones)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..checks import is_count
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..host import as_host_array
from .base import Likelihood, invalid_target

__all__ = ["Bernoulli", "Logistic"]


class Logistic(Likelihood):
    """p(y = 1 | output) = 1 / (1 + exp(-output)), independently for each output."""

    averaged_by_nodes = True

    @property
    def has_classes(self) -> bool:  # type: ignore[override]
        """For a single output."""
        return self.num_outputs == 1

    @property
    def has_logits(self) -> bool:  # type: ignore[override]
        """For a single output."""
        return self.num_outputs == 1

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        values = as_host_array(y, argument)
        if values.dtype.kind not in "biuf":
            raise invalid_target(argument, "0 or 1", f"dtype {values.dtype}")
        if values.ndim == 1 and self.num_outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.num_outputs:
            raise invalid_target(argument, f"of shape (rows, {self.num_outputs})", f"shape {np.shape(y)}")
        other = (values != 0) & (values != 1)
        if np.any(other):
            raise invalid_target(argument, "0 or 1", f"{values[other][0]}")
        return values.astype(np.float64)

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        return (rng.logistic(size=outputs.shape) < outputs).astype(np.int32)

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        xp = engine.xp
        softplus = 0.5 * (outputs + xp.abs(outputs)) + xp.log1p(xp.exp(-xp.abs(outputs)))
        return xp.sum(y * outputs - softplus, axis=-1)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        return y - self.mean(engine, outputs)

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        xp = engine.xp
        identity = engine.eye(self.num_outputs, outputs)
        return xp.sqrt(self.variance(engine, outputs, ()))[:, :, None] * identity

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return 0.5 * (1 + engine.xp.tanh(0.5 * outputs))

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        probabilities = self.mean(engine, outputs)
        return probabilities * (1 - probabilities)

    def class_probabilities(
        self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()
    ) -> Float[Array, "*S N C"]:
        """Of 0 and of 1, for a single output."""
        if self.num_outputs > 1:
            return super().class_probabilities(engine, outputs, state)
        return engine.xp.concat([self.mean(engine, -outputs), self.mean(engine, outputs)], axis=-1)

    def logits(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"]
    ) -> tuple[Float[Array, "N C"], Float[Array, "N C C"]]:
        """Minus and plus half of the output."""
        if self.num_outputs > 1:
            return super().logits(engine, mean, covariance)
        signs = engine.constant(np.array([-0.5, 0.5]), mean)
        return mean * signs, covariance * (signs[:, None] * signs)


@dataclass(frozen=True)
class Bernoulli(Logistic):
    """p(y = 1 | output) = 1 / (1 + exp(-output)), independently for each of K outputs.

    Args:
        num_outputs: K; targets are 0 or 1 (or booleans), shape (rows,) for one output, else (rows, K).
    """

    num_outputs: int = 1

    def __post_init__(self) -> None:
        if not is_count(self.num_outputs):
            raise InvalidInput(f"Bernoulli.num_outputs must be an integer of at least 1, got {self.num_outputs!r}")
