"""IVON: natural-gradient variational inference at the cost of Adam, over arrays.

Shen et al. (2024), "Variational learning is effective for large deep networks", algorithm 1. The posterior of every
weight is N(m, σ²) with precision 1/σ² = N (h + δ): N δ is the prior's precision, and h follows the mean loss's expected
second derivative, which needs no second derivatives: by Stein's identity it is E[(θ - m)/σ² ∇ℓ(θ)].
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .engines.base import Array, map_arrays, map_trees

__all__ = ["IvonState", "deviation", "init", "sample", "update"]


class IvonState(NamedTuple):
    """Attributes:
    mean: m of every weight.
    curvature: h of every weight, the expected second derivative of the mean loss per row.
    momentum: running average of the gradients.
    count: of the steps taken, a number.
    """

    mean: Any
    curvature: Any
    momentum: Any
    count: Array


def init(xp: Any, mean: Any, standard_deviation: Any, prior_precision: Any, num_rows: float, count: Array) -> IvonState:
    """The state whose posterior has the given moments.

    Args:
        xp: array namespace.
        mean: of every weight, a tree of arrays.
        standard_deviation: of every weight, at most the prior's.
        prior_precision: of every weight.
        num_rows: N of the data set.
        count: the number 0, as an array.
    """
    curvature = map_trees(lambda s, p: (1 / (s * s) - p) / num_rows, standard_deviation, prior_precision)
    return IvonState(mean, curvature, map_arrays(xp.zeros_like, mean), count)


def deviation(xp: Any, state: IvonState, prior_precision: Any, num_rows: float) -> Any:
    """Standard deviation σ = 1/√(N h + p) of every weight, p the prior's precision."""
    return map_trees(lambda h, p: 1 / xp.sqrt(num_rows * h + p), state.curvature, prior_precision)


def sample(xp: Any, state: IvonState, prior_precision: Any, num_rows: float, noise: Any) -> Any:
    """Weights θ = m + σ ε for standard normal noise ε in the form of the mean."""
    sigma = deviation(xp, state, prior_precision, num_rows)
    return map_trees(lambda m, s, e: m + s * e, state.mean, sigma, noise)


def update(
    xp: Any,
    state: IvonState,
    gradient: Any,
    noise: Any,
    prior_precision: Any,
    num_rows: float,
    rate: Array,
    momentum_decay: float = 0.9,
    curvature_decay: float = 0.99999,
) -> IvonState:
    """One step.

    With f = ε g / σ and δ = p / N::

        h ← β₂ h + (1 - β₂) f + ½ (1 - β₂)² (h - f)² / (h + δ),    m ← m - rate (ĝ + δ m) / (h + δ)

    for the bias-corrected momentum ĝ. The last term of h keeps h + δ positive whatever the gradient: with
    d = (1 - β₂)(f - h), the new h + δ is ((h + δ + d)² + (h + δ)²) / 2(h + δ).

    Args:
        xp: array namespace.
        state: before the step.
        gradient: g of the mean loss per row, at the weights of :func:`sample`.
        noise: ε of that sample.
        prior_precision: p of every weight; the prior mean is 0.
        num_rows: N of the data set.
        rate: learning rate, in units of Newton steps.
        momentum_decay: β₁.
        curvature_decay: β₂.
    """
    count = state.count + 1
    share = 1 - momentum_decay**count
    momentum = map_trees(lambda a, g: momentum_decay * a + (1 - momentum_decay) * g, state.momentum, gradient)

    def curve(h: Array, g: Array, e: Array, p: Array) -> Array:
        total = h + p / num_rows
        change = (1 - curvature_decay) * (xp.sqrt(num_rows * total) * e * g - h)
        return h + change + 0.5 * change * change / total

    def move(m: Array, a: Array, h: Array, p: Array) -> Array:
        delta = p / num_rows
        return m - xp.astype(rate, m.dtype) * (a / xp.astype(share, m.dtype) + delta * m) / (h + delta)

    curvature = map_trees(curve, state.curvature, gradient, noise, prior_precision)
    mean = map_trees(move, state.mean, momentum, curvature, prior_precision)
    return IvonState(mean, curvature, momentum, count)
