"""The contract of a posterior structure: a Gaussian over some layers' weights, in one parameterisation.

A structure is a small immutable description (``Diagonal()``, ``LowRank(rank=10)``); its state is a named tuple of
arrays. Every method that fits, and the filter step that learns on, use these primitives and nothing else; a new
structure is one new file. All precisions are at unit dispersion (see :mod:`..likelihoods.base`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..factors import Factor

__all__ = ["Structure", "chunk_rows", "flatten_layers", "split_layers", "sum_float64"]

Factors = Sequence[Factor]
Layers = tuple[Array, ...]


def chunk_rows(num_outputs: int, columns: int = 512) -> int:
    """How many inputs to take at once, so that they bring about ``columns`` output directions."""
    return max(1, columns // num_outputs)


class Structure(ABC):
    """A Gaussian over the weights of some layers."""

    state_type: type[Any]
    """The named tuple of the state; a field holds one array, or one per layer as a tuple."""

    per_layer: frozenset[str] = frozenset({"mean"})
    """Fields of the state that hold one array per layer."""

    def resolve(self, num_layers: int) -> Structure:
        """The structure for a network of ``num_layers`` layers; raises :class:`InvalidInput` if it does not fit."""
        return self

    @abstractmethod
    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> Any:
        """The state with the given means and independent weights of the given precisions."""

    def mean(self, state: Any) -> Layers:
        """Posterior means, one matrix (inputs + 1, outputs) per layer."""
        return tuple(state.mean)

    def replace_mean(self, state: Any, mean: Layers) -> Any:
        """The state around another mean."""
        return state._replace(mean=tuple(mean))

    @abstractmethod
    def output_covariance(self, engine: Engine, state: Any, factors: Factors, *, joint: bool = False) -> Array:
        """``J Λ⁻¹ Jᵀ``: (N, K, K) for each input alone, or (N K, N K) between all of them."""

    @abstractmethod
    def shift(self, engine: Engine, state: Any, factors: Factors, residual: Float[Array, "N K"]) -> Any:
        """``m ← m + Λ⁻¹ Jᵀ residual``."""

    @abstractmethod
    def add_precision(self, engine: Engine, state: Any, factors: Factors, fisher_factor: Float[Array, "N K R"]) -> Any:
        """``Λ ← Λ + Jᵀ L Lᵀ J``, projected on what the structure can hold."""

    @abstractmethod
    def transition(self, engine: Engine, state: Any, prior: Any, retention: Array, growth: Layers) -> Any:
        """``m ← γ m + (1-γ) m₀`` and ``Λ⁻¹ ← γ² Λ⁻¹ + diag(growth)``, with γ the retention and m₀ the prior's mean."""

    @abstractmethod
    def noise_shapes(self, state: Any) -> tuple[tuple[int, ...], ...]:
        """Shapes of the standard normal draws behind one sample."""

    @abstractmethod
    def sample(self, engine: Engine, state: Any, noise: Sequence[Array]) -> Layers:
        """Weights drawn from the posterior, given noise with a leading axis of S samples."""

    @abstractmethod
    def marginal_variance(self, engine: Engine, state: Any) -> Layers:
        """Diagonal of Λ⁻¹, in the shapes of the layers."""

    @abstractmethod
    def log_determinant(self, engine: Engine, state: Any) -> Array:
        """Log det Λ, accumulated in float64."""

    @abstractmethod
    def kl(self, engine: Engine, new: Any, old: Any) -> Array:
        """KL divergence of ``new`` from ``old`` in nats, in float64."""

    @abstractmethod
    def natural(self, engine: Engine, state: Any) -> tuple[Layers, Any]:
        """Natural parameters: ``Λ m`` in the shapes of the layers, and the precision in the structure's own form."""

    def move_mean(self, engine: Engine, state: Any, prior: Any, retention: Array) -> Layers:
        """``γ m + (1-γ) m₀``."""
        pairs = zip(self.mean(state), self.mean(prior), strict=True)
        return tuple(retention * now + (1 - retention) * before for now, before in pairs)

    # -- storage --------------------------------------------------------------------------------------------------
    def to_arrays(self, engine: Engine, state: Any) -> dict[str, np.ndarray]:
        """The state as named host arrays: ``field`` or ``field.layer``."""
        arrays: dict[str, np.ndarray] = {}
        for field in self.state_type._fields:
            value = getattr(state, field)
            if field in self.per_layer:
                arrays |= {f"{field}.{i}": engine.to_numpy(array) for i, array in enumerate(value)}
            else:
                arrays[field] = engine.to_numpy(value)
        return arrays

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> Any:
        """The state from :meth:`to_arrays`, on another engine if need be."""
        fields = {}
        for field in self.state_type._fields:
            if field in self.per_layer:
                count = sum(name.startswith(f"{field}.") for name in arrays)
                fields[field] = tuple(engine.asarray(arrays[f"{field}.{i}"]) for i in range(count))
            else:
                fields[field] = engine.asarray(arrays[field])
        return self.state_type(**fields)


def flatten_layers(engine: Engine, layers: Layers) -> Array:
    """One vector of all layers' weights, or with a leading axis one row each."""
    xp = engine.xp
    if layers[0].ndim == 2:
        return xp.concat([xp.reshape(layer, (-1,)) for layer in layers], axis=0)
    return xp.concat([xp.reshape(layer, (layer.shape[0], -1)) for layer in layers], axis=1)


def split_layers(engine: Engine, flat: Array, like: Layers) -> Layers:
    """The inverse of :func:`flatten_layers`, in the shapes of ``like``; a leading axis stays."""
    layers, start = [], 0
    for layer in like:
        rows, columns = layer.shape[-2:]
        stop = start + rows * columns
        layers.append(engine.xp.reshape(flat[..., start:stop], (*flat.shape[:-1], rows, columns)))
        start = stop
    return tuple(layers)


def sum_float64(engine: Engine, array: Array) -> Array:
    """Σ in float64."""
    return engine.xp.sum(array, dtype=engine.xp.float64)
