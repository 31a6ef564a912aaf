"""The covariance of an output layer's weights, in the form that answers many inputs fastest.

The outputs of a last layer are ``Wᵀ a``: their covariance needs no back-propagated rows, and from a triangular root of
the weights' covariance it takes half the work. Only products of positive terms are summed, so that small variances
survive in float32.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float

from ..engines.base import Array, Engine

__all__ = ["OutputLayer", "output_layer"]

_JOINT_WIDTH, _OWN_WIDTH = 16, 64
"""Inputs of one stripe: narrow stripes waste little of a triangle, wide ones suit matrix products."""


class OutputLayer(NamedTuple):
    """Stripes of columns of lower triangular roots; the rows of inputs before a stripe are 0 and left out.

    Attributes:
        joint: of the covariance of all weights, (I - start, K, columns) for each stripe.
        own: of each output's own weights, (I - start, K, columns) for each stripe.
    """

    joint: tuple[Float[Array, "I K C"], ...]
    own: tuple[Float[Array, "I K C"], ...]

    def covariance(self, engine: Engine, inputs: Float[Array, "N I"]) -> Float[Array, "N K K"]:
        """Of the outputs of each input."""
        products = [_square(_rooted(engine, stripe, inputs)) for stripe in self.joint]
        return sum(products[1:], start=products[0])

    def variance(self, engine: Engine, inputs: Float[Array, "N I"]) -> Float[Array, "N K"]:
        """The diagonal of :meth:`covariance`."""
        lengths = [engine.xp.linalg.vector_norm(_rooted(engine, s, inputs), axis=2) for s in self.own]
        return sum((length * length for length in lengths[1:]), start=lengths[0] * lengths[0])


def output_layer(engine: Engine, root: Float[Array, "P P"], shape: tuple[int, int]) -> OutputLayer:
    """From any square root of the covariance of a layer's weights, flattened by rows."""
    num_inputs, num_outputs = shape
    xp = engine.xp

    def triangular(small: Engine, root: Array) -> tuple[Array, Array]:
        joint = _triangle(small, root)
        rows = small.xp.reshape(root, (num_inputs, num_outputs, -1))
        own = [_triangle(small, rows[:, k, :]) for k in range(num_outputs)]
        return small.xp.reshape(joint, rows.shape), small.xp.stack(own, axis=1)

    joint, own = engine.cast(engine.in_float64(triangular, root))

    def stripes(whole: Array, width: int, columns: int) -> tuple[Array, ...]:
        starts = range(0, num_inputs, width)
        return tuple(xp.asarray(whole[i:, :, i * columns : (i + width) * columns], copy=True) for i in starts)

    return OutputLayer(stripes(joint, _JOINT_WIDTH, num_outputs), stripes(own, _OWN_WIDTH, 1))


def _triangle(engine: Engine, root: Float[Array, "R C"]) -> Float[Array, "R R"]:
    """The lower triangular matrix with the same square, without forming the square."""
    return engine.xp.linalg.qr(root.mT)[1].mT


def _square(root: Float[Array, "N K C"]) -> Float[Array, "N K K"]:
    """Taken stripe by stripe, while the stripe's rows are still in the cache."""
    return root @ root.mT


def _rooted(engine: Engine, stripe: Float[Array, "I K C"], inputs: Float[Array, "N I"]) -> Float[Array, "N K C"]:
    size, num_outputs, columns = stripe.shape
    flat = engine.xp.reshape(stripe, (size, num_outputs * columns))
    rows = inputs[:, inputs.shape[1] - size :] @ flat
    return engine.xp.reshape(rows, (inputs.shape[0], num_outputs, columns))
