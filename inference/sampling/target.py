"""The density that samplers explore: weights and likelihood parameters given data, in one whitened vector per chain.

A position z is a vector of D numbers: every weight divided by its standard deviation under the prior, then the
likelihood's parameters (see :meth:`Likelihood.fit_parameters`). Under the prior all weights are then standard normal,
which is the geometry of every direction that the data do not tell of; what they do tell of is a minority in a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..likelihoods.base import Likelihood
from ..methods import FitProblem
from ..network import Network

__all__ = ["Data", "Gradient", "Target", "data_of", "target_of"]

Data = tuple[Array, Array, Array]
"""Scaled inputs (N, I), prepared targets, and the weight of each row (N,), of the engine."""

Gradient = Callable[[Array, Data, Any], tuple[Array, Array]]
"""``gradient(positions, data, factor)``: log densities (C,) and their gradients (C, D) of C chains; the log likelihood
is multiplied by ``factor``, as for a batch that stands for the whole data set."""


@dataclass(frozen=True, eq=False)
class Target:
    """A log density over positions.

    Attributes:
        engine: of the arrays.
        network: the network.
        likelihood: the observation model.
        shapes: of each layer's weights.
        scale: standard deviation of every weight under the prior, and 1 for every parameter, (D,), on the host.
        parameters: where the likelihood's parameters start.
    """

    engine: Engine
    network: Network
    likelihood: Likelihood
    shapes: tuple[tuple[int, ...], ...]
    scale: np.ndarray
    parameters: tuple[float, ...]

    @property
    def key(self) -> Hashable:
        """What the density depends on, but for the data."""
        return self.network, self.likelihood, self.shapes, self.scale.tobytes(), self.parameters

    @property
    def size(self) -> int:
        """D."""
        return len(self.scale)

    @property
    def num_weights(self) -> int:
        """Weights, which come before the likelihood's parameters."""
        return self.size - len(self.parameters)

    def split(self, vector: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Weights and likelihood parameters from a vector of both, (..., D)."""
        lead, start, weights = vector.shape[:-1], 0, []
        for shape in self.shapes:
            size = math.prod(shape)
            weights.append(vector[..., start : start + size].reshape(*lead, *shape))
            start += size
        return tuple(weights), tuple(vector[..., index] for index in range(start, self.size))

    def join(self, weights: Sequence[Array], parameters: Sequence[Array], xp: Any = np) -> Array:
        """The inverse of :meth:`split`."""
        flat = [w.reshape(*w.shape[: w.ndim - len(shape)], -1) for w, shape in zip(weights, self.shapes, strict=True)]
        return xp.concat([*flat, *(p[..., None] for p in parameters)], axis=-1)

    def gradient(self, term: Callable[..., Array] | None = None) -> Gradient:
        """See :data:`Gradient`.

        Args:
            term: ``term((outputs, parameters), data, factor)`` of one network, to be in the place of what the data say.
        """
        engine, xp, scale, is_weight = self.engine, self.engine.xp, *self._constants()
        of_one = engine.value_and_grad(term or self._data_term)
        of_each = engine.value_and_grad_each(term or self._data_term)

        def at(position: Float[Array, "*C D"], data: Data, factor: Any = 1.0) -> tuple[Array, Array]:
            weights, parameters = self.split(position * scale)
            many = position.ndim == 2
            outputs, pull = self.network.pullback(engine, weights, data[0], many=many)
            value, (slope, slopes) = (of_each if many else of_one)((outputs, parameters), data, factor)
            z = position * is_weight
            return value - 0.5 * xp.sum(z * z, axis=-1), self.join(pull(slope), slopes, xp) * scale - z

        def gradient(position: Float[Array, "C D"], data: Data, factor: Any = 1.0) -> tuple[Array, Array]:
            numbers = data[0].shape[0] * sum(shape[-1] for shape in self.shapes)
            return engine.in_chunks(at, numbers)(position, data, factor)

        return gradient

    def compiled_gradient(self) -> Callable[[Array, Data], tuple[Array, Array]]:
        """The gradient of the whole data set, compiled once for all equal targets."""
        gradient = self.gradient()
        return self.engine.compiled(("gradient", self.key), lambda z, data: gradient(z, data, 1.0))

    def log_density(self, data: Data) -> Callable[[Array], Array]:
        """``log p(z)`` of one position (D,), for kernels that differentiate it themselves."""
        scale, is_weight = self._constants()

        def log_density(position: Float[Array, " D"]) -> Array:
            z = position * is_weight
            weights, parameters = self.split(position * scale)
            outputs = self.network.apply(self.engine, weights, data[0])
            return self._data_term((outputs, parameters), data, 1.0) - 0.5 * self.engine.xp.sum(z * z)

        return log_density

    def _constants(self) -> tuple[Array, Array]:
        """Scales, and 1 for every weight, of the engine."""
        is_weight = np.arange(self.size) < self.num_weights
        return self.engine.asarray(self.scale), self.engine.asarray(is_weight.astype(np.float64))

    def _data_term(self, moved: Any, data: Data, factor: Any) -> Array:
        """Log likelihood, and log prior of the likelihood's parameters, given the outputs of one network."""
        engine, likelihood, (outputs, parameters), (_, y, row_weight) = self.engine, self.likelihood, moved, data
        log_probs = likelihood.fit_log_prob(engine, outputs, y, parameters)
        return factor * engine.xp.sum(row_weight * log_probs) + likelihood.fit_log_prior(engine, parameters)

    def starts(self, weights: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Positions of networks that are given by their weights, (C, D)."""
        parameters = tuple(np.full(len(weights), value) for value in self.parameters)
        layers = [np.stack(layer) for layer in zip(*weights, strict=True)]
        return np.asarray(self.join(layers, parameters) / self.scale)

    def networks(self, positions: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Weights (S, ...) of each layer and likelihood parameters (S,) of positions (S, D), on the host."""
        return self.split(positions * self.scale.astype(positions.dtype))


def target_of(problem: FitProblem) -> Target:
    """The posterior of a fitting problem.

    Raises:
        InvalidInput: the engine has no gradients, or the network has arrays without uncertainty.
    """
    if not problem.engine.has_gradients:
        raise InvalidInput(f"engine {problem.engine.name!r} has no gradients: sample with 'torch' or 'jax'")
    if any(method is None for method in problem.network.layer_methods):
        raise InvalidInput(f"network must have no arrays without uncertainty to be sampled, got {problem.network!r}")
    parameters = tuple(float(value) for value in problem.likelihood.fit_parameters())
    deviations = [np.ravel(precision) ** -0.5 for precision in problem.prior_precision]
    scale = np.concatenate([*deviations, np.ones(len(parameters))])
    return Target(problem.engine, problem.network, problem.likelihood, problem.shapes, scale, parameters)


def data_of(problem: FitProblem) -> Data:
    """The data that the density is given, on the device."""
    return problem.x, problem.y, problem.engine.asarray(problem.weight)
