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

from ..engines.base import Array, Engine, leaves_of
from ..errors import InvalidInput
from ..factors import Factor

__all__ = [
    "Grown",
    "Structure",
    "changed",
    "chunk_rows",
    "flatten_layers",
    "positive_part",
    "split_layers",
    "sum_float64",
]

Factors = Sequence[Factor]
Layers = tuple[Array, ...]
Grown = Sequence[tuple[Any, Any]]
"""Pairs of states: what a posterior has become, and what it grew from."""


def chunk_rows(num_outputs: int, columns: int = 512) -> int:
    """How many inputs to take at once, so that they bring about ``columns`` output directions."""
    return max(1, columns // num_outputs)


class Structure(ABC):
    """A Gaussian over the weights of some layers."""

    state_type: type[Any]
    """The named tuple of the state; a field holds one array, or one per layer as a tuple."""

    per_layer: frozenset[str] = frozenset({"mean"})
    """Fields of the state that hold one array per layer."""

    learns_by_blocks: bool = False
    """Whether :meth:`learn` changes the state by the engine's ``map_blocks`` alone."""

    chunk_columns: int = 512
    """How many output directions of a data set :meth:`accumulate` takes at once."""

    def resolve(self, num_layers: int) -> Structure:
        """The structure for a network of ``num_layers`` layers; raises :class:`InvalidInput` if it does not fit."""
        return self

    @abstractmethod
    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> Any:
        """The state with the given means and independent weights of the given precisions."""

    def initial_like(self, engine: Engine, state: Any, mean: Layers, precision: Layers) -> Any:
        """As :meth:`initial`, of the same weights as another state where a structure chooses among them."""
        return self.initial(engine, mean, precision)

    @property
    def survey(self) -> Structure | None:
        """A structure in which a batch fit takes the curvature first, so that :meth:`chosen` may choose by it."""
        return None

    def chosen(self, engine: Engine, variance: Layers, mean: Layers, precision: Layers) -> Any:
        """As :meth:`begin`, given the marginal variances of the survey."""
        return self.begin(engine, mean, precision)

    @abstractmethod
    def scaled(self, engine: Engine, state: Any, factor: float) -> Any:
        """``Λ ← factor Λ``; means and points stay."""

    def unconstrained(self, engine: Engine, state: Any) -> Any:
        """The state in a form in which any real numbers are a posterior: what gradient steps may move.

        Arrays other than the means have the scale of logarithms or correlations, whatever that of the weights, so that
        one learning rate fits all.

        Raises:
            InvalidInput: the structure has no such form.
        """
        raise InvalidInput(
            f"structure {self} has no unconstrained form, which gradients need: "
            "use Diagonal(), LowRank(), Full(), or Blocks and LastLayer of them"
        )

    def constrained(self, engine: Engine, free: Any) -> Any:
        """The state of an :meth:`unconstrained` form."""
        raise InvalidInput(f"structure {self} has no unconstrained form")

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
    def add_precision(
        self, engine: Engine, state: Any, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> Any:
        """``Λ ← Λ + Jᵀ L Lᵀ J``, projected on what the structure can hold; None where the factors are those of LᵀJ."""

    # -- the filter step, in two halves: what a structure can share between them, it does -----------------------------
    def is_light(self, state: Any) -> bool:
        """Whether the step on one input is many operations of little arithmetic: see :meth:`Engine.lightly`."""
        return False

    def joint_covariances(self, engine: Engine, state: Any, factors: Factors) -> tuple[Array, Any]:
        """:meth:`output_covariance` between all inputs, and the weights' covariance with the outputs, Λ⁻¹ Jᵀ.

        The latter in whatever form :meth:`learn` takes it; None where that takes nothing.
        """
        return self.output_covariance(engine, state, factors, joint=True), None

    def learn(
        self,
        engine: Engine,
        state: Any,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> Any:
        """:meth:`shift` with the old precision, then :meth:`add_precision`.

        Args:
            engine: of the arrays.
            state: before the step.
            factors: of the network.
            cross: from :meth:`joint_covariances` of the same state and factors.
            residual: r.
            fisher_factor: L.
        """
        moved = self.shift(engine, state, factors, residual)
        return self.add_precision(engine, moved, factors, fisher_factor)

    # -- a batch fit ----------------------------------------------------------------------------------------------
    def begin(self, engine: Engine, mean: Layers, precision: Layers) -> Any:
        """As :meth:`initial`, in the form that :meth:`accumulate` adds many chunks to."""
        return self.initial(engine, mean, precision)

    def accumulate(
        self, engine: Engine, state: Any, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> Any:
        """As :meth:`add_precision` for one of many chunks, between :meth:`begin` and :meth:`settle`."""
        return self.add_precision(engine, state, factors, fisher_factor)

    def settle(self, engine: Engine, state: Any) -> Any:
        """What remains to be done after the last of many chunks."""
        return state

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

    def merged(self, engine: Engine, now: Any, grown: Grown, gradient: Layers) -> Any:
        """``Λ ← Λ + Σ (Λ_end - Λ_start)`` over some pairs of posteriors, and ``m ← m + Λ⁻¹ gradient`` with the new Λ.

        Of a difference of two precisions the positive part counts, so that Λ only ever grows. See :mod:`..merging`.

        Args:
            engine: of float64 arrays.
            now: the state.
            grown: of each difference, its end and its start; of states of this very structure.
            gradient: in weight space.

        Raises:
            InvalidInput: precisions of this structure do not add.
        """
        raise InvalidInput(f"posteriors of structure {self} can't be merged by what they have learned")

    def move_mean(self, engine: Engine, state: Any, prior: Any, retention: Array) -> Layers:
        """``γ m + (1-γ) m₀``."""
        pairs = zip(self.mean(state), self.mean(prior), strict=True)
        return tuple(retention * now + (1 - retention) * before for now, before in pairs)

    # -- answering ------------------------------------------------------------------------------------------------
    def uses_factors(self, num_layers: int) -> tuple[bool, ...]:
        """For each layer, whether its factors are asked for; for the others they may be None."""
        return (True,) * num_layers

    def rows_worth_preparing(self, state: Any, output_layer: int | None) -> int | None:
        """After how many inputs :meth:`prepare` pays; None where there is nothing to prepare."""
        return None

    def prepare(self, engine: Engine, state: Any, output_layer: int | None) -> Any:
        """What answers for many inputs are computed from, derived once for each posterior.

        Args:
            engine: of the arrays.
            state: the posterior.
            output_layer: index of the layer, among those of the structure, whose pre-activations are the outputs; None
                if it is not among them.
        """
        return state

    def predictive_covariance(self, engine: Engine, prepared: Any, factors: Factors) -> Float[Array, "N K K"]:
        """As :meth:`output_covariance` for each input alone, from a state or what :meth:`prepare` made of it."""
        return self.output_covariance(engine, prepared, factors)

    def predictive_variance(self, engine: Engine, prepared: Any, factors: Factors) -> Float[Array, "N K"]:
        """The diagonal of :meth:`predictive_covariance`."""
        return engine.xp.linalg.diagonal(self.predictive_covariance(engine, prepared, factors))

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


def changed(engine: Engine, grown: Grown) -> list[tuple[Any, Any]]:
    """The pairs whose end is not, to the last bit, their start."""

    def same(end: Any, start: Any) -> bool:
        pairs = zip(leaves_of(end), leaves_of(start), strict=True)
        return all(bool(engine.xp.all(a == b)) for a, b in pairs)

    return [(end, start) for end, start in grown if not same(end, start)]


def positive_part(engine: Engine, matrix: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """The nearest positive semi-definite matrix to a symmetric one."""
    values, vectors = engine.xp.linalg.eigh(0.5 * (matrix + matrix.mT))
    return (vectors * engine.xp.clip(values, 0, None)) @ vectors.mT
