"""What all samplers share: a start, a warm-up, draws; then particles, and the Gaussian that stands for them."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidInput, NumericalFailure
from ..filtering import Posterior
from ..methods import FitProblem, FitResult, Method
from ..structures.particles import Particles, ParticlesState
from .chains import Chains, check_memory
from .climbing import climb
from .effective import effective_sample_size, split_rhat
from .projection import (
    MOST_COMPARED,
    asked_inputs,
    compared_numbers,
    function_values,
    projected,
    rows_followed,
)
from .target import Target, data_of, target_of

__all__ = ["Sampler", "check_fraction", "check_positive"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampler(Method):
    """Draws from the posterior.

    Attributes:
        num_warmup: steps of each chain before its first draw.
        num_samples: draws of each chain that are kept.
        num_chains: independent chains; at least 2 for R-hat.
    """

    num_warmup: int = 1000
    num_samples: int = 500
    num_chains: int = 4

    counts: ClassVar[tuple[str, ...]] = ("num_warmup", "num_samples", "num_chains")
    """Arguments that are positive integers."""

    def __post_init__(self) -> None:
        check_positive(self, self.counts, int)

    @abstractmethod
    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        """The draws, and what the sampler tuned."""

    def starts(self, problem: FitProblem, target: Target, steps: int) -> Any:
        """Positions (C, D) of the chains: those that they go on from, or near a mode of each one's own.

        Args:
            problem: what to sample.
            target: its density.
            steps: of the climb to a mode.
        """
        if problem.chains_from is not None:
            return problem.engine.asarray(target.join(*problem.chains_from)[: self.num_chains] / target.scale)
        own = target.starts([problem.start(problem.seed + chain) for chain in range(self.num_chains)])
        return climb(problem.engine, target.gradient(), own, data_of(problem), steps, target.key)

    def fit(self, problem: FitProblem) -> FitResult:
        target = target_of(problem)
        draws = self.num_samples + self.num_warmup // 16
        stored_bytes = check_memory(
            self.num_chains, draws, target.size, compared_numbers(problem, self.num_samples * self.num_chains)
        )
        _log.info(
            "%d chains of %d numbers, %d draws of each to keep: %.1f MB",
            self.num_chains, target.size, self.num_samples, stored_bytes / 1e6,
        )  # fmt: skip
        chains, tuned = self.run(problem, target)
        if not np.isfinite(chains.positions).all():
            raise NumericalFailure(f"{type(self).__name__} left the finite numbers: {tuned}")
        return as_particles(problem, target, chains, {**tuned, "bytes": stored_bytes})


def as_particles(problem: FitProblem, target: Target, chains: Chains, details: dict[str, Any]) -> FitResult:
    """Draws as a posterior, with the Gaussian that an update goes on from."""
    engine, (count, size, _) = problem.engine, chains.positions.shape
    asked = asked_inputs(problem)
    flat = chains.positions.reshape(count * size, -1)
    some = np.linspace(0, len(flat) - 1, min(len(flat), MOST_COMPARED)).astype(int)
    values = function_values(target, flat[some], asked.x)
    gaussian, distance = projected(problem, target, chains, asked, values)
    weights, parameters = target.networks(flat)
    state = ParticlesState(
        tuple(engine.asarray(layer, engine.dtype) for layer in weights),
        tuple(engine.asarray(value, "float64") for value in parameters),
        engine.asarray(np.full(count * size, -math.log(count * size)), "float64"),
        gaussian.weights,
        engine.asarray(np.float64(distance), "float64"),
    )
    if size >= 4:
        if len(some) == len(flat):
            each = values[:, : asked.seen].reshape(count, size, -1)
        else:
            rows = np.linspace(0, asked.seen - 1, rows_followed(problem, len(flat))).astype(int)
            each = function_values(target, flat, asked.x[rows]).reshape(count, size, -1)
        squares = (each - each.mean(axis=(0, 1))) ** 2
        sizes = np.minimum(effective_sample_size(each), effective_sample_size(squares))
        details = {**details, "effective_size": sizes, "rhat": np.maximum(split_rhat(each), split_rhat(squares))}
    details = {**details, "distance": distance, "sample_stats": chains.statistics}
    fit = -chains.statistics["log_density"].mean(axis=0) / float(problem.weight.sum())
    history = np.stack([fit, np.full_like(fit, np.nan), np.full_like(fit, np.nan)], axis=1)
    posterior = Posterior(state, gaussian.likelihood)
    return FitResult(posterior, problem.prior, Particles(problem.structure, count, size), history, details)


def check_fraction(instance: Any, name: str) -> None:
    """Raise :class:`InvalidInput` unless the attribute is a number above 0 and below 1."""
    check_positive(instance, (name,), float)
    if getattr(instance, name) >= 1:
        raise InvalidInput(f"{type(instance).__name__}.{name} must be between 0 and 1, got {getattr(instance, name)!r}")


def check_positive(instance: Any, names: tuple[str, ...], kind: type) -> None:
    """Raise :class:`InvalidInput` unless the attributes are positive and finite, and integers where ``kind`` is int."""
    for name in names:
        value = getattr(instance, name)
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        is_kind = kind is not int or isinstance(value, int | np.integer)
        if not number or not is_kind or not 0 < value < math.inf:
            what = "an integer of at least 1" if kind is int else "a positive number"
            raise InvalidInput(f"{type(instance).__name__}.{name} must be {what}, got {value!r}")
