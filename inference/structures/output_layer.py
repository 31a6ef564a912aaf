"""The covariance of an output layer's weights, in the form that answers many inputs fastest.

The outputs of a last layer are ``Wᵀ a``: their covariance needs no back-propagated rows. From a triangular root of the
covariance of one output's weights, its variance takes half a product. So does that of the sum of two outputs, and

    Cov(f, g) = ½ (Var(f + g) - Var(f) - Var(g))

takes half the work of a root of the covariance of all weights. In a variance only positive terms are summed, so that
small ones survive in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine

__all__ = ["OutputLayer", "output_layer"]

_WIDTH = 64
"""Inputs of one stripe: narrow stripes waste little of a triangle, wide ones suit matrix products."""

Stripes = tuple[Float[Array, "I M C"], ...]
"""Stripes of columns of M lower triangular roots; the rows of inputs before a stripe are 0 and left out."""


class OutputLayer(NamedTuple):
    """Attributes:
    own: roots of the covariance of each of the K outputs' weights.
    sums: of the sum of two outputs' weights, for each pair of them in the order of :func:`numpy.triu_indices`.
    """

    own: Stripes
    sums: Stripes

    def covariance(self, engine: Engine, inputs: Float[Array, "N I"]) -> Float[Array, "N K K"]:
        """Of the outputs of each input."""
        xp, own = engine.xp, self.variance(engine, inputs)
        size = own.shape[1]
        if size == 1:
            return own[:, :, None]
        pairs = np.triu_indices(size, 1)
        first, second = (xp.take(own, engine.asarray(index), axis=1) for index in pairs)
        shared = 0.5 * (_squares(engine, self.sums, inputs) - first - second)
        place = np.diag(np.arange(size))
        place[pairs] = place.T[pairs] = size + np.arange(len(pairs[0]))
        flat = xp.take(xp.concat([own, shared], axis=1), engine.asarray(place.reshape(-1)), axis=1)
        return xp.reshape(flat, (-1, size, size))

    def variance(self, engine: Engine, inputs: Float[Array, "N I"]) -> Float[Array, "N K"]:
        """The diagonal of :meth:`covariance`."""
        return _squares(engine, self.own, inputs)


def output_layer(engine: Engine, root: Float[Array, "P P"], shape: tuple[int, int]) -> OutputLayer:
    """From any square root of the covariance of a layer's weights, flattened by rows."""
    num_inputs, num_outputs = shape
    xp = engine.xp
    first, second = np.triu_indices(num_outputs, 1)

    def triangular(small: Engine, root: Array) -> tuple[Array, Array]:
        rows = small.xp.reshape(root, (num_inputs, num_outputs, -1))
        own = small.xp.stack([_triangle(small, rows[:, k, :]) for k in range(num_outputs)], axis=1)
        if num_outputs == 1:
            return own, own[:, :0, :]

        def of_sum(rows: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            return rows, _triangle(small, rows[:, pair[0], :] + rows[:, pair[1], :])

        _, sums = small.scan(of_sum, rows, (small.asarray(first), small.asarray(second)))
        return own, small.xp.permute_dims(sums, (1, 0, 2))

    own, sums = engine.cast(engine.in_float64(triangular, root))

    def stripes(whole: Array) -> Stripes:
        starts = range(0, num_inputs, _WIDTH)
        return tuple(xp.asarray(whole[i:, :, i : i + _WIDTH], copy=True) for i in starts)

    return OutputLayer(stripes(own), stripes(sums))


def _triangle(engine: Engine, root: Float[Array, "R C"]) -> Float[Array, "R R"]:
    """The lower triangular matrix with the same square, without forming the square."""
    return engine.xp.linalg.qr(root.mT)[1].mT


def _squares(engine: Engine, stripes: Stripes, inputs: Float[Array, "N I"]) -> Float[Array, "N M"]:
    """Squared lengths of the rooted inputs."""
    lengths = [engine.xp.linalg.vector_norm(_rooted(engine, stripe, inputs), axis=2) for stripe in stripes]
    return sum((length * length for length in lengths[1:]), start=lengths[0] * lengths[0])


def _rooted(engine: Engine, stripe: Float[Array, "I M C"], inputs: Float[Array, "N I"]) -> Float[Array, "N M C"]:
    size, num_roots, columns = stripe.shape
    flat = engine.xp.reshape(stripe, (size, num_roots * columns))
    rows = inputs[:, inputs.shape[1] - size :] @ flat
    return engine.xp.reshape(rows, (inputs.shape[0], num_roots, columns))
