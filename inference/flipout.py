"""Flipout: nearly independent draws of the weights for every row, from one draw for the batch.

Wen, Vicol, Ba, Tran and Grosse (2018), "Flipout: efficient pseudo-independent weight perturbations on mini-batches".
For layers whose pre-activations are not independent given their inputs, such as a layer that one row passes at several
positions, where local reparametrisation would give every position weights of its own.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from .engines.base import Array

__all__ = ["flipout_dense"]


def flipout_dense(
    xp: Any,
    x: Float[Array, "*T I"],
    mean: Float[Array, "J O"],
    deviation: Float[Array, "J O"],
    draw: Float[Array, "J O"],
    input_signs: Float[Array, "N J"],
    output_signs: Float[Array, "N O"],
    bias: bool = True,
    row_axis: int = 0,
) -> Float[Array, "*T O"]:
    """Pre-activations of a dense layer under weights M + (r sᵀ) ∘ S ∘ E, with signs r and s of each row (equation 4)::

        z = a M + ((a ∘ r) (S ∘ E)) ∘ s

    Each row's weights have the distribution N(M, S²) and are the same at all of its positions; those of two rows are
    uncorrelated.

    Args:
        xp: array namespace.
        x: inputs a; axes other than that of the N rows and the last are positions.
        mean: M, whose last row is the bias.
        deviation: the standard deviations S.
        draw: standard normal draws E.
        input_signs: r, each -1 or 1 with equal probability, independent of everything else; also one for the bias.
        output_signs: s, likewise.
        bias: whether there is one; J is I + 1 with it and I without.
        row_axis: of the inputs.
    """
    shape = [x.shape[axis] if axis == row_axis else 1 for axis in range(x.ndim - 1)]
    r, s = (xp.reshape(signs, (*shape, -1)) for signs in (input_signs, output_signs))
    noise = deviation * draw
    if not bias:
        return x @ mean + ((x * r) @ noise) * s
    moved = (x * r[..., :-1]) @ noise[:-1, :] + r[..., -1:] * noise[-1:, :]
    return x @ mean[:-1, :] + mean[-1:, :] + moved * s
