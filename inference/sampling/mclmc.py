"""Microcanonical Langevin Monte Carlo, for many chains at once.

Robnik and Seljak (2024), "Fluctuation without dissipation: microcanonical Langevin Monte Carlo"; the start from an
optimised ensemble is that of Sommer et al. (2025), "Microcanonical Langevin ensembles". The dynamics are in
:mod:`.microcanonical`; here are one step and the tuning of its two numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine, map_trees
from ..methods import FitProblem
from .base import Sampler, check_positive
from .chains import Chains, Plan, Run, Transition, repeat
from .effective import effective_sample_size
from .microcanonical import Phase, integrate, refresh, unit_vectors
from .target import Data, Gradient, Target, data_of

__all__ = ["MCLMC"]

_TOO_FAR = 1000.0
"""An energy error, in nats, after which a step is taken back."""

_MEMORY = 149 / 151
"""Of the step size's running average: 150 steps (as in Robnik and Seljak's tuning)."""

_LOOKED_AT = 1000
_PATH = 0.8
"""Path over which directions are forgotten, in lengths over which positions decorrelate."""


class Moving(NamedTuple):
    """Attributes:
    phase: where the chains are.
    step: ε, the step size of each, (C,).
    length: L, the path over which directions are forgotten, of each, (C,).
    """

    phase: Phase
    step: Float[Array, " C"]
    length: Float[Array, " C"]

    @property
    def position(self) -> Float[Array, "C D"]:
        """Where the chains are, z."""
        return self.phase.position


class Tuning(NamedTuple):
    """Attributes:
    moving: the chains.
    total: weighted running sum of ξ/ε⁶, (C,), for the ξ = 1 at which the energy error has its size.
    weight: running sum of the weights, (C,).
    """

    moving: Moving
    total: Float[Array, " C"]
    weight: Float[Array, " C"]

    @property
    def position(self) -> Float[Array, "C D"]:
        """Where the chains are, z."""
        return self.moving.position


@dataclass(frozen=True)
class MCLMC(Sampler):
    """Unadjusted microcanonical Langevin chains, each from a mode of its own.

    No step is rejected: the step size is tuned so that the discretisation's bias is below the Monte Carlo error of a
    few thousand effective draws. For less bias lower ``energy_error``, or compare with :class:`NUTS`.

    Args:
        num_warmup: steps of each chain for tuning: half for the step size, a quarter for the posterior's radius and a
            quarter for the length.
        num_samples: draws of each chain that are kept.
        num_chains: independent chains.
        thinning: steps for each of these draws; a step takes two gradients.
        climb: steps of Adam towards a mode before the warm-up.
        energy_error: target of the variance of the energy error of a step, per dimension.
        max_seconds: limit for the draws after the warm-up; what there is by then is kept. None: no limit.

    Raises:
        InvalidInput: a number out of its range.
    """

    thinning: int = 10
    climb: int = 500
    energy_error: float = 5e-4
    max_seconds: float | None = None

    counts: ClassVar[tuple[str, ...]] = ("num_warmup", "num_samples", "num_chains", "thinning", "climb")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, ("energy_error",) if self.max_seconds is None else ("energy_error", "max_seconds"), float)

    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        engine, gradient, data = problem.engine, target.gradient(), data_of(problem)
        moving = self.warmed(problem, target, gradient, data)
        plan = Plan(self.num_samples, self.thinning, self.max_seconds)
        key = "MCLMC", target.key
        run = Run(
            engine, transition(engine, gradient), data, problem.seed + 4, key, problem.on_epoch, problem.checkpoint
        )
        moving, chains = repeat(run, moving, plan)
        return chains, {"step_size": float(moving.step[0]), "length": float(moving.length[0])}

    def warmed(self, problem: FitProblem, target: Target, gradient: Gradient, data: Data) -> Moving:
        """Chains that have reached the typical set, with a step size and a length for all of them."""
        engine, seed = problem.engine, problem.seed
        position = self.starts(problem, target, self.climb)
        count, size = position.shape
        density, slope = target.compiled_gradient()(position, data)
        with engine.scope():
            phase = Phase(position, unit_vectors(engine, engine.key(seed + 1), position.shape), density, slope)
        ones = np.ones(count)
        moving = Moving(phase, engine.asarray(0.25 * ones), engine.asarray(math.sqrt(size) * ones))
        nothing = engine.asarray(0.0 * ones)
        key, tuned = ("MCLMC tuning", target.key, self.energy_error), tuning_transition
        run = Run(engine, tuned(engine, gradient, self.energy_error), data, seed + 1, key, None, problem.checkpoint)
        quarter = max(16, self.num_warmup // 4)
        tuning, _ = repeat(run, Tuning(moving, nothing, nothing), Plan(1, 2 * quarter, None))
        tuning, chains = repeat(run._replace(seed=seed + 2), tuning, Plan(quarter // 4, 4, None))
        radius = math.sqrt(float(np.sum(chains.positions.var(axis=(0, 1), dtype=np.float64))))
        moving = tuning.moving._replace(length=engine.asarray(radius * ones))
        tuning, chains = repeat(
            run._replace(seed=seed + 3), tuning._replace(moving=moving), Plan(quarter // 4, 4, None)
        )
        step = float(np.exp(np.mean(np.log(engine.to_numpy(tuning.moving.step)))))
        # Steps between independent positions, by their harmonic mean over some weights, times the step size: a path.
        # Means alone mix the quicker the less a direction is forgotten, squares do not: the radius of the posterior,
        # √(Σ variance), is the least.
        some = chains.positions[..., np.linspace(0, size - 1, min(size, _LOOKED_AT)).astype(int)]
        path = step * 4 * some.shape[0] * some.shape[1] * float(np.mean(1 / effective_sample_size(some)))
        length = max(_PATH * path, radius)
        return tuning.moving._replace(step=engine.asarray(step * ones), length=engine.asarray(length * ones))


def transition(engine: Engine, gradient: Gradient) -> Transition:
    """A step of the dynamics with the state's own step size and length."""

    def step(moving: Moving, data: Data, key: Any) -> tuple[Moving, dict[str, Any]]:
        moved, error, is_near = _moved(engine, gradient, moving, data, key)
        statistics = {
            "log_density": moved.log_density,
            "energy_error": engine.xp.where(is_near, engine.xp.abs(error), 0.0),
            "diverging": engine.xp.astype(~is_near, error.dtype),
        }
        return moving._replace(phase=moved), statistics

    return step


