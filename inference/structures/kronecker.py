"""Correlations between a layer's inputs and between its outputs: a precision in Kronecker factors.

Martens and Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate curvature"; Ritter, Botev and
Barber (2018), "A scalable Laplace approximation for neural networks"; with the normalisation of Gao et al. (2021), "A
trace-restricted Kronecker-factored approximation to natural gradient".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float

from ..engines.base import Array, Engine
from ..factors import Factor
from .base import Factors, Grown, Layers, Structure, positive_part, sum_float64

__all__ = ["Kronecker", "KroneckerState"]

_LAG = 0.125
"""Share of the rows that may wait in the sums before a stream's bases and eigenvalues are computed anew."""


class KroneckerState(NamedTuple):
    """Each layer's weights are ``W = m + B Z Cᵀ`` with independent Z; B Bᵀ and C Cᵀ are diagonal.

    Attributes:
        mean: m, (I, O) for each layer.
        precision: of Z, (I, O) for each layer; 1 where nothing was learned.
        input_basis: B, (I, I) for each layer.
        output_basis: C, (O, O) for each layer.
        input_sum: Σ tr(Gₙ) aₙ aₙᵀ over all rows, (I, I) for each layer.
        output_sum: Σ ‖aₙ‖² Gₙ with Gₙ = Dₙᵀ L Lᵀ Dₙ, (O, O) for each layer.
        folded: number of rows, padding too, that the bases and the precision know of; forgotten rows fade from it.
        pending: number of rows that only the sums know of.
    """

    mean: Layers
    precision: Layers
    input_basis: Layers
    output_basis: Layers
    input_sum: Layers
    output_sum: Layers
    folded: Float[Array, ""]
    pending: Float[Array, ""]


class _Layer(NamedTuple):
    """One layer of the state."""

    mean: Array
    precision: Array
    input_basis: Array
    output_basis: Array
    input_sum: Array
    output_sum: Array


