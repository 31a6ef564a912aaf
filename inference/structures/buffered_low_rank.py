"""Diagonal plus low rank plus the newest rows as they are: Λ = diag(Υ) + W Wᵀ + G Gᵀ.

A row that was learned has the precision (LᵀJ)ᵀ LᵀJ, whose directions are kept as the layers' factors: a few numbers for
each unit in place of one for each weight. They wait until the buffer is full, and are then folded into the R columns
together; until then the filter is the exact one. Only at a fold does a step do more with the columns than contract
them, and only there is anything dropped.

With the Cholesky factor F of I + [W G]ᵀ Υ⁻¹ [W G] the outputs' covariance is

    J Λ⁻¹ Jᵀ = J Υ⁻¹ Jᵀ - Yᵀ Y,   Y = F⁻¹ [W G]ᵀ Υ⁻¹ Jᵀ

and a new row borders F by the Y of its LᵀJ and a root of I + LᵀJ Λ⁻¹ JᵀL: what is known of the rows that wait is never
computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..factors import Factor, LayerFactors
from .base import Factors, Grown, Layers, Structure
from .low_rank import (
    LowRank,
    LowRankState,
    Move,
    block_rows,
    core_of_layer,
    descending_eigenvectors,
    moves_of_block,
)

__all__ = ["BufferedLowRank", "BufferedLowRankState"]


class BufferedLowRankState(NamedTuple):
    """Attributes:
    mean: (I, O) for each layer.
    diagonal: Υ, (I, O) for each layer.
    columns: Wᵀ, (R, I, O) for each layer.
    inputs: of the B rows that may wait, the newest last, (B, I) for each layer.
    rows: of their LᵀJ, 0 where none waits, (B, K, O) for each layer.
    root: F, lower, in float64; D = R + B·K.
    waiting: number of rows that wait.
    """

    mean: Layers
    diagonal: Layers
    columns: Layers
    inputs: Layers
    rows: Layers
    root: Float[Array, "D D"]
    waiting: Float[Array, ""]


class _Contracted(NamedTuple):
    """What the inputs of one layer say, whatever their rows of derivatives: all that passes over the weights; float64.

    Attributes:
        spread: of pairs of the inputs, see :meth:`LayerFactors.spread`.
        moves: of the pre-activations along Υ⁻¹W.
        between: spread of the inputs with those that wait.
    """

    spread: Array
    moves: Float[Array, "R N O"]
    between: Float[Array, "N B O"]


class _Innovation(NamedTuple):
    """What a step needs of the outputs, in float64.

    Attributes:
        gram: JΥ⁻¹Jᵀ.
        narrowed: Y, (D, N·K).
        contracted: what both are of, for each layer.
    """

    gram: Array
    narrowed: Float[Array, "D M"]
    contracted: Sequence[_Contracted]


@dataclass(frozen=True)
class BufferedLowRank(Structure):
    """``LowRank(rank, buffer=B)`` for a network: a :class:`LowRank` whose newest rows wait in a buffer.

    The buffer is for rows that pass each layer once; a row of weight 0 takes no place in it. Others, and batches of
    more rows than it holds (padding counts there), are folded in at once. The outputs' covariances are those with all
    that waits; whatever else is asked of the weights (draws, variances, divergences) or done with them (dynamics, fits,
    merges) is with all of it folded in.

    Args:
        of: what the rows are folded into.
        capacity: B, at least 1.
    """

    of: LowRank
    capacity: int

    state_type = BufferedLowRankState
    per_layer = frozenset({"mean", "diagonal", "columns", "inputs", "rows"})
    learns_by_blocks = True

    # -- the buffer -----------------------------------------------------------------------------------------------
    def _empty(self, engine: Engine, state: LowRankState) -> BufferedLowRankState:
        """A state of which no row waits."""

        def zeros(*shape: int) -> Array:
            return engine.constant(np.zeros(shape), state.mean[0])

        outputs = state.mean[-1].shape[1]
        inputs = tuple(zeros(self.capacity, m.shape[0]) for m in state.mean)
        rows = tuple(zeros(self.capacity, outputs, m.shape[1]) for m in state.mean)
        return BufferedLowRankState(*state, inputs, rows, self._root(engine, state, self.capacity * outputs), zeros())

    def _root(self, engine: Engine, state: LowRankState, places: int) -> Float[Array, "D D"]:
        """F where no row waits."""
        cores = [core_of_layer(engine, d, w) for d, w in zip(state.diagonal, state.columns, strict=True)]

        def root(own: Engine, core: Array) -> Array:
            factor = own.cholesky(own.eye(core.shape[0], core) + core)[0]
            return _bordered(own, factor, own.constant(np.zeros((len(core), places)), core), own.eye(places, core))

        return engine.in_float64(root, sum(cores[1:], start=cores[0]))

    def _settled(self, engine: Engine, state: BufferedLowRankState) -> LowRankState:
        """The posterior as a :class:`LowRank` that all rows were folded into."""

        def folded(now: tuple[Layers, Layers]) -> tuple[Layers, Layers]:
            return self._fold(replace(engine, in_place=False), *now, _factors(state), self._leading(engine, state.root))

        diagonal, columns = engine.when(state.waiting > 0, folded, (state.diagonal, state.columns))
        return LowRankState(state.mean, diagonal, columns)

    def _leading(self, engine: Engine, root: Float[Array, "E E"]) -> Float[Array, "E R"]:
        """The R leading directions among all whose products with each other are F Fᵀ - I."""
        rank = self.of.rank

        def leading(own: Engine, root: Array) -> Array:
            return descending_eigenvectors(own, root @ root.mT)[:, :rank]

        return engine.cast(engine.in_float64(leading, root))

    def _fold(
        self, engine: Engine, diagonal: Layers, columns: Layers, rows: Sequence[LayerFactors], mixing: Array
    ) -> tuple[Layers, Layers]:
        """Υ and Wᵀ with rows' directions folded in."""
        rank = self.of.rank
        parts = mixing[:rank], engine.xp.reshape(mixing[rank:], (*rows[0].rows.shape[:2], rank))
        layers = []
        for factor, d, w in zip(rows, diagonal, columns, strict=True):

            def folded(d: Array, w: Array, a: Array, factor: LayerFactors = factor) -> tuple[Array, Array]:
                return self.of.truncated(engine, factor._replace(inputs=a.mT), d, w, parts)

            layers.append(engine.map_blocks(folded, (d, w), (factor.inputs.mT,), block_rows(w)))
        new_diagonal, new_columns = zip(*layers, strict=True)
        return new_diagonal, new_columns

    # -- among the outputs ----------------------------------------------------------------------------------------
    def _innovation(self, engine: Engine, state: BufferedLowRankState, factors: Factors, joint: bool) -> _Innovation:
        parts = [
            _contracted(engine, cast(LayerFactors, factor), waiting, diagonal, columns, joint)
            for factor, waiting, diagonal, columns in zip(
                factors, _factors(state), state.diagonal, state.columns, strict=True
            )
        ]
        return self._of_rows(engine, state, factors, parts, joint)

    def _of_rows(
        self,
        engine: Engine,
        state: BufferedLowRankState,
        factors: Factors,
        contracted: Sequence[_Contracted],
        joint: bool,
    ) -> _Innovation:
        """The products of some rows of derivatives at inputs that were contracted."""
        xp, terms = engine.xp, []
        for factor, waiting, (spread, moves, between) in zip(factors, _factors(state), contracted, strict=True):
            wide, others = engine.widen((factor, waiting))
            gram = wide.gram_of(engine, spread, joint)
            terms.append((gram, wide.outputs_of(engine, moves), wide.gram_with(others, between)))
        gram, *projected = (sum(each[1:], start=each[0]) for each in zip(*terms, strict=True))
        size = projected[0].shape[0] * projected[0].shape[1]
        flat = xp.concat([xp.reshape(each, (size, -1)) for each in projected], axis=1)

        def narrowed(own: Engine, root: Array, flat: Array) -> Array:
            return own.solve_triangular(root, flat.mT)

        return _Innovation(gram, engine.in_float64(narrowed, state.root, flat), contracted)

    def output_covariance(
        self, engine: Engine, state: BufferedLowRankState, factors: Factors, *, joint: bool = False
    ) -> Array:
        if not _fit(state, factors):
            return self.of.output_covariance(engine, self._settled(engine, state), factors, joint=joint)
        gram, narrowed, _ = self._innovation(engine, state, factors, joint)
        return engine.cast(_covariance(engine, gram, narrowed))

    def joint_covariances(self, engine: Engine, state: BufferedLowRankState, factors: Factors) -> tuple[Array, Any]:
        if not self._may_wait(state, factors):
            settled = self._settled(engine, state)
            covariance, products = self.of.joint_covariances(engine, settled, factors)
            return covariance, (settled, products)
        innovation = self._innovation(engine, state, factors, joint=True)
        return engine.cast(_covariance(engine, innovation.gram, innovation.narrowed)), innovation

    def _may_wait(self, state: BufferedLowRankState, factors: Factors) -> bool:
        """Whether a batch can be in the buffer."""
        return _fit(state, factors) and factors[0].inputs.shape[0] <= self.capacity

    # -- learning -------------------------------------------------------------------------------------------------
    def learn(
        self,
        engine: Engine,
        state: BufferedLowRankState,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> BufferedLowRankState:
        if not isinstance(cross, _Innovation):
            settled, products = cross
            learned = self.of.learn(engine, settled, factors, products, residual, fisher_factor)
            return engine.kept(self._empty(engine, learned), state)
        mean = self._moved(engine, state, factors, residual, cross.narrowed)
        fisher_factor = _as_wide_as(engine, fisher_factor, state.rows[0].shape[1])
        new = [factor.left_multiply(fisher_factor) for factor in factors]
        # F is of the rows as they are stored, to the last bit: where much is known, their rounding is not little.
        gram, border, _ = self._of_rows(engine, state, new, cross.contracted, joint=True)
        root = engine.in_float64(_with_the_new, state.root, gram, border)
        rows = [_joined(engine, waiting, factor) for waiting, factor in zip(_factors(state), new, strict=True)]
        count, places = self._places(engine, state, fisher_factor)
        full = count > self.capacity
        mixing = engine.when(full, lambda _: self._leading(engine, root), engine.cast(0 * root[:, : self.of.rank]))
        # A fold waits for the mean: so compiled code has read the columns before it writes, and need not copy them.
        last = full & engine.xp.isfinite(sum(m[0, 0] for m in mean))
        changed = state.diagonal, state.columns
        diagonal, columns = engine.change_blocks(last, lambda own, now: self._fold(own, *now, rows, mixing), changed)
        waiting = engine.xp.where(full, 0.0, count), places[factors[0].inputs.shape[0] :]
        return self._waiting(engine, state, LowRankState(mean, diagonal, columns), rows, root, full, *waiting)

    def _places(
        self, engine: Engine, state: BufferedLowRankState, fisher_factor: Float[Array, "N K R"]
    ) -> tuple[Float[Array, ""], Array]:
        """Number of rows that wait or are new, and the B + N places they are in, with those first that say nothing."""
        xp = engine.xp
        old = engine.constant(np.arange(self.capacity), state.waiting) >= self.capacity - state.waiting
        taken = xp.astype(xp.concat([old, xp.any(fisher_factor != 0, axis=(1, 2))]), state.waiting.dtype)
        return xp.sum(taken), xp.argsort(taken, stable=True)

    def _waiting(
        self,
        engine: Engine,
        before: BufferedLowRankState,
        after: LowRankState,
        rows: Sequence[LayerFactors],
        root: Float[Array, "E E"],
        full: Array,
        waiting: Float[Array, ""],
        places: Array,
    ) -> BufferedLowRankState:
        """The state with a buffer of the rows at some B places, or emptied by a fold.

        The other places are free unless it is full: their rows and columns of F are those of the identity.
        """
        xp, rank, width = engine.xp, self.of.rank, before.rows[0].shape[1]
        columns, outputs = (engine.constant(np.arange(size), places) for size in (rank, width))
        own = xp.concat([columns, xp.reshape(rank + width * places[:, None] + outputs, (-1,))])
        shorter = xp.take(xp.take(root, own, axis=0), own, axis=1)
        new = BufferedLowRankState(
            *after,
            tuple(xp.where(full, 0.0, xp.take(factor.inputs, places, axis=0)) for factor in rows),
            tuple(xp.where(full, 0.0, xp.take(factor.rows, places, axis=0)) for factor in rows),
            engine.when(full, lambda _: self._root(engine, after, self.capacity * width), shorter),
            waiting,
        )
        buffer = engine.kept(new[3:], before[3:])
        return BufferedLowRankState(*after, *buffer)

    def _moved(
        self, engine: Engine, state: BufferedLowRankState, factors: Factors, residual: Array, narrowed: Array
    ) -> Layers:
        """The mean with Λ⁻¹ Jᵀ r: what G takes away is a move by more rows, in float64, for little may be left."""
        coefficients = engine.in_float64(_coefficients, state.root, narrowed, residual)
        rank, shape = self.of.rank, state.rows[0].shape[:2]
        factors, waiting, residual = engine.widen((tuple(factors), tuple(_factors(state)), residual))
        stacked = [
            _joined(engine, factor._replace(rows=_filled(engine, factor.rows, shape[1], axis=1)), others)
            for factor, others in zip(factors, waiting, strict=True)
        ]
        taken = engine.xp.reshape(coefficients[rank:], shape)
        both = engine.xp.concat([_filled(engine, residual, shape[1], axis=1), -taken], axis=0)
        move, means = Move(stacked, both, coefficients[:rank]), list[Array]()
        for factor, m, d, w in zip(move.factors, state.mean, state.diagonal, state.columns, strict=True):

            def moved(m: Array, d: Array, w: Array, a: Array, factor: Any = factor) -> tuple[Array]:
                return (self.of.mean_after(engine, factor._replace(inputs=a.mT), move, m, d, w),)

            means += engine.map_blocks(moved, (m,), (d, w, factor.inputs.mT), block_rows(w))
        return tuple(means)

    def shift(
        self, engine: Engine, state: BufferedLowRankState, factors: Factors, residual: Float[Array, "N K"]
    ) -> BufferedLowRankState:
        if not _fit(state, factors):
            settled = self._settled(engine, state)
            return state._replace(mean=self.of.shift(engine, settled, factors, residual).mean)
        narrowed = self._innovation(engine, state, factors, joint=True).narrowed
        return state._replace(mean=self._moved(engine, state, factors, residual, narrowed))

    def add_precision(
        self, engine: Engine, state: BufferedLowRankState, factors: Factors, fisher_factor: Array | None
    ) -> BufferedLowRankState:
        """All at once."""
        settled = self._settled(engine, state)
        return self._empty(engine, self.of.add_precision(engine, settled, factors, fisher_factor))

    def begin(self, engine: Engine, mean: Layers, precision: Layers) -> LowRankState:
        return self.of.begin(engine, mean, precision)

    def accumulate(
        self, engine: Engine, state: LowRankState, factors: Factors, fisher_factor: Array | None
    ) -> LowRankState:
        return self.of.accumulate(engine, state, factors, fisher_factor)

    def settle(self, engine: Engine, state: LowRankState) -> BufferedLowRankState:
        return self._empty(engine, self.of.settle(engine, state))

    # -- what is done with all rows folded in ---------------------------------------------------------------------
    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> BufferedLowRankState:
        return self._empty(engine, self.of.initial(engine, mean, precision))

    def scaled(self, engine: Engine, state: BufferedLowRankState, factor: float) -> BufferedLowRankState:
        return self._empty(engine, self.of.scaled(engine, self._settled(engine, state), factor))

    def unconstrained(self, engine: Engine, state: BufferedLowRankState) -> Any:
        return self.of.unconstrained(engine, self._settled(engine, state))

    def constrained(self, engine: Engine, free: Any) -> BufferedLowRankState:
        return self._empty(engine, self.of.constrained(engine, free))

    def transition(
        self,
        engine: Engine,
        state: BufferedLowRankState,
        prior: BufferedLowRankState,
        retention: Array,
        growth: Layers,
    ) -> BufferedLowRankState:
        moved = self.of.transition(engine, self._settled(engine, state), prior, retention, growth)
        return self._empty(engine, moved)

    def noise_shapes(self, state: BufferedLowRankState) -> tuple[tuple[int, ...], ...]:
        return self.of.noise_shapes(LowRankState(state.mean, state.diagonal, state.columns))

    def sample(self, engine: Engine, state: BufferedLowRankState, noise: Sequence[Array]) -> Layers:
        return self.of.sample(engine, self._settled(engine, state), noise)

    def marginal_variance(self, engine: Engine, state: BufferedLowRankState) -> Layers:
        return self.of.marginal_variance(engine, self._settled(engine, state))

    def log_determinant(self, engine: Engine, state: BufferedLowRankState) -> Array:
        return self.of.log_determinant(engine, self._settled(engine, state))

    def kl(self, engine: Engine, new: BufferedLowRankState, old: BufferedLowRankState) -> Array:
        return self.of.kl(engine, self._settled(engine, new), self._settled(engine, old))

    def natural(self, engine: Engine, state: BufferedLowRankState) -> tuple[Layers, Any]:
        return self.of.natural(engine, self._settled(engine, state))

    def merged(self, engine: Engine, now: BufferedLowRankState, grown: Grown, gradient: Layers) -> BufferedLowRankState:
        pairs = [(self._settled(engine, end), self._settled(engine, start)) for end, start in grown]
        return self._empty(engine, self.of.merged(engine, self._settled(engine, now), pairs, gradient))

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> BufferedLowRankState:
        state = super().from_arrays(engine, arrays)
        return state._replace(root=engine.asarray(arrays["root"], "float64"))


def _factors(state: BufferedLowRankState) -> list[LayerFactors]:
    """The rows that wait."""
    return [LayerFactors(*pair) for pair in zip(state.inputs, state.rows, strict=True)]


def _fit(state: BufferedLowRankState, factors: Factors) -> bool:
    """Whether rows are of the buffer's kind."""
    width = state.rows[0].shape[1]
    return all(isinstance(factor, LayerFactors) and factor.rows.shape[1] <= width for factor in factors)


def _filled(engine: Engine, array: Array, size: int, axis: int) -> Array:
    """An array with zeros behind it, up to a size."""
    nothing = engine.xp.zeros_like(array[(slice(None),) * axis + (slice(0, 1),)])
    return engine.xp.concat([array, *[nothing] * (size - array.shape[axis])], axis=axis)


def _as_wide_as(engine: Engine, factor: Float[Array, "N K R"], width: int) -> Float[Array, "N K W"]:
    """L with W ≥ K columns of the same L Lᵀ."""
    if factor.shape[2] > width:
        (factor,) = engine.cast(engine.in_float64(lambda own, wide: (own.xp.linalg.qr(wide.mT)[1].mT,), factor))
    return _filled(engine, factor, width, axis=2)


def _joined(engine: Engine, first: Factor, second: Factor) -> LayerFactors:
    return LayerFactors(*(engine.xp.concat(pair, axis=0) for pair in zip(first, second, strict=True)))


def _few_rows(diagonal: Float[Array, "I O"]) -> int:
    """Rows of a layer that are taken at a time, where what is computed of them is kept for all of them."""
    return max(1, block_rows(diagonal[None]) // 4)


def _contracted(
    engine: Engine,
    factor: LayerFactors,
    waiting: LayerFactors,
    diagonal: Float[Array, "I O"],
    columns: Float[Array, "R I O"],
    joint: bool,
) -> _Contracted:
    wide, other = engine.widen((factor, waiting))

    def spreads(diagonal: Array, inputs: Array, others: Array) -> tuple[Array, Array]:
        own, variance = wide._replace(inputs=inputs.mT), 1 / engine.widen(diagonal)
        return own.spread(engine, variance, joint), own.spread_with(other._replace(inputs=others.mT), variance)

    def moves(diagonal: Array, columns: Array, inputs: Array) -> Array:
        return moves_of_block(engine, wide._replace(inputs=inputs.mT), diagonal, columns)

    arrays = diagonal, wide.inputs.mT, other.inputs.mT
    spread, between = engine.sum_blocks(spreads, arrays, _few_rows(diagonal), narrow=False)
    layer, narrow = (diagonal, columns, wide.inputs.mT), factor.inputs.shape[0] == 1
    return _Contracted(spread, engine.sum_blocks(moves, layer, block_rows(columns), narrow=narrow), between)


def _covariance(engine: Engine, gram: Array, narrowed: Float[Array, "D M"]) -> Array:
    """``gram - Yᵀ Y``, between all inputs or of each alone, as the gram is."""
    if gram.ndim == 2:
        return gram - narrowed.mT @ narrowed
    columns = engine.xp.permute_dims(engine.xp.reshape(narrowed, (-1, *gram.shape[:2])), (1, 0, 2))  # N, D, K
    return gram - columns.mT @ columns


def _coefficients(engine: Engine, root: Array, narrowed: Array, residual: Float[Array, "N K"]) -> Float[Array, " D"]:
    """(I + [W G]ᵀΥ⁻¹[W G])⁻¹ [W G]ᵀΥ⁻¹Jᵀ r."""
    right = narrowed @ engine.xp.reshape(residual, (-1, 1))
    return engine.solve_triangular(root, right, transpose=True)[:, 0]


def _with_the_new(engine: Engine, root: Array, gram: Array, border: Float[Array, "D M"]) -> Float[Array, "E E"]:
    """F with new directions, of which GΥ⁻¹Gᵀ and Y are given."""
    inner = engine.eye(gram.shape[0], gram) + 0.5 * (gram + gram.mT) - border.mT @ border
    return _bordered(engine, root, border, engine.cholesky(inner)[0])


def _bordered(engine: Engine, root: Array, border: Array, corner: Array) -> Array:
    """The lower triangular matrix of a root, a border (as columns) and a corner."""
    xp = engine.xp
    above = xp.concat([root, xp.zeros_like(border)], axis=1)
    return xp.concat([above, xp.concat([border.mT, corner], axis=1)], axis=0)
