"""Classification: one of C classes, softmax of C logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..host import as_host_array
from .base import Likelihood, invalid_target

__all__ = ["Categorical"]


@dataclass(frozen=True)
class Categorical(Likelihood):
    """p(y = k | outputs) = softmax(outputs)ₖ.

    Args:
        num_classes: C; targets are the integers 0 to C-1.

    Raises:
        InvalidInput: fewer than two classes.
    """

    num_classes: int

    has_classes = True
    has_logits = True
    averaged_by_nodes = True

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int | np.integer) or self.num_classes < 2:
            raise InvalidInput(f"Categorical.num_classes must be an integer of at least 2, got {self.num_classes!r}")

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        return self.num_classes

    @property
    def information_rank(self) -> int:
        """One less than the classes: the scores of the outputs add up to 0, so that the last column is 0."""
        return self.num_classes - 1

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        labels = as_host_array(y, argument)
        if labels.dtype.kind not in "iu":
            raise invalid_target(argument, "integer class labels", f"dtype {labels.dtype}")
        if labels.ndim != 1:
            raise invalid_target(argument, "one label for each row, shape (rows,)", f"shape {labels.shape}")
        unknown = (labels < 0) | (labels >= self.num_classes)
        if np.any(unknown):
            raise invalid_target(argument, f"a class from 0 to {self.num_classes - 1}", f"{labels[unknown][0]}")
        return labels.astype(np.int32)

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        return np.asarray(np.argmax(outputs + rng.gumbel(size=outputs.shape), axis=-1))

    def _one_hot(self, engine: Engine, outputs: Array, y: Array) -> Array:
        xp = engine.xp
        classes = engine.constant(np.arange(self.num_classes), y)
        return xp.astype(y[:, None] == classes, outputs.dtype)

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        chosen = engine.xp.sum(outputs * self._one_hot(engine, outputs, y), axis=-1)
        return chosen - engine.logsumexp(outputs, axis=-1)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        return self._one_hot(engine, outputs, y) - self.mean(engine, outputs)

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        """``diag(q) V`` with q = √p and the K-1 columns of V an orthonormal basis of what is orthogonal to q.

        Its square is diag(p) - p pᵀ. V is the Householder reflection of the last axis on -q, without its last column.
        """
        return self._fisher_factor(engine, self.mean(engine, outputs))

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        xp = engine.xp
        chosen = self._one_hot(engine, outputs, y)
        shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=-1, keepdims=True)
        probabilities = exponentials / total
        log_prob = xp.sum(chosen * shifted, axis=-1) - xp.log(total)[..., 0]
        return log_prob, chosen - probabilities, self._fisher_factor(engine, probabilities)

    def expected_terms(
        self, engine: Engine, outputs: Float[Array, "S N K"], weights: Float[Array, " S"], y: Array, state: Any = ()
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K K"]]:
        """E[diag(p) - p pᵀ] from the probabilities alone."""
        xp = engine.xp
        probabilities = xp.permute_dims(self.mean(engine, outputs), (1, 2, 0))
        average = probabilities @ weights
        products = (weights * probabilities) @ probabilities.mT
        information = average[:, :, None] * engine.eye(self.num_classes, outputs) - products
        return self._one_hot(engine, average, y) - average, information

    def _fisher_factor(self, engine: Engine, probabilities: Array) -> Array:
        root = engine.xp.sqrt(probabilities)
        identity = engine.eye(self.num_classes, probabilities)
        reflected = (root + identity[-1]) / (1 + root[:, -1:])
        basis = identity[:, :-1] - reflected[:, :, None] * root[:, None, :-1]
        return root[:, :, None] * basis

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return engine.softmax(outputs)

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        probabilities = self.mean(engine, outputs)
        return probabilities * (1 - probabilities)

    def class_probabilities(
        self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()
    ) -> Float[Array, "*S N C"]:
        return self.mean(engine, outputs)

    def logits(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"]
    ) -> tuple[Float[Array, "N C"], Float[Array, "N C C"]]:
        return mean, covariance
