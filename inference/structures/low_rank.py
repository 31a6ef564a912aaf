"""Diagonal plus low rank: Λ = diag(Υ) + W Wᵀ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..checks import is_count
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..factors import among_directions
from .base import Factors, Grown, Layers, Structure, flatten_layers, split_layers, sum_float64

__all__ = ["LowRank", "LowRankState"]


_LEAST_KEPT = 0.5
"""Share of the diagonal that rounding may take at a step, at most."""
_ROUNDINGS = 16
"""Of what the columns hold: rounding takes nothing of a diagonal that is less than so many of them."""
_BLOCK = 262_144
"""Numbers of the columns that are in float64 at a time."""


class LowRankState(NamedTuple):
    """Attributes:
    mean: (I, O) for each layer.
    diagonal: Υ, the diagonal part of the precision, (I, O) for each layer.
    columns: Wᵀ, R directions in weight space, (R, I, O) for each layer.
    """

    mean: Layers
    diagonal: Layers
    columns: Layers


class FreeLowRankState(NamedTuple):
    """Υ = exp(ℓ + τ) and W = exp(ℓ/2) V, more numbers than needed.

    A change of a weight's scale is one of ℓ alone, and one of what it shares with others leaves its scale alone.

    Attributes:
        mean: (I, O) for each layer.
        log_scale: ℓ, (I, O) for each layer.
        log_share: τ, (I, O) for each layer.
        relative_columns: Vᵀ, (R, I, O) for each layer.
    """

    mean: Layers
    log_scale: Layers
    log_share: Layers
    relative_columns: Layers


class _Products(NamedTuple):
    """What a step needs of the columns, in float64: differences of it are small where much is known.

    Attributes:
        gram: JΥ⁻¹Jᵀ, of each input alone or between all.
        projected: JΥ⁻¹W.
        core: WᵀΥ⁻¹W.
    """

    gram: Array
    projected: Float[Array, "N K R"]
    core: Float[Array, "R R"]


class Move(NamedTuple):
    """How the mean moves: by Υ⁻¹ (Jᵀ r - W c).

    Attributes:
        factors: of J.
        residual: r.
        coefficients: c, (I + WᵀΥ⁻¹W)⁻¹ WᵀΥ⁻¹Jᵀ r.
    """

    factors: Factors
    residual: Float[Array, "N K"]
    coefficients: Float[Array, " R"]


@dataclass(frozen=True)
class LowRank(Structure):
    """A diagonal precision plus R correlated directions over all layers.

    New directions join the stored ones; the R leading ones in the metric of Υ⁻¹ are kept, and the squares of the others
    go to the diagonal, so that the precision's diagonal is exact (Mishkin et al. 2018 keep it so; Chang et al. 2023,
    "Low-rank extended Kalman filtering", rank in the Euclidean metric, which is worse where prior scales differ).

    Args:
        rank: R, at least 1.
        buffer: recent rows that stay as they are, at least 0; see :class:`~.buffered_low_rank.BufferedLowRank`. Large
            networks learn single events in less time, and what is dropped is chosen from many rows at once. An update
            takes a power of two of its places; answers take longer; with dynamics other than ``Static()`` it gains
            nothing.
    """

    rank: int = 10
    buffer: int = field(default=0, metadata={"added": True})

    state_type = LowRankState
    per_layer = frozenset({"mean", "diagonal", "columns"})
    learns_by_blocks = True

    def __post_init__(self) -> None:
        if not is_count(self.rank):
            raise InvalidInput(f"LowRank.rank must be an integer of at least 1, got {self.rank!r}")
        if not is_count(self.buffer, least=0):
            raise InvalidInput(f"LowRank.buffer must be an integer of at least 0, got {self.buffer!r}")

    def resolve(self, num_layers: int) -> Structure:
        from .buffered_low_rank import BufferedLowRank  # which is built on this

        return BufferedLowRank(LowRank(self.rank), self.buffer) if self.buffer else self

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> LowRankState:
        xp = engine.xp
        columns = tuple(xp.stack([xp.zeros_like(m)] * self.rank) for m in mean)
        return LowRankState(tuple(mean), tuple(precision), columns)

    def scaled(self, engine: Engine, state: LowRankState, factor: float) -> LowRankState:
        diagonal = tuple(factor * d for d in state.diagonal)
        return LowRankState(state.mean, diagonal, tuple(factor**0.5 * w for w in state.columns))

    def unconstrained(self, engine: Engine, state: LowRankState) -> FreeLowRankState:
        """The scale is the diagonal of Λ."""
        xp = engine.xp
        scale = tuple(d + xp.sum(w * w, axis=0) for d, w in zip(state.diagonal, state.columns, strict=True))
        return FreeLowRankState(
            state.mean,
            tuple(xp.log(s) for s in scale),
            tuple(xp.log(d / s) for d, s in zip(state.diagonal, scale, strict=True)),
            tuple(w / xp.sqrt(s) for w, s in zip(state.columns, scale, strict=True)),
        )

    def constrained(self, engine: Engine, free: FreeLowRankState) -> LowRankState:
        xp = engine.xp
        layers = list(zip(free.log_scale, free.log_share, free.relative_columns, strict=True))
        diagonal = tuple(xp.exp(log_scale + log_share) for log_scale, log_share, _ in layers)
        return LowRankState(free.mean, diagonal, tuple(xp.exp(0.5 * log_scale) * v for log_scale, _, v in layers))

    def _core(self, engine: Engine, state: LowRankState) -> Float[Array, "R R"]:
        """WᵀΥ⁻¹W, in the precision of the arrays."""
        grams = [
            _flat(engine, columns / diagonal) @ _flat(engine, columns).mT
            for columns, diagonal in zip(state.columns, state.diagonal, strict=True)
        ]
        return sum(grams[1:], start=grams[0])

    def _correction(self, engine: Engine, state: LowRankState, projected: Float[Array, "M R"]) -> Array:
        """``projected F⁻ᵀ`` with F Fᵀ = I + WᵀΥ⁻¹W: rows whose inner products are what the columns take away."""
        return engine.in_float64(_divide_by_root, self._core(engine, state), projected)

    def output_covariance(self, engine: Engine, state: LowRankState, factors: Factors, *, joint: bool = False) -> Array:
        """JΥ⁻¹Jᵀ - (JΥ⁻¹W)(I + WᵀΥ⁻¹W)⁻¹(JΥ⁻¹W)ᵀ."""
        return self._covariance(engine, self._products(engine, state, factors, joint))

    def joint_covariances(self, engine: Engine, state: LowRankState, factors: Factors) -> tuple[Array, _Products]:
        products = self._products(engine, state, factors, joint=True)
        return self._covariance(engine, products), products

    def _products(self, engine: Engine, state: LowRankState, factors: Factors, joint: bool) -> _Products:
        """Those of J, between all inputs or of each alone."""
        parts = [
            _products_of_layer(engine, factor, diagonal, columns, joint)
            for factor, diagonal, columns in zip(factors, state.diagonal, state.columns, strict=True)
        ]
        return _Products(*(sum(terms[1:], start=terms[0]) for terms in zip(*parts, strict=True)))

    def _covariance(self, engine: Engine, products: _Products) -> Array:
        projected = products.projected
        if products.gram.ndim == 2:
            projected = engine.xp.reshape(projected, (-1, projected.shape[2]))
        taken = engine.in_float64(_divide_by_root, products.core, projected)
        return engine.cast(products.gram - taken @ taken.mT)

    def shift(
        self, engine: Engine, state: LowRankState, factors: Factors, residual: Float[Array, "N K"]
    ) -> LowRankState:
        wide, factors, residual = engine.widen((state, tuple(factors), residual))
        pulled = (factor.pull_back(residual) for factor in factors)
        gradient = tuple(column.mT @ row for column, row in pulled)
        step = self._solve(engine, wide, gradient)
        return state._replace(mean=engine.cast(tuple(m + s for m, s in zip(wide.mean, step, strict=True))))

    def _solve(self, engine: Engine, state: LowRankState, gradient: Layers) -> Layers:
        """Λ⁻¹ times a direction in weight space."""
        scaled = tuple(g / d for g, d in zip(gradient, state.diagonal, strict=True))
        parts = [_flat(engine, w) @ engine.xp.reshape(s, (-1,)) for w, s in zip(state.columns, scaled, strict=True)]
        core = self._core(engine, state)
        coefficients = engine.in_float64(_solve_core, core, sum(parts[1:], start=parts[0]))
        return tuple(
            s - _combine(engine, coefficients[None], w)[0] / d
            for s, w, d in zip(scaled, state.columns, state.diagonal, strict=True)
        )

    def add_precision(
        self, engine: Engine, state: LowRankState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> LowRankState:
        new = [factor.left_multiply(fisher_factor) for factor in factors]
        products = self._products(engine, state, new, joint=True)
        return self._joined(engine, state, new, products, None)

    def learn(
        self,
        engine: Engine,
        state: LowRankState,
        factors: Factors,
        cross: _Products,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> LowRankState:
        """The products of LᵀJ are those of J, multiplied by Lᵀ."""
        new = [factor.left_multiply(fisher_factor) for factor in factors]
        coefficients, products = engine.in_float64(_of_the_new, cross, residual, fisher_factor)
        return self._joined(engine, state, new, products, Move(factors, residual, coefficients))

    def _joined(
        self,
        engine: Engine,
        state: LowRankState,
        new: Factors,
        products: _Products,
        move: Move | None,
    ) -> LowRankState:
        """The new directions stay factors: only their products with the stored ones and among themselves are taken."""
        num_rows, num_directions, rank = products.projected.shape
        rotation = engine.cast(engine.in_float64(_leading_directions, products))
        mixing = engine.xp.reshape(rotation[rank:], (num_rows, num_directions, rank))
        layers = []
        for index, (factor, *arrays) in enumerate(zip(new, *state, strict=True)):

            def learned(m: Array, d: Array, w: Array, a: Array, factor: Any = factor, index: int = index) -> Any:
                if move is not None:
                    m = self.mean_after(engine, move.factors[index]._replace(inputs=a.mT), move, m, d, w)
                return m, *self.truncated(engine, factor._replace(inputs=a.mT), d, w, (rotation[:rank], mixing))

            layers.append(engine.map_blocks(learned, arrays, (factor.inputs.mT,), block_rows(arrays[2])))
        return LowRankState(*zip(*layers, strict=True))

    def truncated(
        self, engine: Engine, factor: Any, d: Array, w: Array, mixing: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """A layer's Υ and Wᵀ with new directions among the stored ones.

        Args:
            engine: of the arrays.
            factor: of the new directions.
            d: Υ before.
            w: Wᵀ before.
            mixing: of the stored directions, (R, R), and of the new ones, (N, K, R), into those that are kept.
        """
        after = _combine(engine, mixing[0].mT, w) + factor.combined(engine, mixing[1])
        return self._diagonal_after(engine, factor, d, w, after), after

    def mean_after(self, engine: Engine, factor: Any, move: Move, mean: Array, d: Array, w: Array) -> Array:
        """A layer's mean, moved, in float64: where much is known, the columns take nearly all of it away again."""
        column, row = engine.widen(factor.pull_back(move.residual))
        step = column.mT @ row
        for index in range(self.rank):
            step = engine.add_product(step, engine.widen(w[index]), move.coefficients[index], -1.0)
        return engine.cast(engine.widen(mean) + step / engine.widen(d))

    def _diagonal_after(self, engine: Engine, factor: Any, diagonal: Array, before: Array, after: Array) -> Array:
        """Υ with the squares of what was dropped: what the diagonal of Λ is to be, less what the columns hold.

        So rounding of the columns is made good, up or down; were only what is positive added, Υ would drift upwards. It
        takes nothing below what it can tell from 0, or many steps would leave no Υ where the columns hold much.
        """
        xp = engine.xp
        column, row = engine.widen(factor.squares(engine))
        told = column.mT @ row
        for index in range(self.rank):  # one after the other: compilers reduce a leading axis badly
            held = engine.widen(before[index])
            told = engine.add_product(told, held, held)
        dropped = told
        for index in range(self.rank):
            kept = engine.widen(after[index])
            dropped = engine.add_product(dropped, kept, kept, -1.0)
        smallest = _ROUNDINGS * float(np.finfo(engine.dtype).eps) * told
        least = xp.clip(smallest - diagonal, -_LEAST_KEPT * diagonal, 0.0)
        return engine.cast(diagonal + xp.where(dropped > least, dropped, least))

    def transition(
        self, engine: Engine, state: LowRankState, prior: Any, retention: Array, growth: Layers
    ) -> LowRankState:
        """Υ' = 1/(γ²/Υ + q); W' = γ diag(Υ'/Υ) W chol((I + Wᵀ diag(qΥ'/Υ) W)⁻¹)."""
        mean = self.move_mean(engine, state, prior, retention)
        state, growth = engine.widen((state, tuple(growth)))
        square = retention * retention
        diagonal = tuple(1 / (square / d + q) for d, q in zip(state.diagonal, growth, strict=True))
        grams = [
            _flat(engine, w * (q * new / d)) @ _flat(engine, w).mT
            for w, q, new, d in zip(state.columns, growth, diagonal, state.diagonal, strict=True)
        ]
        mixing = engine.in_float64(_inverse_root, sum(grams[1:], start=grams[0]))
        columns = tuple(
            retention * (new / d) * _combine(engine, mixing.mT, w)
            for w, new, d in zip(state.columns, diagonal, state.diagonal, strict=True)
        )
        return LowRankState(mean, *engine.cast((diagonal, columns)))

    def noise_shapes(self, state: LowRankState) -> tuple[tuple[int, ...], ...]:
        return (*(tuple(mean.shape) for mean in state.mean), (state.columns[0].shape[0],))

    def sample(self, engine: Engine, state: LowRankState, noise: Sequence[Array]) -> Layers:
        """θ = m + Υ^(-½)ε₁ - Υ⁻¹W (I + WᵀΥ⁻¹W)⁻¹ (WᵀΥ^(-½)ε₁ + ε₂), exact in O(P R)."""
        xp = engine.xp
        state, (*first, second) = engine.widen((state, tuple(noise)))
        free = tuple(e / xp.sqrt(d) for e, d in zip(first, state.diagonal, strict=True))
        parts = [_flat(engine, f) @ _flat(engine, w).mT for f, w in zip(free, state.columns, strict=True)]
        right = (sum(parts[1:], start=parts[0]) + second).mT
        coefficients = engine.in_float64(_solve_core, self._core(engine, state), right).mT
        drawn = (
            mean + f - _combine(engine, coefficients, w) / d
            for mean, f, w, d in zip(state.mean, free, state.columns, state.diagonal, strict=True)
        )
        return tuple(engine.cast(layer) for layer in drawn)

    def marginal_variance(self, engine: Engine, state: LowRankState) -> Layers:
        state = engine.widen(state)
        scaled = tuple(w / d for w, d in zip(state.columns, state.diagonal, strict=True))
        taken = self._correction(engine, state, flatten_layers(engine, scaled).mT).mT
        rows = split_layers(engine, taken, state.mean)
        left = (1 / d - engine.xp.sum(r * r, axis=0) for d, r in zip(state.diagonal, rows, strict=True))
        return tuple(engine.cast(layer) for layer in left)

    def log_determinant(self, engine: Engine, state: LowRankState) -> Array:
        state = engine.widen(state)
        diagonal = sum(sum_float64(engine, engine.xp.log(d)) for d in state.diagonal)
        return diagonal + engine.in_float64(_log_determinant_core, self._core(engine, state))

    def kl(self, engine: Engine, new: LowRankState, old: LowRankState) -> Array:
        new, old = engine.widen((new, old))
        total = self.log_determinant(engine, new) - self.log_determinant(engine, old)
        step = tuple(m - o for m, o in zip(new.mean, old.mean, strict=True))
        variances = self.marginal_variance(engine, new)
        for variance, move, diagonal in zip(variances, step, old.diagonal, strict=True):
            total = total + sum_float64(engine, diagonal * (variance + move * move) - 1)
        for index in range(self.rank):  # tr(Wᵀ Λ_new⁻¹ W) and |Wᵀ step|², one stored direction at a time
            direction = tuple(w[index] for w in old.columns)
            solved = self._solve(engine, new, direction)
            total = total + sum(sum_float64(engine, d * s) for d, s in zip(direction, solved, strict=True))
            total = total + sum(sum_float64(engine, d * s) for d, s in zip(direction, step, strict=True)) ** 2
        return 0.5 * total

    def natural(self, engine: Engine, state: LowRankState) -> tuple[Layers, Any]:
        stored, state = state, engine.widen(state)
        parts = [_flat(engine, w) @ engine.xp.reshape(m, (-1,)) for w, m in zip(state.columns, state.mean, strict=True)]
        inner = sum(parts[1:], start=parts[0])
        shifted = tuple(
            d * m + _combine(engine, inner[None], w)[0]
            for d, m, w in zip(state.diagonal, state.mean, state.columns, strict=True)
        )
        return engine.cast(shifted), (stored.diagonal, stored.columns)

    def merged(self, engine: Engine, now: LowRankState, grown: Grown, gradient: Layers) -> LowRankState:
        """The differences' directions join the stored ones; the mean moves before any are dropped."""
        xp = engine.xp
        whole = now
        for end, start in grown:
            gained, directions = _difference(engine, now, end, start)
            diagonal = tuple(d + g for d, g in zip(whole.diagonal, gained, strict=True))
            columns = tuple(xp.concat([w, c], axis=0) for w, c in zip(whole.columns, directions, strict=True))
            whole = LowRankState(now.mean, diagonal, columns)
        step = self._solve(engine, whole, gradient)
        mean = tuple(m + s for m, s in zip(now.mean, step, strict=True))
        rotation = descending_eigenvectors(engine, self._core(engine, whole))[:, : self.rank]
        kept = tuple(_combine(engine, rotation.mT, w) for w in whole.columns)
        dropped = (xp.sum(w * w, axis=0) - xp.sum(k * k, axis=0) for w, k in zip(whole.columns, kept, strict=True))
        diagonal = tuple(d + xp.clip(rest, 0, None) for d, rest in zip(whole.diagonal, dropped, strict=True))
        return LowRankState(mean, diagonal, kept)


