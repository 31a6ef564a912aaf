"""Unlike structures side by side: some layers in one, the others in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Factors, Grown, Layers, Structure, changed
from .buffered_low_rank import BufferedLowRank
from .diagonal import Diagonal
from .full import Full
from .point import Point

__all__ = ["Blocks", "BlocksState", "LastLayer"]


class BlocksState(NamedTuple):
    """Attributes:
    parts: the state of each block.
    """

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Blocks(Structure):
    """Independent blocks of layers, each with a structure of its own.

    The filter step joins them: one innovation is computed from the sum of their output covariances, and every block
    learns from it with its own precision.

    Args:
        parts: pairs of a structure and the indices of its layers; together they name every layer once. Negative
            indices count from the last layer; ``"rest"`` stands for every layer that no other part names.

    Raises:
        InvalidInput: something else than such pairs, or a layer that is named twice.
    """

    parts: tuple[tuple[Structure, Any], ...]

    state_type = BlocksState

    def __post_init__(self) -> None:
        try:
            parts = tuple((part, layers if layers == "rest" else tuple(layers)) for part, layers in self.parts)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"Blocks.parts must be pairs of a structure and the indices of its layers, got {self.parts!r}"
            ) from error
        if not all(isinstance(part, Structure) for part, _ in parts):
            raise InvalidInput(f"Blocks.parts must have a structure first in each pair, got {self.parts!r}")
        object.__setattr__(self, "parts", parts)
        named = [layer for _, layers in parts if layers != "rest" for layer in layers]
        if not parts or len(set(named)) < len(named) or sum(layers == "rest" for _, layers in parts) > 1:
            raise InvalidInput(f"Blocks.parts must name every layer once, got {[layers for _, layers in parts]}")

    @property
    def chunk_columns(self) -> int:  # type: ignore[override]
        return min(structure.chunk_columns for structure, _ in self.parts)

    def resolve(self, num_layers: int) -> Structure:
        named = {layer % num_layers for _, layers in self.parts if layers != "rest" for layer in layers}
        rest = tuple(layer for layer in range(num_layers) if layer not in named)
        parts = []
        for structure, layers in self.parts:
            own = rest if layers == "rest" else tuple(layer % num_layers for layer in layers)
            if layers != "rest" and not all(-num_layers <= layer < num_layers for layer in layers):
                raise InvalidInput(f"Blocks.parts names layers {layers} of a network of {num_layers} layers")
            if own:
                resolved = structure.resolve(len(own))
                if isinstance(resolved, BufferedLowRank) and len(own) < num_layers:
                    raise InvalidInput("LowRank.buffer must be 0 in Blocks and LastLayer: it is for all layers at once")
                parts.append((resolved, own))
        if sorted(layer for _, layers in parts for layer in layers) != list(range(num_layers)):
            got = [layers for _, layers in parts]
            raise InvalidInput(f"Blocks.parts must name each of the layers 0 to {num_layers - 1} once, got {got}")
        return parts[0][0] if len(parts) == 1 else Blocks(tuple(parts))

    def _each(self, function: Callable[..., Any], state: Any, *per_layer: Sequence[Any]) -> list[Any]:
        """``function(structure, part of state, its share of each per-layer sequence)`` for every block."""
        return [
            function(structure, part, *(tuple(values[layer] for layer in layers) for values in per_layer))
            for (structure, layers), part in zip(self.parts, state.parts, strict=True)
        ]

    def _in_order(self, pieces: Sequence[Layers]) -> Layers:
        """Per-layer values of all blocks, in the order of the layers."""
        ordered: dict[int, Any] = {}
        for (_, layers), piece in zip(self.parts, pieces, strict=True):
            ordered |= dict(zip(layers, piece, strict=True))
        return tuple(ordered[layer] for layer in sorted(ordered))

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> BlocksState:
        return BlocksState(
            tuple(
                structure.initial(engine, tuple(mean[i] for i in layers), tuple(precision[i] for i in layers))
                for structure, layers in self.parts
            )
        )

    def initial_like(self, engine: Engine, state: BlocksState, mean: Layers, precision: Layers) -> BlocksState:
        return BlocksState(
            tuple(self._each(lambda s, part, m, p: s.initial_like(engine, part, m, p), state, mean, precision))
        )

    @property
    def survey(self) -> Structure | None:
        surveys = [structure.survey for structure, _ in self.parts]
        if all(survey is None for survey in surveys):
            return None
        return Blocks(tuple((s or Point(), layers) for s, (_, layers) in zip(surveys, self.parts, strict=True)))

    def chosen(self, engine: Engine, variance: Layers, mean: Layers, precision: Layers) -> BlocksState:
        return BlocksState(
            tuple(
                structure.chosen(engine, *(tuple(values[i] for i in layers) for values in (variance, mean, precision)))
                for structure, layers in self.parts
            )
        )

    def scaled(self, engine: Engine, state: BlocksState, factor: float) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part: s.scaled(engine, part, factor), state)))

    def unconstrained(self, engine: Engine, state: BlocksState) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part: s.unconstrained(engine, part), state)))

    def constrained(self, engine: Engine, free: BlocksState) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part: s.constrained(engine, part), free)))

    def mean(self, state: BlocksState) -> Layers:
        return self._in_order(self._each(lambda s, part: s.mean(part), state))

    def replace_mean(self, state: BlocksState, mean: Layers) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part, m: s.replace_mean(part, m), state, mean)))

    def output_covariance(self, engine: Engine, state: BlocksState, factors: Factors, *, joint: bool = False) -> Array:
        parts = self._each(lambda s, part, f: s.output_covariance(engine, part, f, joint=joint), state, factors)
        return sum(parts[1:], start=parts[0])

    def uses_factors(self, num_layers: int) -> tuple[bool, ...]:
        return self._in_order([structure.uses_factors(len(layers)) for structure, layers in self.parts])

    def _outputs_in(self, layers: Sequence[int], output_layer: int | None) -> int | None:
        return layers.index(output_layer) if output_layer in layers else None

    def rows_worth_preparing(self, state: BlocksState, output_layer: int | None) -> int | None:
        each = [
            structure.rows_worth_preparing(part, self._outputs_in(layers, output_layer))
            for (structure, layers), part in zip(self.parts, state.parts, strict=True)
        ]
        return max((rows for rows in each if rows is not None), default=None)

    def prepare(self, engine: Engine, state: BlocksState, output_layer: int | None) -> BlocksState:
        return BlocksState(
            tuple(
                structure.prepare(engine, part, self._outputs_in(layers, output_layer))
                for (structure, layers), part in zip(self.parts, state.parts, strict=True)
            )
        )

    def predictive_covariance(self, engine: Engine, prepared: BlocksState, factors: Factors) -> Array:
        parts = self._each(lambda s, part, f: s.predictive_covariance(engine, part, f), prepared, factors)
        return sum(parts[1:], start=parts[0])

    def predictive_variance(self, engine: Engine, prepared: BlocksState, factors: Factors) -> Array:
        parts = self._each(lambda s, part, f: s.predictive_variance(engine, part, f), prepared, factors)
        return sum(parts[1:], start=parts[0])

    def shift(self, engine: Engine, state: BlocksState, factors: Factors, residual: Float[Array, "N K"]) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part, f: s.shift(engine, part, f, residual), state, factors)))

    def add_precision(
        self, engine: Engine, state: BlocksState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> BlocksState:
        return BlocksState(
            tuple(self._each(lambda s, part, f: s.add_precision(engine, part, f, fisher_factor), state, factors))
        )

    def is_light(self, state: BlocksState) -> bool:
        parts = zip(self.parts, state.parts, strict=True)
        return all(structure.is_light(part) for (structure, _), part in parts)

    def joint_covariances(self, engine: Engine, state: BlocksState, factors: Factors) -> tuple[Array, Any]:
        pairs = self._each(lambda s, part, f: s.joint_covariances(engine, part, f), state, factors)
        return sum((covariance for covariance, _ in pairs[1:]), start=pairs[0][0]), [cross for _, cross in pairs]

    def learn(
        self,
        engine: Engine,
        state: BlocksState,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> BlocksState:
        own = iter(cross)
        return BlocksState(
            tuple(
                self._each(
                    lambda s, part, f: s.learn(engine, part, f, next(own), residual, fisher_factor), state, factors
                )
            )
        )

    def begin(self, engine: Engine, mean: Layers, precision: Layers) -> BlocksState:
        return BlocksState(
            tuple(
                structure.begin(engine, *(tuple(values[i] for i in layers) for values in (mean, precision)))
                for structure, layers in self.parts
            )
        )

    def accumulate(
        self, engine: Engine, state: BlocksState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> BlocksState:
        return BlocksState(
            tuple(self._each(lambda s, part, f: s.accumulate(engine, part, f, fisher_factor), state, factors))
        )

    def settle(self, engine: Engine, state: BlocksState) -> BlocksState:
        return BlocksState(tuple(self._each(lambda s, part: s.settle(engine, part), state)))

    def transition(
        self, engine: Engine, state: BlocksState, prior: BlocksState, retention: Array, growth: Layers
    ) -> BlocksState:
        priors = iter(prior.parts)
        return BlocksState(
            tuple(self._each(lambda s, part, q: s.transition(engine, part, next(priors), retention, q), state, growth))
        )

    def noise_shapes(self, state: BlocksState) -> tuple[tuple[int, ...], ...]:
        return tuple(shape for shapes in self._each(lambda s, part: s.noise_shapes(part), state) for shape in shapes)

    def sample(self, engine: Engine, state: BlocksState, noise: Sequence[Array]) -> Layers:
        draws = iter(noise)
        return self._in_order(
            self._each(lambda s, part: s.sample(engine, part, [next(draws) for _ in s.noise_shapes(part)]), state)
        )

    def marginal_variance(self, engine: Engine, state: BlocksState) -> Layers:
        return self._in_order(self._each(lambda s, part: s.marginal_variance(engine, part), state))

    def log_determinant(self, engine: Engine, state: BlocksState) -> Array:
        return sum(self._each(lambda s, part: s.log_determinant(engine, part), state))

    def kl(self, engine: Engine, new: BlocksState, old: BlocksState) -> Array:
        olds = iter(old.parts)
        return sum(self._each(lambda s, part: s.kl(engine, part, next(olds)), new))

    def natural(self, engine: Engine, state: BlocksState) -> tuple[Layers, Any]:
        shifted, precisions = zip(*self._each(lambda s, part: s.natural(engine, part), state), strict=True)
        return self._in_order(shifted), precisions

    def merged(self, engine: Engine, now: BlocksState, grown: Grown, gradient: Layers) -> BlocksState:
        """Each block by itself; one that has not changed stays as it is."""
        parts = []
        for index, ((structure, layers), part) in enumerate(zip(self.parts, now.parts, strict=True)):
            own = changed(engine, [(end.parts[index], start.parts[index]) for end, start in grown])
            parts.append(structure.merged(engine, part, own, tuple(gradient[i] for i in layers)) if own else part)
        return BlocksState(tuple(parts))

    def to_arrays(self, engine: Engine, state: BlocksState) -> dict[str, np.ndarray]:
        named = self._each(lambda s, part: s.to_arrays(engine, part), state)
        return {f"{i}.{name}": array for i, arrays in enumerate(named) for name, array in arrays.items()}

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> BlocksState:
        parts = []
        for index, (structure, _) in enumerate(self.parts):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            parts.append(structure.from_arrays(engine, own))
        return BlocksState(tuple(parts))


def LastLayer(last: Structure | None = None, hidden: Structure | None = None) -> Blocks:  # noqa: N802
    """One structure for the last layer beside another for all layers before it.

    Args:
        last: structure of the last layer; ``Full()`` if not given.
        hidden: structure of the other layers, as one block; ``Diagonal()`` if not given.

    Raises:
        InvalidInput: something else.
    """
    for name, part in (("last", last), ("hidden", hidden)):
        if not isinstance(part, Structure | None):
            raise InvalidInput(f"LastLayer.{name} must be a structure, got {part!r}")
    return Blocks(((hidden or Diagonal(), "rest"), (last or Full(), (-1,))))