def tuning_transition(engine: Engine, gradient: Gradient, energy_error: float) -> Transition:
    """A step that goes on with the step size at which the energy error would have had its variance.

    The error of a step grows with ε³, its square with ε⁶: ε ← (running mean of ξ/ε⁶)^(-1/6) for ξ = E²/(D σ²), where
    steps with an error of another size count for less.
    """
    xp = engine.xp

    def step(tuning: Tuning, data: Data, key: Any) -> tuple[Tuning, dict[str, Any]]:
        moving = tuning.moving
        moved, error, is_near = _moved(engine, gradient, moving, data, key)
        size = moving.position.shape[-1]
        relative = xp.where(is_near, error * error, _TOO_FAR**2) / (size * energy_error) + 1e-8
        weight = xp.exp(-0.5 * (xp.log(relative) / 9) ** 2)
        total = _MEMORY * tuning.total + weight * relative / moving.step**6
        weights = _MEMORY * tuning.weight + weight
        epsilon = (total / weights) ** (-1 / 6)
        return Tuning(Moving(moved, epsilon, moving.length), total, weights), {"log_density": moved.log_density}

    return step


def _moved(
    engine: Engine, gradient: Gradient, moving: Moving, data: Data, key: Any
) -> tuple[Phase, Float[Array, " C"], Array]:
    """The phases after a step, the energy errors, and whether these are finite and small enough to go on."""
    xp, old = engine.xp, moving.phase
    new, error = integrate(engine, gradient, old, data, moving.step, 1.0)
    is_near = xp.isfinite(error) & (xp.abs(error) < _TOO_FAR)
    new = map_trees(lambda a, b: xp.where(is_near if a.ndim == 1 else is_near[:, None], a, b), new, old)
    direction = xp.where(is_near[:, None], new.direction, -old.direction)
    direction = refresh(engine, key, direction, moving.step, moving.length)
    return new._replace(direction=direction), error, is_near
