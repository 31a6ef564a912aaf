"""Microcanonical trajectories with a Metropolis test: no bias from the step size.

Robnik, Cohn-Gordon and Seljak (2025), "Metropolis adjusted microcanonical Hamiltonian Monte Carlo". A trajectory of n
steps starts in a random direction and is accepted with probability min(1, exp(-E)) for its energy error E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.base import Engine, map_trees
from ..methods import FitProblem
from .base import check_fraction
from .chains import Chains, Plan, Run, Transition, repeat
from .mclmc import MCLMC, Moving
from .microcanonical import Phase, integrate, unit_vectors
from .target import Data, Gradient, Target, data_of

__all__ = ["AdjustedMCLMC"]

_GAIN = 0.05
_MOST_STEPS = 100


@dataclass(frozen=True)
class AdjustedMCLMC(MCLMC):
    """As :class:`~.mclmc.MCLMC`, whose tuning it starts from, but exact in the limit: steps are smaller.

    Args:
        num_warmup: steps for tuning as in :class:`~.mclmc.MCLMC`, then a tenth as many trajectories for the step size.
        num_samples: draws of each chain that are kept.
        num_chains: independent chains.
        thinning: trajectories for each of these draws; one is 0.4 L / ε steps, at most 100.
        climb: steps of Adam towards a mode before the warm-up.
        energy_error: see :class:`~.mclmc.MCLMC`; of the tuning that this one starts from.
        max_seconds: limit for the draws after the warm-up; what there is by then is kept. None: no limit.
        target_accept: acceptance probability that the step size is adapted to.

    Raises:
        InvalidInput: a number out of its range.
    """

    thinning: int = 1
    target_accept: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "target_accept")

    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        engine, gradient, data = problem.engine, target.gradient(), data_of(problem)
        moving = self.warmed(problem, target, gradient, data)
        steps = max(1, min(_MOST_STEPS, round(0.4 * float(moving.length[0]) / float(moving.step[0]))))
        adapting = trajectory(engine, gradient, steps, _GAIN, self.target_accept)
        key, kept_since = ("trajectory", target.key, steps, self.target_accept), problem.checkpoint
        tuning = Run(engine, adapting, data, problem.seed + 5, (key, _GAIN), None, kept_since)
        moving, _ = repeat(tuning, moving, Plan(1, max(20, self.num_warmup // 10), None))
        step = float(np.exp(np.mean(np.log(engine.to_numpy(moving.step)))))
        moving = moving._replace(step=engine.asarray(np.full(self.num_chains, step)))
        kept = trajectory(engine, gradient, steps, 0.0, self.target_accept)
        run = Run(engine, kept, data, problem.seed + 6, (key, 0.0), problem.on_epoch, kept_since)
        _, chains = repeat(run, moving, Plan(self.num_samples, self.thinning, self.max_seconds))
        return chains, {"step_size": step, "steps": steps}


def trajectory(engine: Engine, gradient: Gradient, steps: int, gain: float, target_accept: float) -> Transition:
    """A trajectory and its test; with a gain the step size of each chain follows the acceptance."""
    xp = engine.xp

    def transition(moving: Moving, data: Data, key: Any) -> tuple[Moving, dict[str, Any]]:
        old = moving.phase
        start = old._replace(direction=unit_vectors(engine, engine.fold_in(key, 0), old.position.shape))

        def step(phase: Phase, _: Any) -> tuple[Phase, Any]:
            return integrate(engine, gradient, phase, data, moving.step, 1.0)

        new, errors = engine.scan(step, start, engine.constant(np.zeros(steps), old.log_density))
        error = xp.sum(errors, axis=0)
        error = xp.where(xp.isfinite(error), error, math.inf)
        rate = xp.exp(-xp.where(error > 0, error, 0.0))
        accepted = engine.uniform(engine.fold_in(key, 1), rate.shape) < rate
        phase = map_trees(lambda a, b: xp.where(accepted if a.ndim == 1 else accepted[:, None], a, b), new, start)
        epsilon = moving.step * xp.exp(gain * (rate - target_accept))
        return Moving(phase, epsilon, moving.length), {"log_density": phase.log_density, "acceptance": rate}

    return transition
