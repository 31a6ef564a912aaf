"""Microcanonical dynamics: a momentum of constant length, turned by the gradient (the mathematics, no tuning).

Robnik, De Luca, Silverstein and Seljak (2023), "Microcanonical Hamiltonian Monte Carlo", section 3; Robnik and Seljak
(2024), "Fluctuation without dissipation: microcanonical Langevin Monte Carlo". The position moves along a unit vector u
of D numbers; the energy -log p + K stays as it is but for the discretisation's error, which is what step sizes are
tuned by.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxtyping import Float

from ..engines.base import Array, Engine
from .target import Data, Gradient

__all__ = ["Phase", "integrate", "refresh", "turn", "unit_vectors"]

_OUTER = 0.1931833275037836
"""Share of a step for the first and the last turn of the minimal norm scheme (McLachlan 1995; Omelyan 2003)."""


class Phase(NamedTuple):
    """Where C chains are.

    Attributes:
        position: z, (C, D).
        direction: u, of length 1, (C, D).
        log_density: log p(z), (C,).
        gradient: ∇ log p(z), (C, D).
    """

    position: Float[Array, "C D"]
    direction: Float[Array, "C D"]
    log_density: Float[Array, " C"]
    gradient: Float[Array, "C D"]


def unit_vectors(engine: Engine, key: Any, shape: tuple[int, ...]) -> Array:
    """Random directions, uniform on the sphere."""
    draw = engine.normal(key, shape)
    return draw / _norm(engine, draw)[..., None]


def turn(
    engine: Engine, direction: Float[Array, "C D"], gradient: Float[Array, "C D"], step: Any
) -> tuple[Float[Array, "C D"], Float[Array, " C"]]:
    """The exact flow of the direction under a constant gradient, and the change of the kinetic energy.

    With e = g/|g|, δ = ε|g|/(D-1) and c = e·u: u ← (u + e (sinh δ + c (cosh δ - 1))) / (cosh δ + c sinh δ) (equation 16
    of the 2023 paper), multiplied by 2 exp(-δ) above and below, so that nothing overflows.

    Args:
        engine: of the arrays.
        direction: u.
        gradient: g.
        step: ε, a number or one for each chain (C,).
    """
    xp, size = engine.xp, direction.shape[-1]
    length = _norm(engine, gradient) + 1e-30
    towards = gradient / length[..., None]
    cosine = xp.sum(towards * direction, axis=-1)
    delta = step * length / (size - 1)
    zeta = xp.exp(-delta)
    along = (1 - zeta) * (1 + zeta + cosine * (1 - zeta))
    norm = xp.sqrt(along * along + 4 * zeta * (along * cosine + zeta))  # of the sum of two unit vectors, so multiplied
    turned = towards * (along / norm)[..., None] + direction * (2 * zeta / norm)[..., None]
    kinetic = delta - math.log(2) + xp.log(1 + cosine + (1 - cosine) * zeta * zeta)
    return turned, (size - 1) * kinetic


def integrate(
    engine: Engine, gradient: Gradient, phase: Phase, data: Data, step: Any, scale: Any
) -> tuple[Phase, Float[Array, " C"]]:
    """One step of the minimal norm scheme, two gradients, and its energy error.

    Args:
        engine: of the arrays.
        gradient: of the log density.
        phase: where the chains are.
        data: what the density is given.
        step: ε of each chain, (C,).
        scale: of every number of the position: the dynamics run in z / scale.
    """
    position, direction, log_density, slope = phase
    half = (0.5 * step)[:, None] * scale
    direction, first = turn(engine, direction, slope * scale, _OUTER * step)
    position = position + half * direction
    _, slope = gradient(position, data, 1.0)
    direction, second = turn(engine, direction, slope * scale, (1 - 2 * _OUTER) * step)
    position = position + half * direction
    new_density, slope = gradient(position, data, 1.0)
    direction, third = turn(engine, direction, slope * scale, _OUTER * step)
    error = first + second + third + log_density - new_density
    return Phase(position, direction, new_density, slope), error


def refresh(engine: Engine, key: Any, direction: Float[Array, "C D"], step: Any, length: Any) -> Float[Array, "C D"]:
    """Turn the directions at random, as much as forgets them over a path of ``length``.

    u ← (u + ν ξ) / |u + ν ξ| with ν² = (exp(2ε/L) - 1) / D (Robnik and Seljak 2024, equation 9).
    """
    xp = engine.xp
    noise = xp.sqrt((xp.exp(2 * step / length) - 1) / direction.shape[-1])
    moved = direction + noise[:, None] * engine.normal(key, direction.shape)
    return moved / _norm(engine, moved)[..., None]


def _norm(engine: Engine, vector: Array) -> Array:
    return engine.xp.sqrt(engine.xp.sum(vector * vector, axis=-1))
