"""Many short chains that tune each other: generalised Hamiltonian Monte Carlo without a number to set.

Hoffman and Sountsov (2022), "Tuning-free generalized Hamiltonian Monte Carlo" (MEADS, algorithm 3), with the persistent
acceptance variable of Neal (2020). Chains are in four folds; each fold's step size, damping and scales come from the
next fold, so that a chain never tunes itself, and one fold rests at every step. A step takes one gradient of every
chain in one batch, which is what a GPU wants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..methods import FitProblem
from .base import Sampler, check_positive
from .chains import Chains, Plan, Run, Transition, repeat
from .target import Data, Gradient, Target, data_of

__all__ = ["MEADS"]

_FOLDS = 4
_STEP = 0.5
"""Step size in units of the stability limit's scale (Hoffman and Sountsov's constant), at the start."""

_ACCEPTANCE = 0.9
_GAIN = 0.02
"""In the warm-up the constant follows the acceptance: near modes, where chains start, gradients are small and say
nothing of the stability limit further out; with a constant alone all steps would be refused, for ever."""


class Walking(NamedTuple):
    """Attributes:
    position: z, (C, D).
    momentum: (C, D).
    acceptance: Neal's variable in [-1, 1), (C,).
    log_density: log p(z), (C,).
    gradient: ∇ log p(z), (C, D).
    count: steps so far.
    multiple: step size in units of the stability limit's scale.
    """

    position: Float[Array, "C D"]
    momentum: Float[Array, "C D"]
    acceptance: Float[Array, " C"]
    log_density: Float[Array, " C"]
    gradient: Float[Array, "C D"]
    count: Float[Array, ""]
    multiple: Float[Array, ""]


@dataclass(frozen=True)
class MEADS(Sampler):
    """Adjusted chains for parallel hardware: exact in the limit, without tuning.

    Args:
        num_warmup: steps of each chain before its first draw.
        num_samples: draws of each chain that are kept.
        num_chains: a multiple of 4, at least 8; better 64 or more, from which the scales are estimated.
        thinning: steps for each of these draws.
        climb: steps of Adam towards a mode before the warm-up.
        max_seconds: limit for the draws after the warm-up; what there is by then is kept. None: no limit.

    Raises:
        InvalidInput: a number out of its range.
    """

    num_warmup: int = 2000
    num_samples: int = 50
    num_chains: int = 64
    thinning: int = 50
    climb: int = 300
    max_seconds: float | None = None

    counts: ClassVar[tuple[str, ...]] = ("num_warmup", "num_samples", "num_chains", "thinning", "climb")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chains % _FOLDS or self.num_chains < 2 * _FOLDS:
            raise InvalidInput(f"MEADS.num_chains must be a multiple of 4, at least 8, got {self.num_chains!r}")
        if self.max_seconds is not None:
            check_positive(self, ("max_seconds",), float)

    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        engine, gradient, data = problem.engine, target.gradient(), data_of(problem)
        position = self.starts(problem, target, self.climb)
        density, slope = target.compiled_gradient()(position, data)
        with engine.scope():
            momentum = engine.normal(engine.key(problem.seed + 1), position.shape)
            uniform = engine.uniform(engine.key(problem.seed + 2), (self.num_chains,))
            count, multiple = (engine.asarray(np.float64(value)) for value in (0.0, _STEP))
            state = Walking(position, momentum, 2 * uniform - 1, density, slope, count, multiple)
        adapting, key = transition(engine, gradient, _GAIN), ("MEADS", target.key)
        warm_up = Run(engine, adapting, data, problem.seed + 3, (key, _GAIN), None, problem.checkpoint)
        state, _ = repeat(warm_up, state, Plan(1, self.num_warmup, None))
        kept = transition(engine, gradient, 0.0)
        run = Run(engine, kept, data, problem.seed + 4, (key, 0.0), problem.on_epoch, problem.checkpoint)
        _, chains = repeat(run, state, Plan(self.num_samples, self.thinning, self.max_seconds))
        return chains, {"acceptance": float(chains.statistics["acceptance"].mean())}


def transition(engine: Engine, gradient: Gradient, gain: float) -> Transition:
    """A step of all folds but the one that rests.

    Args:
        engine: of the arrays.
        gradient: of the log density.
        gain: with which the step size follows the acceptance; 0 where draws are kept.
    """
    xp = engine.xp

    def step(state: Walking, data: Data, key: Any) -> tuple[Walking, dict[str, Any]]:
        count = state.position.shape[0]
        scale, step_size, damping = (_spread(engine, value, count) for value in _tuned(engine, state))
        share = -xp.expm1(-2 * step_size * damping)
        noise = engine.normal(key, state.position.shape)
        momentum = xp.sqrt(1 - share)[:, None] * state.momentum + xp.sqrt(share)[:, None] * noise
        level = (state.acceptance + 1 + 0.5 * share) % 2 - 1
        stride = step_size[:, None] * scale
        half = momentum + 0.5 * stride * state.gradient
        position = state.position + stride * half
        density, slope = gradient(position, data, 1.0)
        moved = half + 0.5 * stride * slope
        kinetic = 0.5 * xp.sum(moved * moved - momentum * momentum, axis=-1)
        gained = density - state.log_density - kinetic
        gained = xp.where(xp.isfinite(gained), gained, -math.inf)
        accepted = xp.log(xp.abs(level)) < gained
        fold = engine.constant(np.repeat(np.arange(_FOLDS), count // _FOLDS), level)
        is_moving = fold != xp.astype(state.count % _FOLDS, level.dtype)
        moves, refused = accepted & is_moving, ~accepted & is_moving
        rate = xp.exp(xp.where(gained < 0, gained, 0.0))
        new = Walking(
            xp.where(moves[:, None], position, state.position),
            xp.where(moves[:, None], moved, xp.where(refused[:, None], -momentum, state.momentum)),
            xp.where(moves, level * xp.exp(-gained), xp.where(refused, level, state.acceptance)),
            xp.where(moves, density, state.log_density),
            xp.where(moves[:, None], slope, state.gradient),
            state.count + 1,
            state.multiple * xp.exp(gain * (xp.mean(rate) - _ACCEPTANCE)),
        )
        return new, {"log_density": new.log_density, "acceptance": rate, "step_size": step_size}

    return step


def _tuned(engine: Engine, state: Walking) -> tuple[Array, Array, Array]:
    """For each fold, from the next one: scales (F, D), step size (F,) and damping (F,)."""
    xp, size = engine.xp, state.position.shape[-1]
    positions, slopes = (a.reshape(_FOLDS, -1, size) for a in (state.position, state.gradient))
    centred = positions - xp.mean(positions, axis=1, keepdims=True)
    scale = xp.sqrt(xp.mean(centred * centred, axis=1)) + 1e-8
    stiffness = _largest_eigenvalue(engine, slopes * scale[:, None])
    step_size = state.multiple / xp.sqrt(stiffness)
    step_size = xp.where(step_size < 1, step_size, 1.0)
    slowest = 1 / xp.sqrt(_largest_eigenvalue(engine, centred / scale[:, None]))
    early = 1 / (xp.astype(state.count + 1, step_size.dtype) * step_size)
    damping = xp.where(slowest > early, slowest, early)
    return tuple(xp.roll(value, -1, axis=0) for value in (scale, step_size, damping))


def _largest_eigenvalue(engine: Engine, rows: Float[Array, "F n D"]) -> Float[Array, " F"]:
    """Estimate of the largest eigenvalue of the rows' second moment, tr(S²)/tr(S), unbiased above (equation 12)."""
    xp, count = engine.xp, rows.shape[1]
    gram = rows @ rows.mT
    diagonal = xp.sum(rows * rows, axis=-1)
    squares = xp.sum(gram * gram, axis=(1, 2)) - xp.sum(diagonal * diagonal, axis=-1)
    return (squares / (count * (count - 1))) / xp.mean(diagonal, axis=-1) + 1e-12


def _spread(engine: Engine, values: Array, count: int) -> Array:
    """One value for each fold, as one for each of its chains."""
    return engine.xp.repeat(values, count // _FOLDS, axis=0)