@dataclass(frozen=True)
class Kronecker(Structure):
    """A precision ``diag(u) ⊗ diag(v) + A ⊗ G`` for each layer, held in its eigenbasis.

    The sum of the rows' curvature, Σ aₙaₙᵀ ⊗ Gₙ, is replaced by ``A ⊗ G`` with A = Σ tr(Gₙ) aₙaₙᵀ and
    G = Σ ‖aₙ‖² Gₙ / tr(A), which has its partial traces: exact for one row, and rows count by what they tell. Weights
    that no row has touched keep their prior.

    A batch adds to the sums, and the eigenbasis is computed once. In a stream it is computed anew as soon as an eighth
    of all rows wait in the sums, so that every event of the first eight is folded in at once, and a precision lags
    behind its rows by an eighth at most; the mean always moves. Where that happens depends on nothing but the number of
    rows and the dynamics.

    Independent precisions that are no outer product (those of a variational fit) are replaced by the outer product
    ``u vᵀ`` of their geometric means along rows and columns, which keeps the determinant; those of a
    :class:`~..priors.NormalPrior` are outer products.
    """

    state_type = KroneckerState
    chunk_columns = 4096
    per_layer = frozenset(_Layer._fields)

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> KroneckerState:
        xp = engine.xp
        outer = [_outer_product(engine, matrix) for matrix in precision]
        inputs = tuple(_diagonal(engine, 1 / xp.sqrt(u)) for u, _ in outer)
        outputs = tuple(_diagonal(engine, 1 / xp.sqrt(v)) for _, v in outer)
        zero = engine.constant(0.0, mean[0])
        return KroneckerState(
            tuple(mean),
            tuple(xp.ones_like(matrix) for matrix in precision),
            inputs,
            outputs,
            tuple(0 * basis for basis in inputs),
            tuple(0 * basis for basis in outputs),
            zero,
            0 * zero,
        )

    def scaled(self, engine: Engine, state: KroneckerState, factor: float) -> KroneckerState:
        """The prior's share by the bases; what the rows have told so far by their sums."""
        return state._replace(
            input_basis=tuple(basis / factor**0.5 for basis in state.input_basis),
            input_sum=tuple(factor * total for total in state.input_sum),
            output_sum=tuple(factor * total for total in state.output_sum),
        )

    def output_covariance(
        self, engine: Engine, state: KroneckerState, factors: Factors, *, joint: bool = False
    ) -> Array:
        grams = [
            _rotate(factor, layer).gram(engine, 1 / layer.precision, joint)
            for factor, layer in zip(factors, _layers(state), strict=True)
        ]
        return sum(grams[1:], start=grams[0])

    def shift(
        self, engine: Engine, state: KroneckerState, factors: Factors, residual: Float[Array, "N K"]
    ) -> KroneckerState:
        mean = []
        for factor, layer in zip(factors, _layers(state), strict=True):
            column, row = _rotate(factor, layer).pull_back(residual)
            mean.append(layer.mean + _from_basis(layer, (column.mT @ row) / layer.precision))
        return state._replace(mean=tuple(mean))

    def is_light(self, state: KroneckerState) -> bool:
        return True

    def joint_covariances(self, engine: Engine, state: KroneckerState, factors: Factors) -> tuple[Array, Any]:
        pairs = [
            (rotated, *rotated.joint_covariances(engine, layer.precision))
            for rotated, layer in ((_rotate(f, layer), layer) for f, layer in zip(factors, _layers(state), strict=True))
        ]
        return sum((gram for _, gram, _ in pairs[1:]), start=pairs[0][1]), [(f, scale) for f, _, scale in pairs]

    def learn(
        self,
        engine: Engine,
        state: KroneckerState,
        factors: Factors,
        cross: Any,
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> KroneckerState:
        mean = []
        for (rotated, scale), layer in zip(cross, _layers(state), strict=True):
            column, row = rotated.pull_back(residual)
            move = (column.mT @ row) / layer.precision if scale is None else scale * row
            mean.append(layer.mean + _from_basis(layer, move))
        return self.add_precision(engine, state._replace(mean=tuple(mean)), factors, fisher_factor)

    def add_precision(
        self, engine: Engine, state: KroneckerState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> KroneckerState:
        return _fold_when_due(engine, self.accumulate(engine, state, factors, fisher_factor))

    def accumulate(
        self, engine: Engine, state: KroneckerState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> KroneckerState:
        xp = engine.xp
        input_sums, output_sums = [], []
        for factor, layer in zip(factors, _layers(state), strict=True):
            inputs, rows = factor.left_multiply(fisher_factor).expanded()
            length = xp.linalg.vector_norm(inputs, axis=1)
            root_trace = xp.linalg.vector_norm(rows, axis=(1, 2))
            scaled = xp.reshape(rows * length[:, None, None], (-1, rows.shape[2]))
            input_sums.append(_add_gram(engine, layer.input_sum, inputs * root_trace[:, None]))
            output_sums.append(_add_gram(engine, layer.output_sum, scaled))
        pending = state.pending + factors[0].inputs.shape[0]
        return state._replace(input_sum=tuple(input_sums), output_sum=tuple(output_sums), pending=pending)

    def settle(self, engine: Engine, state: KroneckerState) -> KroneckerState:
        return _fold(engine, state)

    def transition(
        self, engine: Engine, state: KroneckerState, prior: Any, retention: Array, growth: Layers
    ) -> KroneckerState:
        """The growth is taken as a multiple of the prior's variances 1/(u vᵀ), as that of every dynamics here is.

        The sums keep the share of the learned precision's trace that the precision keeps. So do the rows that
        are counted, by the layer that forgets most: what is forgotten soon must soon be folded in.
        """
        xp = engine.xp
        layers, shares = [], []
        for layer, grown in zip(_layers(state), growth, strict=True):
            u, v = _scales(engine, layer)
            relative = xp.mean(grown * u[:, None] * v)
            precision = 1 / (retention * retention / layer.precision + relative)
            before, after = xp.sum(layer.precision - 1), xp.sum(precision - 1)
            positive = before > 0
            kept = xp.where(positive, after / xp.where(positive, before, 1), 1)
            kept = xp.clip(kept, 0, 1)
            shares.append(kept)
            sums = kept * layer.input_sum, kept * layer.output_sum
            layers.append(layer._replace(precision=precision, input_sum=sums[0], output_sum=sums[1]))
        mean, least = self.move_mean(engine, state, prior, retention), xp.min(xp.stack(shares))
        counts = {"folded": least * state.folded, "pending": least * state.pending}
        return _with_layers(state, layers)._replace(mean=mean, **counts)

    def noise_shapes(self, state: KroneckerState) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(mean.shape) for mean in state.mean)

    def sample(self, engine: Engine, state: KroneckerState, noise: Sequence[Array]) -> Layers:
        """The noise is of the weights, not of Z: so that the draws do not depend on the eigenvectors' signs."""
        xp = engine.xp
        drawn = []
        for layer, draw in zip(_layers(state), noise, strict=True):
            u, v = _scales(engine, layer)
            rotated = layer.input_basis.mT @ (xp.sqrt(u)[:, None] * draw * xp.sqrt(v)) @ layer.output_basis
            drawn.append(layer.mean + _from_basis(layer, rotated / xp.sqrt(layer.precision)))
        return tuple(drawn)

    def marginal_variance(self, engine: Engine, state: KroneckerState) -> Layers:
        return tuple(
            (layer.input_basis**2) @ (1 / layer.precision) @ (layer.output_basis**2).mT for layer in _layers(state)
        )

    def log_determinant(self, engine: Engine, state: KroneckerState) -> Array:
        xp = engine.xp
        total = engine.constant(0.0, state.folded)
        for layer in engine.widen(tuple(_layers(state))):
            u, v = _scales(engine, layer)
            total = total + v.shape[0] * xp.sum(xp.log(u)) + u.shape[0] * xp.sum(xp.log(v))
            total = total + xp.sum(xp.log(layer.precision))
        return total

    def kl(self, engine: Engine, new: KroneckerState, old: KroneckerState) -> Array:
        total = self.log_determinant(engine, new) - self.log_determinant(engine, old)
        new, old = engine.widen((new, old))
        for now, before in zip(_layers(new), _layers(old), strict=True):
            between_inputs = _inverse_input(engine, before) @ now.input_basis
            between_outputs = _inverse_output(engine, before) @ now.output_basis
            variances = between_inputs**2 @ (1 / now.precision) @ (between_outputs**2).mT
            step = _to_basis(engine, before, now.mean - before.mean)
            total = total + sum_float64(engine, before.precision * (variances + step * step) - 1)
        return 0.5 * total

    def natural(self, engine: Engine, state: KroneckerState) -> tuple[Layers, Any]:
        """The precision's own form is, for each layer, B⁻¹, C⁻¹ and the precision of Z."""
        shifted, own = [], []
        for layer in _layers(state):
            inputs, outputs = _inverse_input(engine, layer), _inverse_output(engine, layer)
            shifted.append(inputs.mT @ (layer.precision * (inputs @ layer.mean @ outputs.mT)) @ outputs)
            own.append((inputs, outputs, layer.precision))
        return tuple(shifted), tuple(own)

    def merged(self, engine: Engine, now: KroneckerState, grown: Grown, gradient: Layers) -> KroneckerState:
        """What adds up are the sums over the rows: the precision is the one that a single stream of them has."""
        xp = engine.xp
        sums = {name: list(getattr(now, name)) for name in ("input_sum", "output_sum")}
        pending = now.pending
        for end, start in grown:
            pending = pending + xp.clip(end.folded + end.pending - start.folded - start.pending, 0, None)
            for name, totals in sums.items():
                pairs = zip(totals, getattr(end, name), getattr(start, name), strict=True)
                sums[name] = [total + positive_part(engine, e - s) for total, e, s in pairs]
        new = {name: tuple(totals) for name, totals in sums.items()}
        folded = _fold(engine, now._replace(**new, pending=pending))
        mean = []
        for layer, pulled in zip(_layers(folded), gradient, strict=True):
            rotated = layer.input_basis.mT @ pulled @ layer.output_basis
            mean.append(layer.mean + _from_basis(layer, rotated / layer.precision))
        return folded._replace(mean=tuple(mean))


def _add_gram(engine: Engine, total: Float[Array, "D D"], rows: Float[Array, "M D"]) -> Array:
    """``total + rowsᵀ rows``."""
    if rows.shape[0] == 1:
        return engine.add_outer(total, rows, rows)
    return total + engine.gram(rows)


def _layers(state: KroneckerState) -> list[_Layer]:
    return [_Layer(*fields) for fields in zip(*state[: len(_Layer._fields)], strict=True)]


def _with_layers(state: KroneckerState, layers: Sequence[_Layer]) -> KroneckerState:
    fields = dict(zip(_Layer._fields, zip(*layers, strict=True), strict=True))
    return state._replace(**fields)


def _diagonal(engine: Engine, values: Array) -> Array:
    return values[:, None] * engine.eye(values.shape[0], values)


def _outer_product(engine: Engine, matrix: Float[Array, "I O"]) -> tuple[Array, Array]:
    """The outer product ``u vᵀ`` nearest to a positive matrix in the squares of the logarithms."""
    xp = engine.xp
    logarithms = xp.log(matrix)
    mean = 0.5 * xp.mean(logarithms)
    return xp.exp(xp.mean(logarithms, axis=1) - mean), xp.exp(xp.mean(logarithms, axis=0) - mean)


def _scales(engine: Engine, layer: _Layer) -> tuple[Array, Array]:
    """Prior precisions u and v: the bases are U^(-½) and V^(-½) times orthogonal matrices."""
    xp = engine.xp
    return 1 / xp.sum(layer.input_basis**2, axis=1), 1 / xp.sum(layer.output_basis**2, axis=1)


def _inverse_input(engine: Engine, layer: _Layer) -> Array:
    return layer.input_basis.mT * _scales(engine, layer)[0]


def _inverse_output(engine: Engine, layer: _Layer) -> Array:
    return layer.output_basis.mT * _scales(engine, layer)[1]


def _rotate(factor: Factor, layer: _Layer) -> Factor:
    """The factors of the Jacobian with respect to Z."""
    return factor._replace(inputs=factor.inputs @ layer.input_basis, rows=factor.rows @ layer.output_basis)


def _from_basis(layer: _Layer, z: Array) -> Array:
    return layer.input_basis @ z @ layer.output_basis.mT


def _to_basis(engine: Engine, layer: _Layer, weights: Array) -> Array:
    return _inverse_input(engine, layer) @ weights @ _inverse_output(engine, layer).mT


def _fold_when_due(engine: Engine, state: KroneckerState) -> KroneckerState:
    """:func:`_fold` if enough rows wait."""

    def changed(state: KroneckerState) -> dict[str, Any]:
        """What the work changes: compiled code copies what a branch may change."""
        return {
            name: getattr(state, name) for name in ("precision", "input_basis", "output_basis", "folded", "pending")
        }

    def folded(now: dict[str, Any]) -> dict[str, Any]:
        return changed(_fold(engine, state._replace(**now)))

    due = (state.pending > 0) & (state.pending >= _LAG * state.folded)
    return state._replace(**engine.when(due, folded, changed(state)))


def _fold(engine: Engine, state: KroneckerState) -> KroneckerState:
    """Bases and eigenvalues from the sums."""
    layers = []
    for layer in _layers(state):
        u, v = _scales(engine, layer)
        eigen = engine.in_float64(_eigenbasis, layer.input_sum, layer.output_sum, u, v)
        inputs, outputs, precision = engine.cast(eigen)
        layers.append(layer._replace(precision=precision, input_basis=inputs, output_basis=outputs))
    folded = state.folded + state.pending
    return _with_layers(state, layers)._replace(folded=folded, pending=0 * state.pending)


def _eigenbasis(engine: Engine, a: Array, g: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Bases in which diag(u) ⊗ diag(v) is the identity and A ⊗ G / tr(A) diagonal, and the precision there."""
    xp = engine.xp
    input_scale, output_scale = 1 / xp.sqrt(u), 1 / xp.sqrt(v)
    alpha, inputs = xp.linalg.eigh(a * input_scale[:, None] * input_scale)
    beta, outputs = xp.linalg.eigh(g * output_scale[:, None] * output_scale)
    trace = xp.sum(xp.sum(a * engine.eye(a.shape[0], a), axis=1))
    positive = trace > 0
    beta = xp.where(positive, beta / xp.where(positive, trace, 1), 0)
    precision = 1 + xp.clip(alpha, 0, None)[:, None] * xp.clip(beta, 0, None)
    return input_scale[:, None] * inputs, output_scale[:, None] * outputs, precision
