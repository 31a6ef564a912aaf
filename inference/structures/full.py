"""All correlations: a full covariance, held as a square root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float

from ..engines.base import Array, Engine
from .base import Factors, Grown, Layers, Structure, flatten_layers, positive_part, split_layers, sum_float64
from .output_layer import OutputLayer
from .output_layer import output_layer as make_output_layer

__all__ = ["Full", "FullState", "root_kl", "root_log_determinant", "root_merged", "root_transition", "root_update"]

_LIGHT = 512
"""Weights up to which a step's products take no longer than what surrounds them."""


class FullState(NamedTuple):
    """Attributes:
    mean: (I, O) for each layer.
    covariance_root: S with S Sᵀ = Λ⁻¹, over all layers flattened one after the other, (P, P); not triangular.
    """

    mean: Layers
    covariance_root: Float[Array, "P P"]


class FreeFullState(NamedTuple):
    """The covariance root diag(exp ℓ) R, more numbers than needed.

    Attributes:
        mean: (I, O) for each layer.
        log_scale: ℓ, where training starts the logarithm of each weight's standard deviation, (P,).
        relative_root: R, (P, P).
    """

    mean: Layers
    log_scale: Float[Array, " P"]
    relative_root: Float[Array, "P P"]


@dataclass(frozen=True)
class Full(Structure):
    """All correlations between the weights: the reference, for up to about 5,000 weights.

    The covariance is held as a square root, so that it stays positive semi-definite whatever the rounding. An event of
    K outputs costs O(P² K).
    """

    state_type = FullState

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> FullState:
        deviations = 1 / engine.xp.sqrt(flatten_layers(engine, precision))
        return FullState(tuple(mean), _diag(engine, deviations))

    def scaled(self, engine: Engine, state: FullState, factor: float) -> FullState:
        return FullState(state.mean, state.covariance_root / factor**0.5)

    def unconstrained(self, engine: Engine, state: FullState) -> FreeFullState:
        """Logarithms of the standard deviations, and the root relative to them."""
        deviations = engine.xp.linalg.vector_norm(state.covariance_root, axis=1)
        return FreeFullState(state.mean, engine.xp.log(deviations), state.covariance_root / deviations[:, None])

    def constrained(self, engine: Engine, free: FreeFullState) -> FullState:
        return FullState(free.mean, engine.xp.exp(free.log_scale)[:, None] * free.relative_root)

    def output_covariance(self, engine: Engine, state: FullState, factors: Factors, *, joint: bool = False) -> Array:
        if joint:
            return self.joint_covariances(engine, state, factors)[0]
        rooted = _rooted(engine, state, factors)
        return rooted @ rooted.mT

    def rows_worth_preparing(self, state: FullState, output_layer: int | None) -> int | None:
        """The decomposition of P weights takes about what 4 P answers save."""
        return None if output_layer is None or len(state.mean) > 1 else 4 * int(state.covariance_root.shape[0])

    def prepare(self, engine: Engine, state: FullState, output_layer: int | None) -> FullState | OutputLayer:
        if output_layer is None or len(state.mean) > 1:
            return state
        rows, columns = state.mean[0].shape
        return make_output_layer(engine, state.covariance_root, (rows, columns))

    def predictive_covariance(self, engine: Engine, prepared: FullState | OutputLayer, factors: Factors) -> Array:
        if isinstance(prepared, OutputLayer):
            return prepared.covariance(engine, factors[0].inputs)
        return self.output_covariance(engine, prepared, factors)

    def predictive_variance(self, engine: Engine, prepared: FullState | OutputLayer, factors: Factors) -> Array:
        if isinstance(prepared, OutputLayer):
            return prepared.variance(engine, factors[0].inputs)
        rooted = _rooted(engine, prepared, factors)
        return engine.xp.sum(rooted * rooted, axis=2)

    def shift(self, engine: Engine, state: FullState, factors: Factors, residual: Float[Array, "N K"]) -> FullState:
        pulled = (factor.pull_back(residual) for factor in factors)
        gradient = flatten_layers(engine, tuple(column.mT @ row for column, row in pulled))
        step = state.covariance_root @ (gradient @ state.covariance_root)
        moves = split_layers(engine, step, state.mean)
        return FullState(tuple(m + d for m, d in zip(state.mean, moves, strict=True)), state.covariance_root)

    def is_light(self, state: FullState) -> bool:
        return int(state.covariance_root.shape[0]) <= _LIGHT

    def joint_covariances(self, engine: Engine, state: FullState, factors: Factors) -> tuple[Array, Array]:
        rooted = _rooted(engine, state, factors)
        flat = engine.xp.reshape(rooted, (-1, rooted.shape[2]))
        return flat @ flat.mT, rooted

    def learn(
        self,
        engine: Engine,
        state: FullState,
        factors: Factors,
        cross: Float[Array, "N K P"],
        residual: Float[Array, "N K"],
        fisher_factor: Float[Array, "N K R"],
    ) -> FullState:
        """From J S, one product with the root moves the mean, S (J S)ᵀ r, and updates the root."""
        xp, root = engine.xp, state.covariance_root
        size = root.shape[0]
        move = xp.reshape(residual, (1, -1)) @ xp.reshape(cross, (-1, size))
        whitened = xp.reshape(fisher_factor.mT @ cross, (-1, size))
        products = root @ xp.concat([whitened, move], axis=0).mT
        moves = split_layers(engine, products[:, -1], state.mean)
        mean = tuple(m + d for m, d in zip(state.mean, moves, strict=True))
        return FullState(mean, _root_less(engine, root, products[:, :-1], whitened))

    def add_precision(
        self, engine: Engine, state: FullState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> FullState:
        rooted = _rooted(engine, state, [factor.left_multiply(fisher_factor) for factor in factors])
        return FullState(state.mean, root_update(engine, state.covariance_root, rooted))

    def begin(self, engine: Engine, mean: Layers, precision: Layers) -> FullState:
        """In place of the root the precision, in float64: a sum over many rows outgrows float32."""
        return FullState(tuple(mean), _diag(engine, engine.widen(flatten_layers(engine, precision))))

    def accumulate(
        self, engine: Engine, state: FullState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> FullState:
        """A symmetric product of the rows: a third of the work of a square-root update."""
        xp = engine.xp
        rows = xp.concat([factor.left_multiply(fisher_factor).dense(engine) for factor in factors], axis=2)
        rows = engine.widen(xp.reshape(rows, (-1, rows.shape[2])))
        return FullState(state.mean, engine.add_outer(state.covariance_root, rows, rows))

    def settle(self, engine: Engine, state: FullState) -> FullState:
        """The root of the precision's inverse, L⁻ᵀ with L its Cholesky factor."""
        return FullState(state.mean, engine.cast(engine.in_float64(_inverse_transposed_root, state.covariance_root)))

    def transition(self, engine: Engine, state: FullState, prior: Any, retention: Array, growth: Layers) -> FullState:
        root = root_transition(engine, state.covariance_root, retention, flatten_layers(engine, growth))
        return FullState(self.move_mean(engine, state, prior, retention), root)

    def noise_shapes(self, state: FullState) -> tuple[tuple[int, ...], ...]:
        return ((state.covariance_root.shape[1],),)

    def sample(self, engine: Engine, state: FullState, noise: Sequence[Array]) -> Layers:
        moves = split_layers(engine, noise[0] @ state.covariance_root.mT, state.mean)
        return tuple(mean + move for mean, move in zip(state.mean, moves, strict=True))

    def marginal_variance(self, engine: Engine, state: FullState) -> Layers:
        root = state.covariance_root
        return split_layers(engine, engine.xp.sum(root * root, axis=1), state.mean)

    def log_determinant(self, engine: Engine, state: FullState) -> Array:
        return root_log_determinant(engine, state.covariance_root)

    def kl(self, engine: Engine, new: FullState, old: FullState) -> Array:
        step = flatten_layers(engine, new.mean) - flatten_layers(engine, old.mean)
        return root_kl(engine, new.covariance_root, old.covariance_root, step)

    def natural(self, engine: Engine, state: FullState) -> tuple[Layers, Any]:
        precision = engine.xp.linalg.inv(state.covariance_root @ state.covariance_root.mT)
        return split_layers(engine, precision @ flatten_layers(engine, state.mean), state.mean), precision

    def merged(self, engine: Engine, now: FullState, grown: Grown, gradient: Layers) -> FullState:
        roots = [(end.covariance_root, start.covariance_root) for end, start in grown]
        root, step = root_merged(engine, now.covariance_root, roots, flatten_layers(engine, gradient))
        moves = split_layers(engine, step, now.mean)
        return FullState(tuple(m + d for m, d in zip(now.mean, moves, strict=True)), root)


def _rooted(engine: Engine, state: FullState, factors: Factors) -> Float[Array, "N K P"]:
    """``J S``."""
    parts, start = [], 0
    for factor, mean in zip(factors, state.mean, strict=True):
        stop = start + mean.shape[0] * mean.shape[1]
        parts.append(factor.multiply(engine, state.covariance_root[start:stop, :]))
        start = stop
    return sum(parts[1:], start=parts[0])


def root_update(engine: Engine, root: Float[Array, "P P"], rooted: Float[Array, "N R P"]) -> Float[Array, "P P"]:
    """Square-root update of Andrews (1968): S ← S (I - A X Aᵀ) with A = Sᵀ Jᵀ L, given Aᵀ.

    With I + AᵀA = F Fᵀ and X = F⁻ᵀ (F + I)⁻¹, the new S Sᵀ is exactly (S⁻ᵀS⁻¹ + JᵀLLᵀJ)⁻¹.
    """
    whitened = engine.xp.reshape(rooted, (-1, rooted.shape[2]))
    return _root_less(engine, root, root @ whitened.mT, whitened)


def _root_less(
    engine: Engine, root: Float[Array, "P P"], products: Float[Array, "P M"], whitened: Float[Array, "M P"]
) -> Float[Array, "P P"]:
    """:func:`root_update`, given S A."""
    gain = engine.cast(engine.in_float64(_andrews_gain, whitened @ whitened.mT))
    return engine.subtract_product(root, products, gain @ whitened)


def root_transition(engine: Engine, root: Float[Array, "P P"], retention: Array, growth: Float[Array, " P"]) -> Array:
    """A root of γ² S Sᵀ + diag(growth)."""
    return engine.cholesky(retention * retention * (root @ root.mT) + _diag(engine, growth))[0]


def root_merged(
    engine: Engine, root: Float[Array, "P P"], grown: Grown, gradient: Float[Array, " P"]
) -> tuple[Float[Array, "P P"], Float[Array, " P"]]:
    """A root of (Λ + Σ (Λ_end - Λ_start))⁻¹ from covariance roots, and its product with a gradient."""
    precision = _precision(engine, root)
    for end, start in grown:
        precision = precision + positive_part(engine, _precision(engine, end) - _precision(engine, start))
    new = _inverse_transposed_root(engine, precision)
    return new, new @ (gradient @ new)


def _precision(engine: Engine, root: Array) -> Array:
    """S⁻ᵀ S⁻¹: the inverse of a root is better conditioned than that of its square."""
    inverse = engine.xp.linalg.inv(root)
    return inverse.mT @ inverse


def root_log_determinant(engine: Engine, root: Float[Array, "P P"]) -> Array:
    """Log determinant of the precision (S Sᵀ)⁻¹."""
    return -2 * engine.in_float64(_log_abs_determinant, root)


def root_kl(engine: Engine, new: Float[Array, "P P"], old: Float[Array, "P P"], step: Float[Array, " P"]) -> Array:
    """KL divergence of two normals from their covariances' roots and the step from the old mean to the new."""
    trace, squares = engine.in_float64(_relative_to, old, new, step)
    log_ratio = root_log_determinant(engine, new) - root_log_determinant(engine, old)
    return 0.5 * (trace - step.shape[0] + log_ratio + squares)


def _diag(engine: Engine, values: Array) -> Array:
    """The diagonal matrix of a vector."""
    return values[:, None] * engine.eye(values.shape[0], values)


def _andrews_gain(engine: Engine, gram: Array) -> Array:
    """X of :func:`root_update`."""
    identity = engine.eye(gram.shape[0], gram)
    factor, _ = engine.cholesky(identity + gram)
    inverse = engine.solve_triangular(factor + identity, identity)
    return engine.solve_triangular(factor, inverse, transpose=True)


def _inverse_transposed_root(engine: Engine, precision: Array) -> Array:
    factor, _ = engine.cholesky(precision)
    return engine.solve_triangular(factor, engine.eye(precision.shape[0], precision)).mT


def _log_abs_determinant(engine: Engine, matrix: Array) -> Array:
    return engine.xp.linalg.slogdet(matrix)[1]


def _relative_to(engine: Engine, old: Array, new: Array, step: Array) -> tuple[Array, Array]:
    """tr(Λ_old Λ_new⁻¹) and stepᵀ Λ_old step, for covariance roots."""
    trace_root = engine.solve(old, new)
    whitened = engine.solve(old, step[:, None])
    return sum_float64(engine, trace_root * trace_root), sum_float64(engine, whitened * whitened)
