"""Independent weights: a diagonal precision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float

from ..engines.base import Array, Engine
from ..factors import joined_rows
from .base import Factors, Grown, Layers, Structure, sum_float64

__all__ = ["Diagonal", "DiagonalState"]


class DiagonalState(NamedTuple):
    """Attributes:
    mean: (I, O) for each layer.
    precision: of each weight, (I, O) for each layer.
    """

    mean: Layers
    precision: Layers


class _OfOneInput(NamedTuple):
    """What the two halves of a step on one input share.

    Attributes:
        rows: of the factors of all layers, side by side.
        over_precision: ``aᵀ / precision`` for each layer, None where it was not formed.
    """

    rows: Float[Array, "K Os"]
    over_precision: tuple[Float[Array, "I O"] | None, ...]


@dataclass(frozen=True)
class Diagonal(Structure):
    """Independent weights; an event costs O(P) whatever the number of outputs."""

    state_type = DiagonalState
    chunk_columns = 2048
    per_layer = frozenset({"mean", "precision"})

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> DiagonalState:
        return DiagonalState(tuple(mean), tuple(precision))

    def scaled(self, engine: Engine, state: DiagonalState, factor: float) -> DiagonalState:
        return DiagonalState(state.mean, tuple(factor * precision for precision in state.precision))

    def unconstrained(self, engine: Engine, state: DiagonalState) -> DiagonalState:
        """Precisions by their logarithms."""
        return DiagonalState(state.mean, tuple(engine.xp.log(precision) for precision in state.precision))

    def constrained(self, engine: Engine, free: DiagonalState) -> DiagonalState:
        return DiagonalState(free.mean, tuple(engine.xp.exp(logarithm) for logarithm in free.precision))

    def output_covariance(
        self, engine: Engine, state: DiagonalState, factors: Factors, *, joint: bool = False
    ) -> Array:
        layers = zip(factors, state.precision, strict=True)
        grams = [factor.gram(engine, engine.xp.reciprocal(precision), joint) for factor, precision in layers]
        return sum(grams[1:], start=grams[0])

    def predictive_variance(self, engine: Engine, prepared: DiagonalState, factors: Factors) -> Array:
        layers = zip(factors, prepared.precision, strict=True)
        parts = [factor.gram_diagonal(engine, 1 / precision) for factor, precision in layers]
        return sum(parts[1:], start=parts[0])

    def shift(
        self, engine: Engine, state: DiagonalState, factors: Factors, residual: Float[Array, "N K"]
    ) -> DiagonalState:
        mean = tuple(
            engine.add_outer_over(mean, *factor.pull_back(residual), precision)
            for mean, precision, factor in zip(state.mean, state.precision, factors, strict=True)
        )
        return DiagonalState(mean, state.precision)

    def add_precision(
        self, engine: Engine, state: DiagonalState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> DiagonalState:
        precision = tuple(
            engine.add_outer(precision, *factor.left_multiply(fisher_factor).squares(engine))
            for precision, factor in zip(state.precision, factors, strict=True)
        )
        return DiagonalState(state.mean, precision)

    def is_light(self, state: DiagonalState) -> bool:
        return True

    def joint_covariances(self, engine: Engine, state: DiagonalState, factors: Factors) -> tuple[Array, Any]:
        rows = joined_rows(engine, factors)
        if rows is None:
            return super().joint_covariances(engine, state, factors)
        layers = zip(factors, state.precision, strict=True)
        spreads, crosses = zip(*(engine.spread_over(f.inputs, precision) for f, precision in layers), strict=True)
        return (rows * engine.xp.concat(spreads, axis=1)) @ rows.mT, _OfOneInput(rows, crosses)

    def learn(
        self,
        engine: Engine,
        state: DiagonalState,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> DiagonalState:
        """For one input in one pass over the weights, and what has the outputs' size is taken of all layers at once."""
        if cross is None:
            return super().learn(engine, state, factors, cross, residual, fisher_factor)
        step, told = residual @ cross.rows, fisher_factor[0].mT @ cross.rows
        gain = engine.xp.sum(told * told, axis=0)[None]
        ends = list(itertools.accumulate(mean.shape[1] for mean in state.mean))
        units = [slice(end - mean.shape[1], end) for mean, end in zip(state.mean, ends, strict=True)]
        layers = [
            engine.learn_independent(mean, precision, factor.inputs, step[:, own], gain[:, own], scale)
            for mean, precision, factor, scale, own in zip(*state, factors, cross.over_precision, units, strict=True)
        ]
        return DiagonalState(*zip(*layers, strict=True))

    def transition(
        self, engine: Engine, state: DiagonalState, prior: Any, retention: Array, growth: Layers
    ) -> DiagonalState:
        precision = tuple(
            1 / (retention * retention / now + grown) for now, grown in zip(state.precision, growth, strict=True)
        )
        return DiagonalState(self.move_mean(engine, state, prior, retention), precision)

    def noise_shapes(self, state: DiagonalState) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(mean.shape) for mean in state.mean)

    def sample(self, engine: Engine, state: DiagonalState, noise: Sequence[Array]) -> Layers:
        layers = zip(state.mean, state.precision, noise, strict=True)
        return tuple(mean + draw / engine.xp.sqrt(precision) for mean, precision, draw in layers)

    def marginal_variance(self, engine: Engine, state: DiagonalState) -> Layers:
        return tuple(1 / precision for precision in state.precision)

    def log_determinant(self, engine: Engine, state: DiagonalState) -> Array:
        return sum(sum_float64(engine, engine.xp.log(precision)) for precision in state.precision)

    def kl(self, engine: Engine, new: DiagonalState, old: DiagonalState) -> Array:
        total = 0.0
        for mean, precision, old_mean, old_precision in zip(*new, *old, strict=True):
            ratio = old_precision / precision
            step = mean - old_mean
            total = total + sum_float64(engine, ratio - 1 - engine.xp.log(ratio) + step * step * old_precision)
        return 0.5 * total

    def natural(self, engine: Engine, state: DiagonalState) -> tuple[Layers, Any]:
        shifted = tuple(mean * precision for mean, precision in zip(*state, strict=True))
        return shifted, state.precision

    def merged(self, engine: Engine, now: DiagonalState, grown: Grown, gradient: Layers) -> DiagonalState:
        precision = now.precision
        for end, start in grown:
            gains = (engine.xp.clip(e - s, 0, None) for e, s in zip(end.precision, start.precision, strict=True))
            precision = tuple(p + gain for p, gain in zip(precision, gains, strict=True))
        layers = zip(now.mean, gradient, precision, strict=True)
        return DiagonalState(tuple(mean + g / p for mean, g, p in layers), precision)
