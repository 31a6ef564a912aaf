"""Posteriors that grew apart from one fork, made one again: ``q ∝ q_now · Π_b (q_b / q_fork)``.

Natural parameters add up:

    Λ = Λ_now + Σ_b (Λ_b - Λ_fork),    Λ m = Λ_now m_now + Σ_b (Λ_b m_b - Λ_fork m_fork),

and, with the noise learned (a normal-inverse-gamma posterior), so do its shape and ``2 rate + mᵀ Λ m``. All means are
taken relative to ``m_now``, so that large numbers need not cancel. For a network that is linear in its weights and a
structure that holds all their correlations this is the posterior of a single stream of all observations. Elsewhere it
is not: each branch has linearised the network, or projected its correlations, around means of its own.

The mathematics is done in float64; of a difference ``Λ_b - Λ_fork`` the positive part counts
(:meth:`Structure.merged`), so that the result is positive definite always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .engines.base import Array, Engine
from .errors import NumericalFailure
from .filtering import Posterior
from .likelihoods import Likelihood
from .structures.base import Layers, Structure, changed

__all__ = ["merged"]


def merged(
    engine: Engine,
    structure: Structure,
    likelihood: Likelihood,
    now: Posterior,
    grown: Sequence[tuple[Posterior, Posterior]],
) -> Posterior:
    """A posterior with what others of its kind have learned.

    Args:
        engine: of the arrays, in float64.
        structure: of the weights.
        likelihood: whose state goes with them.
        now: the posterior.
        grown: of each of the others, what it has become and the fork that it grew from.

    Returns:
        The merged posterior; ``now`` itself where nobody has learned anything.

    Raises:
        InvalidInput: precisions of the structure do not add.
        NumericalFailure: the result would not be finite.
    """
    different = changed(engine, grown)
    if not different:
        return now
    origin = structure.mean(now.weights)
    gradient: Layers = tuple(0.0 * mean for mean in origin)
    surplus = 0.0
    for pair in different:
        for posterior, sign in zip(pair, (1.0, -1.0), strict=True):
            pulled, squares = _pull(structure, engine, posterior.weights, origin)
            gradient = tuple(g + sign * p for g, p in zip(gradient, pulled, strict=True))
            surplus = surplus + sign * squares
    ends = [(end.weights, start.weights) for end, start in different]
    weights = structure.merged(engine, now.weights, ends, gradient)
    moved = (m - o for m, o in zip(structure.mean(weights), origin, strict=True))
    surplus = surplus - sum(engine.xp.sum(m * g) for m, g in zip(moved, gradient, strict=True))
    states = [(end.likelihood, start.likelihood) for end, start in different]
    result = now._replace(weights=weights, likelihood=likelihood.merged_state(now.likelihood, states, 0.5 * surplus))
    _check_finite(engine, structure, weights)
    return result


def _pull(structure: Structure, engine: Engine, state: Any, origin: Layers) -> tuple[Layers, Array]:
    """``Λ (m - origin)`` and ``(m - origin)ᵀ Λ (m - origin)``."""
    step = tuple(m - o for m, o in zip(structure.mean(state), origin, strict=True))
    pulled, _ = structure.natural(engine, structure.replace_mean(state, step))
    return pulled, sum(engine.xp.sum(s * p) for s, p in zip(step, pulled, strict=True))


def _check_finite(engine: Engine, structure: Structure, weights: Any) -> None:
    sums = [engine.xp.sum(mean) for mean in structure.mean(weights)]
    if not all(bool(engine.xp.isfinite(value)) for value in (*sums, structure.log_determinant(engine, weights))):
        raise NumericalFailure("the merged posterior would not be finite; nothing was changed")
