"""Layer factors: the Jacobian of a dense layer without the Jacobian.

For a dense layer ``z = a W`` the gradient of output k with respect to W is the outer product ``a ⊗ D[k]`` of the
layer's input ``a`` and the back-propagated row ``D[k] = ∂output_k/∂z``. Every contraction that a posterior structure
needs can be taken on the two factors, at the price of a few products with matrices of the layer's own size.

A layer's bias is the last row of its weight matrix, and the last entry of its input is 1.

A layer that one input passes at several positions (tokens, nodes, time steps) sums outer products over the positions:
:class:`SharedFactors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine

__all__ = ["Factor", "LayerFactors", "SharedFactors", "among_directions", "joined_rows"]


_STRIP = 8
"""Inputs whose covariances with the others are taken at a time: of two large symmetric halves one is left out."""
_AT_ONCE = 2**22
"""Numbers of what is multiplied at a time, of inputs with others: more units than that have turns."""


class LayerFactors(NamedTuple):
    """The factors of one dense layer for N inputs and K output directions.

    Attributes:
        inputs: the layer's inputs with a trailing 1, shape (N, I).
        rows: derivatives of the K output directions with respect to the layer's pre-activations, shape (N, K, O).
    """

    inputs: Float[Array, "N I"]
    rows: Float[Array, "N K O"]

    def left_multiply(self, factor: Float[Array, "N K R"] | None) -> LayerFactors:
        """Factors of ``factorᵀ J``: R new output directions for each input; None for the identity."""
        if factor is None:
            return self
        if factor.shape[0] == 1:  # as matrices: batches of one cost eager frameworks more
            return LayerFactors(self.inputs, (factor[0].mT @ self.rows[0])[None])
        return LayerFactors(self.inputs, factor.mT @ self.rows)

    def pull_back(self, residual: Float[Array, "N K"]) -> tuple[Float[Array, "N I"], Float[Array, "N O"]]:
        """Columns and rows whose summed outer products are ``Jᵀ residual``, in the shape of W."""
        if residual.shape[0] == 1:
            return self.inputs, residual @ self.rows[0]
        return self.inputs, (residual[:, None, :] @ self.rows)[:, 0, :]

    def squares(self, engine: Engine) -> tuple[Float[Array, "N I"], Float[Array, "N O"]]:
        """Columns and rows whose summed outer products are the diagonal of ``JᵀJ``, in the shape of W."""
        return self.inputs * self.inputs, engine.xp.sum(self.rows * self.rows, axis=1)

    def gram(self, engine: Engine, variance: Float[Array, "I O"], joint: bool) -> Array:
        """``J diag(variance) Jᵀ``.

        Args:
            engine: the arrays' engine.
            variance: one non-negative number per weight.
            joint: between all inputs, shape (N K, N K); else for each input alone, shape (N, K, K).
        """
        return self.gram_of(engine, self.spread(engine, variance, joint), joint)

    def spread(self, engine: Engine, variance: Float[Array, "I O"], joint: bool) -> Array:
        """``Σ_i a_ni a_mi variance_io`` of every pair n ≤ m, (N (N + 1) / 2, O), or of each with itself, (N, O).

        It is all that :meth:`gram` needs of the variances, and adds up over blocks of inputs.
        """
        if joint and self.rows.shape[0] > 1:
            first, second = np.triu_indices(self.inputs.shape[0])
            return (self.inputs[first] * self.inputs[second]) @ variance
        return (self.inputs * self.inputs) @ variance

    def gram_of(self, engine: Engine, spread: Array, joint: bool) -> Array:
        """:meth:`gram`, given the :meth:`spread`."""
        num_rows = self.rows.shape[0]
        if not joint or num_rows == 1:
            grams = (self.rows * spread[:, None, :]) @ self.rows.mT
            return grams[0] if joint else grams
        first, second = np.triu_indices(num_rows)
        pair = np.empty((num_rows, num_rows), np.int64)
        pair[first, second] = pair[second, first] = np.arange(len(first))
        strips: list[Array] = []
        for start in range(0, num_rows, _STRIP):
            strips.append(self._strip(engine, spread, pair, start, strips))
        return engine.xp.concat(strips, axis=1)

    def _strip(self, engine: Engine, spread: Array, pair: np.ndarray, start: int, before: Sequence[Array]) -> Array:
        """Columns of the joint gram, of a few inputs with themselves and those after them; above is what was before."""
        xp, (_, num_outputs, width) = engine.xp, self.rows.shape
        own, after = self.rows[start : start + _STRIP], self.rows[start:]
        between = spread[pair[start : start + _STRIP, start:]]
        weighted = xp.reshape(between[:, :, None, :] * after, (len(own), -1, width))  # n, m k, o
        below = xp.reshape(xp.permute_dims(weighted @ own.mT, (1, 0, 2)), (-1, len(own) * num_outputs))
        first = start * num_outputs
        above = [strip[first : first + below.shape[1]].mT for strip in before]
        return xp.concat([*above, below], axis=0)

    def spread_with(self, other: LayerFactors, variance: Float[Array, "I O"]) -> Float[Array, "N B O"]:
        """As :meth:`spread`, of every pair of one of these inputs and one of B others."""
        num_rows, num_inputs = self.inputs.shape
        pairs = (self.inputs[:, None, :] * other.inputs).reshape((-1, num_inputs))
        return (pairs @ variance).reshape((num_rows, -1, variance.shape[1]))

    def gram_with(self, other: LayerFactors, spread: Float[Array, "N B O"]) -> Float[Array, "N K B L"]:
        """``J diag(variance) J_otherᵀ``, for L directions of each of the others, given the :meth:`spread_with`."""
        width = self.rows.shape[2]
        units = max(1, _AT_ONCE // (spread.shape[0] * spread.shape[1] * self.rows.shape[1]))
        total: Array = 0.0
        for start in range(0, width, units):
            own = slice(start, start + units)
            weighted = self.rows[:, None, :, own] * spread[:, :, None, own]  # N, B, K, units
            total = total + weighted @ other.rows[:, :, own].mT
        return total.swapaxes(1, 2)

    def joint_covariances(
        self, engine: Engine, precision: Float[Array, "I O"]
    ) -> tuple[Array, Float[Array, "I O"] | None]:
        """:meth:`gram` of the inverse of a precision between all inputs, and for a single input ``aᵀ / precision``
        where the engine forms it.
        """
        if self.rows.shape[0] > 1:
            return self.gram(engine, engine.xp.reciprocal(precision), joint=True), None
        spread, cross = engine.spread_over(self.inputs, precision)
        rows = self.rows[0]
        return (rows * spread) @ rows.mT, cross

    def gram_diagonal(self, engine: Engine, variance: Float[Array, "I O"]) -> Float[Array, "N K"]:
        """The diagonal of :meth:`gram`."""
        spread = ((self.inputs * self.inputs) @ variance)[:, None, :]
        return engine.xp.sum(self.rows * self.rows * spread, axis=2)

    def push_forward(self, engine: Engine, directions: Float[Array, "R I O"]) -> Float[Array, "N K R"]:
        """``J`` times each of R directions in weight space."""
        return self.outputs_of(engine, self.moves(engine, directions))

    def moves(self, engine: Engine, directions: Float[Array, "R I O"]) -> Float[Array, "R N O"]:
        """How R directions in weight space move the pre-activations; adds up over blocks of inputs."""
        return self.inputs @ directions

    def outputs_of(self, engine: Engine, moves: Float[Array, "R N O"]) -> Float[Array, "N K R"]:
        """How the outputs move with the pre-activations."""
        return self.rows @ engine.xp.permute_dims(moves, (1, 2, 0))

    def combined(self, engine: Engine, mixing: Float[Array, "N K R"]) -> Float[Array, "R I O"]:
        """R linear combinations of the rows of ``J``, in the shape of W."""
        rows = engine.xp.permute_dims(mixing.mT @ self.rows, (1, 0, 2))  # R, N, O
        return self.inputs.mT @ rows

    def multiply(self, engine: Engine, matrix: Float[Array, "P M"]) -> Float[Array, "N K M"]:
        """``J @ matrix``. Where the layer has no more outputs than there are directions, its inputs go first."""
        num_rows, num_inputs = self.inputs.shape
        width = self.rows.shape[2]
        if width > self.rows.shape[1]:
            return self.dense(engine) @ matrix
        contracted = self.inputs @ engine.xp.reshape(matrix, (num_inputs, -1))
        return self.rows @ engine.xp.reshape(contracted, (num_rows, width, -1))

    def expanded(self) -> LayerFactors:
        """Every position as an input of its own, as Kronecker factors take shared weights (Eschenhagen et al. 2023)."""
        return self

    def dense(self, engine: Engine) -> Float[Array, "N K P"]:
        """The Jacobian itself, with W flattened by rows."""
        jacobian = self.inputs[:, None, :, None] * self.rows[:, :, None, :]
        return engine.xp.reshape(jacobian, (*self.rows.shape[:2], -1))


class SharedFactors(NamedTuple):
    """The factors of one dense layer that each of N inputs passes at T positions.

    The gradient of output direction k is ``Σ_t a[t] ⊗ D[k, t]``. What is linear in it is taken on the factors; squares
    need the sum itself, which is formed where they are asked for.

    Attributes:
        inputs: the layer's inputs at every position, with a trailing 1 where it has a bias, shape (N, T, I).
        rows: derivatives of the K output directions with respect to the pre-activations, shape (N, K, T, O).
    """

    inputs: Float[Array, "N T I"]
    rows: Float[Array, "N K T O"]

    def left_multiply(self, factor: Float[Array, "N K R"] | None) -> SharedFactors:
        """See :meth:`LayerFactors.left_multiply`."""
        if factor is None:
            return self
        num_rows, num_outputs, positions, width = self.rows.shape
        flat = self.rows.reshape((num_rows, num_outputs, positions * width))
        return SharedFactors(self.inputs, (factor.mT @ flat).reshape((num_rows, -1, positions, width)))

    def pull_back(self, residual: Float[Array, "N K"]) -> tuple[Float[Array, "M I"], Float[Array, "M O"]]:
        """See :meth:`LayerFactors.pull_back`; one column and row for each input and position."""
        rows = self.left_multiply(residual[:, :, None]).rows
        return self.inputs.reshape((-1, self.inputs.shape[2])), rows.reshape((-1, rows.shape[3]))

    def squares(self, engine: Engine) -> tuple[Float[Array, "I I"], Float[Array, "I O"]]:
        """See :meth:`LayerFactors.squares`; the columns are the identity."""
        jacobian = self._matrices(engine)
        total = engine.xp.sum(jacobian * jacobian, axis=(0, 1))
        return engine.eye(total.shape[0], total), total

    def gram(self, engine: Engine, variance: Float[Array, "I O"], joint: bool) -> Array:
        """See :meth:`LayerFactors.gram`."""
        jacobian = self.dense(engine)
        if joint:
            jacobian = jacobian.reshape((-1, jacobian.shape[2]))
        return (jacobian * variance.reshape((-1,))) @ jacobian.mT

    def spread(self, engine: Engine, variance: Float[Array, "I O"], joint: bool) -> Array:
        """See :meth:`LayerFactors.spread`: with positions of its own for every row, the gram itself."""
        return self.gram(engine, variance, joint)

    def gram_of(self, engine: Engine, spread: Array, joint: bool) -> Array:
        """See :meth:`LayerFactors.gram_of`."""
        return spread

    def joint_covariances(self, engine: Engine, precision: Float[Array, "I O"]) -> tuple[Array, None]:
        """See :meth:`LayerFactors.joint_covariances`."""
        return self.gram(engine, engine.xp.reciprocal(precision), joint=True), None

    def gram_diagonal(self, engine: Engine, variance: Float[Array, "I O"]) -> Float[Array, "N K"]:
        """See :meth:`LayerFactors.gram_diagonal`."""
        jacobian = self.dense(engine)
        return engine.xp.sum(jacobian * jacobian * variance.reshape((-1,)), axis=2)

    def push_forward(self, engine: Engine, directions: Float[Array, "R I O"]) -> Float[Array, "N K R"]:
        """See :meth:`LayerFactors.push_forward`."""
        return engine.xp.einsum("nti,rio,nkto->nkr", self.inputs, directions, self.rows)

    def moves(self, engine: Engine, directions: Float[Array, "R I O"]) -> Float[Array, "N T R O"]:
        """See :meth:`LayerFactors.moves`."""
        return engine.xp.einsum("nti,rio->ntro", self.inputs, directions)

    def outputs_of(self, engine: Engine, moves: Float[Array, "N T R O"]) -> Float[Array, "N K R"]:
        """See :meth:`LayerFactors.outputs_of`."""
        return engine.xp.einsum("ntro,nkto->nkr", moves, self.rows)

    def combined(self, engine: Engine, mixing: Float[Array, "N K R"]) -> Float[Array, "R I O"]:
        """See :meth:`LayerFactors.combined`."""
        return engine.xp.einsum("nti,nrto->rio", self.inputs, self.left_multiply(mixing).rows)

    def multiply(self, engine: Engine, matrix: Float[Array, "P M"]) -> Float[Array, "N K M"]:
        """See :meth:`LayerFactors.multiply`."""
        return self.dense(engine) @ matrix

    def expanded(self) -> LayerFactors:
        """See :meth:`LayerFactors.expanded`."""
        num_rows, num_outputs, positions, width = self.rows.shape
        rows = self.rows.swapaxes(1, 2).reshape((num_rows * positions, num_outputs, width))
        return LayerFactors(self.inputs.reshape((num_rows * positions, -1)), rows)

    def dense(self, engine: Engine) -> Float[Array, "N K P"]:
        """See :meth:`LayerFactors.dense`."""
        return self._matrices(engine).reshape((*self.rows.shape[:2], -1))

    def _matrices(self, engine: Engine) -> Float[Array, "N K I O"]:
        """The Jacobian in the shape of W."""
        return self.inputs.mT[:, None] @ self.rows


Factor: TypeAlias = LayerFactors | SharedFactors
"""What every structure contracts."""


def joined_rows(engine: Engine, factors: Sequence[Factor]) -> Float[Array, "K Os"] | None:
    """The rows of all layers side by side, for one input that passes each layer once; else None."""
    if any(isinstance(factor, SharedFactors) or len(factor.rows) > 1 for factor in factors):
        return None
    return engine.xp.concat([factor.rows[0] for factor in factors], axis=1)


def among_directions(
    engine: Engine, covariance: Float[Array, "M M"], factor: Float[Array, "N K R"]
) -> tuple[Float[Array, "D M"], Float[Array, "D D"]]:
    """``LᵀC`` and ``LᵀCL`` for the covariance of M = N·K outputs, each row with an L of its own: D = N·R directions."""
    xp = engine.xp
    num_rows, num_outputs, rank = factor.shape
    size = num_rows * rank
    half = xp.reshape(factor.mT @ xp.reshape(covariance, (num_rows, num_outputs, -1)), (size, -1))
    whole = factor.mT @ xp.reshape(half.mT, (num_rows, num_outputs, size))
    return half, xp.reshape(whole, (size, size))