def _flat(engine: Engine, columns: Float[Array, "R I O"]) -> Float[Array, "R P"]:
    return engine.xp.reshape(columns, (columns.shape[0], -1))


def block_rows(columns: Float[Array, "R I O"]) -> int:
    """Rows of a layer that are taken at a time."""
    return int(max(1, _BLOCK // (columns.shape[0] * columns.shape[2])))


def _combine(engine: Engine, mixing: Float[Array, "M R"], columns: Float[Array, "R I O"]) -> Float[Array, "M I O"]:
    """Linear combinations of directions."""
    return engine.xp.reshape(mixing @ _flat(engine, columns), (mixing.shape[0], *columns.shape[1:]))


def _plus_identity(engine: Engine, core: Array) -> Array:
    return core + engine.eye(core.shape[0], core)


def _divide_by_root(engine: Engine, core: Array, projected: Array) -> Array:
    factor, _ = engine.cholesky(_plus_identity(engine, core))
    return engine.solve_triangular(factor, projected.mT).mT


def _solve_core(engine: Engine, core: Array, right: Array) -> Array:
    matrix = right if right.ndim == 2 else right[:, None]
    solved = engine.solve(_plus_identity(engine, core), matrix)
    return solved if right.ndim == 2 else solved[:, 0]


def _log_determinant_core(engine: Engine, core: Array) -> Array:
    return engine.xp.linalg.slogdet(_plus_identity(engine, core))[1]


def _inverse_root(engine: Engine, core: Array) -> Array:
    """Lower Cholesky factor of (I + core)⁻¹."""
    return engine.cholesky(engine.xp.linalg.inv(_plus_identity(engine, core)))[0]


def _products_of_layer(engine: Engine, factor: Any, diagonal: Array, columns: Array, joint: bool) -> _Products:
    """One layer's share, its rows taken in blocks that a processor's cache holds in float64."""

    def spreads(diagonal: Array, inputs: Array) -> Array:
        return wide._replace(inputs=inputs.mT).spread(engine, 1 / engine.widen(diagonal), joint)

    def moves_of(diagonal: Array, columns: Array, inputs: Array) -> Array:
        return moves_of_block(engine, wide._replace(inputs=inputs.mT), diagonal, columns)

    def both(diagonal: Array, columns: Array, inputs: Array) -> tuple[Array, Array]:
        return moves_of(diagonal, columns, inputs), _core_of_block(engine, diagonal, columns)

    wide = engine.widen(factor)
    layer, size = (diagonal, columns, wide.inputs.mT), block_rows(columns)
    spread = engine.sum_blocks(spreads, (diagonal, wide.inputs.mT), block_rows(diagonal[None]), narrow=False)
    if factor.inputs.shape[0] == 1:
        moves, core = engine.sum_blocks(both, layer, size)
    else:
        moves, core = engine.sum_blocks(moves_of, layer, size, narrow=False), core_of_layer(engine, diagonal, columns)
    return _Products(wide.gram_of(engine, spread, joint), wide.outputs_of(engine, moves), core)


def moves_of_block(engine: Engine, factor: Any, diagonal: Array, columns: Array) -> Array:
    """How Υ⁻¹W moves the pre-activations, in float64."""
    diagonal, columns = engine.widen((diagonal, columns))
    return factor.moves(engine, columns / diagonal)


def core_of_layer(engine: Engine, diagonal: Float[Array, "I O"], columns: Float[Array, "R I O"]) -> Array:
    """One layer's share of WᵀΥ⁻¹W, in float64."""

    def of_block(diagonal: Array, columns: Array) -> Array:
        return _core_of_block(engine, diagonal, columns)

    return engine.sum_blocks(of_block, (diagonal, columns), block_rows(columns))


def _core_of_block(engine: Engine, diagonal: Array, columns: Array) -> Array:
    diagonal, columns = engine.widen((diagonal, columns))
    return _flat(engine, columns / diagonal) @ _flat(engine, columns).mT


def _of_the_new(
    engine: Engine, products: _Products, residual: Array, factor: Array
) -> tuple[Float[Array, " R"], _Products]:
    """(I + WᵀΥ⁻¹W)⁻¹ WᵀΥ⁻¹Jᵀ r, and the products of LᵀJ."""
    xp = engine.xp
    gram, projected, core = products
    right = xp.reshape(projected, (-1, core.shape[0])).mT @ xp.reshape(residual, (-1,))
    among = among_directions(engine, gram, factor)[1]
    return _solve_core(engine, core, right), _Products(among, factor.mT @ projected, core)


def _leading_directions(engine: Engine, products: _Products) -> Array:
    """Leading eigenvectors of W̃ᵀΥ⁻¹W̃, where W̃ are the stored and the new directions."""
    xp = engine.xp
    gram, projected, core = products
    rank = core.shape[0]
    cross = xp.reshape(projected, (-1, rank))
    upper = xp.concat([core, cross.mT], axis=1)
    lower = xp.concat([cross, 0.5 * (gram + gram.mT)], axis=1)
    return descending_eigenvectors(engine, xp.concat([upper, lower], axis=0))[:, :rank]


def descending_eigenvectors(engine: Engine, gram: Array) -> Array:
    """Eigenvectors of a symmetric matrix as columns, that of the largest eigenvalue first."""
    vectors = engine.xp.linalg.eigh(gram)[1]
    return engine.xp.flip(vectors, axis=1)


def _difference(engine: Engine, metric: LowRankState, end: LowRankState, start: LowRankState) -> tuple[Layers, Layers]:
    """``Λ_end - Λ_start`` as ``diag(δ) + P Pᵀ`` with δ ≥ 0: δ and Pᵀ.

    P is the positive part of ``W_end W_endᵀ - W_start W_startᵀ`` in the metric of Υ⁻¹. What a truncation of the end
    took from the columns is the negative part; its squares are taken back from the diagonal, to which the truncation
    gave them.
    """
    xp = engine.xp
    scale = xp.sqrt(flatten_layers(engine, metric.diagonal))
    columns = xp.concat([flatten_layers(engine, end.columns), flatten_layers(engine, start.columns)], axis=0) / scale
    rank = end.columns[0].shape[0]
    basis, mixing = xp.linalg.qr(columns.mT)
    inner = mixing[:, :rank] @ mixing[:, :rank].mT - mixing[:, rank:] @ mixing[:, rank:].mT
    values, vectors = xp.linalg.eigh(inner)
    directions = (scale[:, None] * (basis @ vectors)).mT
    positive = xp.sqrt(xp.clip(values, 0, None))[:, None] * directions
    negative = xp.sqrt(xp.clip(-values, 0, None))[:, None] * directions
    gained = flatten_layers(engine, end.diagonal) - flatten_layers(engine, start.diagonal)
    gained = xp.clip(gained - xp.sum(negative * negative, axis=0), 0, None)
    return split_layers(engine, gained, metric.mean), split_layers(engine, positive, metric.mean)
