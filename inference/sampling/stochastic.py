"""Samplers on mini-batches: stochastic gradient Langevin dynamics and Hamiltonian Monte Carlo, with cyclical steps.

Welling and Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics" (SGLD); Chen, Fox and Guestrin
(2014), "Stochastic gradient Hamiltonian Monte Carlo" (SGHMC, equation 15); Zhang et al. (2020), "Cyclical stochastic
gradient MCMC". They leave a bias that falls with the step size and is not corrected: for data sets that full gradients
are too dear for.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..methods import FitProblem
from ..resuming import from_leaves, to_leaves
from .base import Sampler, check_positive
from .chains import Chains
from .target import Gradient, Target, data_of

__all__ = ["SGHMC", "SGLD"]


class Drifting(NamedTuple):
    """Attributes:
    position: z, (C, D).
    velocity: (C, D); of SGHMC alone.
    """

    position: Float[Array, "C D"]
    velocity: Float[Array, "C D"]


@dataclass(frozen=True)
class StochasticGradient(Sampler):
    """What both share; an epoch is a pass over the data, and one draw of each chain is kept at the end of an epoch.

    Attributes:
        batch_size: rows of a step.
        step_size: ε of a full gradient step, in standard deviations of the prior; at the start of a cycle.
        cycles: how often the step size starts anew and falls like a cosine to 0; None: it stays.
        climb: steps of Adam on the whole data towards a mode before the warm-up.
        max_seconds: limit for all epochs, once there is a draw; None: no limit.
    """

    batch_size: int = 64
    step_size: float = 0.03
    cycles: int | None = None
    climb: int = 300
    max_seconds: float | None = None

    counts: ClassVar[tuple[str, ...]] = ("num_warmup", "num_samples", "num_chains", "batch_size", "climb")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, ("step_size",) if self.max_seconds is None else ("step_size", "max_seconds"), float)
        if self.cycles is not None:
            check_positive(self, ("cycles",), int)
        if self.cycles is not None and self.cycles > self.num_samples:
            raise InvalidInput(
                f"{type(self).__name__}.cycles must be from 1 to num_samples ({self.num_samples}), got {self.cycles!r}"
            )

    @abstractmethod
    def moved(self, engine: Engine, state: Drifting, slope: Array, noise: Array, rate: Array) -> Drifting:
        """One step, given the gradient of the log density, standard normal noise and ε."""

    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        engine, gradient, data = problem.engine, target.gradient(), data_of(problem)
        position = self.starts(problem, target, self.climb)
        size = min(self.batch_size, len(problem.weight))
        kept, rates = self.schedule(len(problem.weight) // size)
        full = target.compiled_gradient()
        with engine.scope():
            state = Drifting(position, engine.xp.zeros_like(position))
        state, first, draws, densities = self._resumed(problem, state)
        started = time.monotonic()

        def on_epoch(epoch: int, report: np.ndarray, state: Drifting) -> bool:
            if kept[epoch]:
                draws.append(engine.to_numpy(state.position))
                densities.append(engine.to_numpy(full(state.position, data)[0]))
            if problem.on_epoch is not None:
                problem.on_epoch(epoch, len(kept), -float(report[0]) / float(problem.weight.sum()))
            if problem.checkpoint is not None and (problem.checkpoint.due() or epoch == len(kept) - 1):
                own = {"epoch": np.array(epoch + 1), "draws": np.array(draws), "densities": np.array(densities)}
                problem.checkpoint.keep(to_leaves(engine, "state", state) | own)
            late = self.max_seconds is not None and time.monotonic() - started > self.max_seconds
            return late and bool(draws)

        step = self._step(engine, gradient, len(problem.weight) / size)
        epochs = itertools.islice(self._epochs(problem, size, rates), first, None)
        if first < len(kept):
            engine.train(step, state, data, epochs, problem.seed + 1, on_epoch, first)
        statistics = {"log_density": np.stack(densities, axis=1)}
        ran = np.flatnonzero(np.cumsum(kept) == len(draws))[0] + 1
        return Chains(np.stack(draws, axis=1), statistics), {"epochs": int(ran), "batch_size": size}

    def _resumed(
        self, problem: FitProblem, state: Drifting
    ) -> tuple[Drifting, int, list[np.ndarray], list[np.ndarray]]:
        """Where an interrupted run with a checkpoint goes on: its state, next epoch, draws and log densities."""
        saved = None if problem.checkpoint is None else problem.checkpoint.begin()
        if not saved:
            return state, 0, [], []
        state = from_leaves(problem.engine, "state", saved, state)
        return state, int(saved["epoch"]), list(saved["draws"]), list(saved["densities"])

    def schedule(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Which epochs end with a draw, and ε of every step, (epochs, steps)."""
        if self.cycles is None:
            kept = np.arange(self.num_warmup + self.num_samples) >= self.num_warmup
            return kept, np.full((len(kept), steps), self.step_size)
        draws = -(-self.num_samples // self.cycles)
        cycle = np.arange(2 * draws) >= draws
        kept = np.tile(cycle, self.cycles) & (np.cumsum(np.tile(cycle, self.cycles)) <= self.num_samples)
        phase = np.arange(2 * draws * steps) / (2 * draws * steps)
        one = 0.5 * self.step_size * (1 + np.cos(math.pi * phase))
        return kept, np.tile(one.reshape(-1, steps), (self.cycles, 1))

    def _step(self, engine: Engine, gradient: Gradient, factor: float) -> Any:
        def step(state: Drifting, batch: Any, key: Any, rate: Array) -> tuple[Drifting, Array]:
            value, slope = gradient(state.position, tuple(batch), factor)
            noise = engine.normal(key, state.position.shape)
            return self.moved(engine, state, slope, noise, rate), engine.xp.mean(value)[None]

        return step

    def _epochs(self, problem: FitProblem, size: int, rates: np.ndarray) -> Any:
        rng = np.random.default_rng(problem.seed)
        for numbers in rates:
            order = rng.permutation(len(problem.weight))[: len(numbers) * size]
            yield order.reshape(len(numbers), size), numbers


@dataclass(frozen=True)
class SGLD(StochasticGradient):
    """Stochastic gradient Langevin dynamics: z ← z + ½ ε² ∇ log p(z) + ε ξ.

    Args:
        num_warmup: epochs before the first draw; none where there are cycles.
        num_samples: draws of each chain, one for an epoch.
        num_chains: independent chains, each from a mode of its own.
        batch_size: rows of a step.
        step_size: ε, in standard deviations of the prior; with cycles the largest.
        cycles: how often ε starts anew and falls like a cosine to 0; draws are taken in the second half of a cycle.
            None: ε stays.
        climb: steps of Adam on the whole data towards a mode before the warm-up.
        max_seconds: limit for all epochs, once there is a draw; None: no limit.

    Raises:
        InvalidInput: a number out of its range.
    """

    num_warmup: int = 100
    num_samples: int = 200

    def moved(self, engine: Engine, state: Drifting, slope: Array, noise: Array, rate: Array) -> Drifting:
        return state._replace(position=state.position + 0.5 * rate * rate * slope + rate * noise)


@dataclass(frozen=True)
class SGHMC(StochasticGradient):
    """Stochastic gradient Hamiltonian Monte Carlo: v ← (1-α) v + ε² ∇ log p(z) + √(2α) ε ξ, z ← z + v.

    Args:
        num_warmup: epochs before the first draw; none where there are cycles.
        num_samples: draws of each chain, one for an epoch.
        num_chains: independent chains, each from a mode of its own.
        batch_size: rows of a step.
        step_size: ε, in standard deviations of the prior; with cycles the largest.
        cycles: how often ε starts anew and falls like a cosine to 0; draws are taken in the second half of a cycle.
            None: ε stays.
        climb: steps of Adam on the whole data towards a mode before the warm-up.
        max_seconds: limit for all epochs, once there is a draw; None: no limit.
        friction: α in (0, 1].

    Raises:
        InvalidInput: a number out of its range.
    """

    num_warmup: int = 100
    num_samples: int = 200
    step_size: float = 0.02
    friction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, ("friction",), float)
        if self.friction > 1:
            raise InvalidInput(f"SGHMC.friction must be in (0, 1], got {self.friction!r}")

    def moved(self, engine: Engine, state: Drifting, slope: Array, noise: Array, rate: Array) -> Drifting:
        kick = rate * rate * slope + math.sqrt(2 * self.friction) * rate * noise
        velocity = (1 - self.friction) * state.velocity + kick
        return Drifting(state.position + velocity, velocity)
