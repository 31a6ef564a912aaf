"""Steps of the training loop: a gradient at fresh noise, and what an optimizer makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from . import ivon
from .checks import is_number
from .engines.base import Array, map_arrays
from .errors import InvalidInput
from .methods import FitProblem
from .objective import Parameters, Terms, WeightPrior, gradient_of, normal_kl

__all__ = ["IVON", "Adam", "Optimizer", "Step", "StepState", "optimizer_named"]

Step = Callable[["StepState", Sequence[Array], Any, Array], tuple["StepState", Array]]


class StepState(NamedTuple):
    """Attributes:
    parameters: that are fitted, such as :class:`Parameters`; with several networks at once, with a leading axis.
    prior: of the weights.
    memory: of the optimizer.
    """

    parameters: Any
    prior: WeightPrior
    memory: Any


class Optimizer(ABC):
    """Turns gradients into steps.

    Attributes:
        learning_rate: peak of the schedule unless the training says another.
        initial_curvature: κ of the start, see :func:`.training.start_parameters`, unless the method says another.
    """

    learning_rate: ClassVar[float] = 5e-3
    initial_curvature: ClassVar[float] = 0.0

    @abstractmethod
    def memory(self, problem: FitProblem, parameters: Parameters, prior: Any, variational: Sequence[bool]) -> Any:
        """What it remembers, before the first step."""

    @abstractmethod
    def step(self, problem: FitProblem, variational: Sequence[bool], rows: np.ndarray) -> Step:
        """The step of :meth:`Engine.train`, which reports :class:`Terms`; its numbers are learning rate and β.

        Args:
            problem: what to fit.
            variational: for each layer, whether its weights are variational.
            rows: indices of the rows to learn from, (n,), or (members, n) for several networks at once.
        """


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam on means and standard deviations, with local reparametrisation.

    Kingma and Ba (2015). A step of Adam is about as long as its learning rate, whatever the gradient: the standard
    deviations climb at that speed until the bound holds them, for a network of many more weights than rows to nearly
    the prior's, where it underfits (Trippe and Turner 2018, "Overpruning in variational Bayesian neural networks").
    Moving them slowly keeps the fit near where they start.

    Args:
        deviation_rate: learning rate of the logarithms of the standard deviations, relative to that of the means.
    """

    deviation_rate: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.deviation_rate) or self.deviation_rate <= 0:
            raise InvalidInput(f"Adam.deviation_rate must be positive, got {self.deviation_rate!r}")

    def memory(self, problem: FitProblem, parameters: Parameters, prior: Any, variational: Sequence[bool]) -> Any:
        engine = problem.engine
        rest = parameters._replace(log_deviation=())
        return engine.adam_moments(rest), engine.adam_moments(parameters.log_deviation)

    def step(self, problem: FitProblem, variational: Sequence[bool], rows: np.ndarray) -> Step:
        engine = problem.engine
        gradient_at = _gradient_of(problem, variational, rows)

        def step(state: StepState, batch: Sequence[Array], key: Any, numbers: Array) -> tuple[StepState, Array]:
            parameters, (moments, of_deviations) = state.parameters, state.memory
            leading, count = batch[0].shape[: rows.ndim - 1], batch[0].shape[rows.ndim - 1]
            shapes = [(*leading, *shape) for shape in problem.network.noise_shapes(count, parameters.mean)]
            noise = _draws(engine, key, shapes, variational)
            terms, gradient = gradient_at(parameters, state.prior, batch, noise, numbers[1])
            deviations, slow = parameters.log_deviation, numbers[0] * self.deviation_rate
            moved, moments = engine.adam(
                parameters._replace(log_deviation=()), gradient._replace(log_deviation=()), moments, numbers[0]
            )
            deviations, of_deviations = engine.adam(deviations, gradient.log_deviation, of_deviations, slow)
            parameters = moved._replace(log_deviation=deviations)
            return StepState(parameters, state.prior, (moments, of_deviations)), _stacked(engine, terms)

        return step


@dataclass(frozen=True)
class IVON(Optimizer):
    """IVON for layers with variational weights, Adam for everything else; see :mod:`.ivon`.

    The learning rate is in units of Newton steps: 0.05 to 0.5, and 0.5 unless told. The curvature moves slowly, so that
    it must not start far below its true size, or steps are too long: the deviations start narrow, with an
    ``initial_curvature`` of 1 unless told.

    Args:
        momentum_decay: β₁, in [0, 1).
        curvature_decay: β₂, in [0, 1): the posterior's precision adapts over about 1 / (1 - β₂) steps.
        adam_rate: learning rate of Adam for everything else, relative to that of the Newton steps.
    """

    learning_rate: ClassVar[float] = 0.5
    initial_curvature: ClassVar[float] = 1.0

    momentum_decay: float = 0.9
    curvature_decay: float = 0.99999
    adam_rate: float = 0.02

    def __post_init__(self) -> None:
        if not is_number(self.adam_rate) or self.adam_rate <= 0:
            raise InvalidInput(f"IVON.adam_rate must be positive, got {self.adam_rate!r}")
        for name in ("momentum_decay", "curvature_decay"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise InvalidInput(f"IVON.{name} must be in [0, 1), got {getattr(self, name)!r}")

    def memory(self, problem: FitProblem, parameters: Parameters, prior: Any, variational: Sequence[bool]) -> Any:
        engine = problem.engine
        with engine.scope():
            deviations = map_arrays(engine.xp.exp, parameters.log_deviation)
            state = ivon.init(
                engine.xp,
                _chosen(parameters.mean, variational),
                deviations,
                _chosen(prior, variational),
                float(problem.x.shape[0]),
                engine.asarray(np.float64(0)),
            )
        return state, engine.adam_moments(self._others(parameters, variational))

    def _others(self, parameters: Parameters, variational: Sequence[bool]) -> tuple[Any, Any]:
        """What Adam moves."""
        return _chosen(parameters.mean, [not flag for flag in variational]), parameters.likelihood

    def step(self, problem: FitProblem, variational: Sequence[bool], rows: np.ndarray) -> Step:
        engine, xp, num_rows = problem.engine, problem.engine.xp, float(rows.shape[-1])
        points, members = [not flag for flag in variational], rows.size / rows.shape[-1]
        gradient_at = _gradient_of(problem, [False] * len(variational), rows)

        def step(state: StepState, batch: Sequence[Array], key: Any, numbers: Array) -> tuple[StepState, Array]:
            parameters, (own, moments) = state.parameters, state.memory
            prior = _chosen(state.prior.precision, variational)
            effective = num_rows / xp.astype(numbers[1], parameters.mean[0].dtype)  # rows of the tempered posterior
            noise = _draws(engine, key, [mean.shape for mean in parameters.mean], variational)
            drawn = ivon.sample(xp, own, prior, effective, noise)
            sampled = Parameters(_merged(parameters.mean, drawn, variational), (), parameters.likelihood)
            flat = _merged(state.prior.precision, map_arrays(xp.zeros_like, prior), variational)
            terms, gradient = gradient_at(sampled, state.prior._replace(precision=flat), batch, (), numbers[1])
            own = ivon.update(
                xp, own, _chosen(gradient.mean, variational), noise, prior, effective, numbers[0],
                self.momentum_decay, self.curvature_decay,
            )  # fmt: skip
            (others, likelihood), moments = engine.adam(
                self._others(parameters, variational),
                self._others(gradient, variational),
                moments,
                numbers[0] * self.adam_rate,
            )
            deviation = ivon.deviation(xp, own, prior, effective)
            log_deviation = map_arrays(xp.log, deviation)
            means = _merged(_merged(parameters.mean, own.mean, variational), others, points)
            share = numbers[1] / (num_rows * members)
            determinants = _chosen(state.prior.log_determinant, variational)
            layers = zip(own.mean, deviation, log_deviation, prior, determinants, strict=True)
            divergence = share * sum(
                normal_kl(xp, m, s * s, log_s, p, xp.sum(total)) for m, s, log_s, p, total in layers
            )
            terms = Terms(terms.objective + divergence, terms.log_likelihood, terms.complexity + divergence)
            moved = Parameters(means, log_deviation, likelihood)
            return StepState(moved, state.prior, (own, moments)), _stacked(engine, terms)

        return step


def optimizer_named(optimizer: Optimizer | str) -> Optimizer:
    """An optimizer, or the one of that name with its usual settings: ``"adam"`` or ``"ivon"``.

    Raises:
        InvalidInput: another name.
    """
    named = {"adam": Adam, "ivon": IVON}
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer not in named:
        raise InvalidInput(f"optimizer must be 'adam', 'ivon', Adam(...) or IVON(...), got {optimizer!r}")
    return named[optimizer]()


def _gradient_of(problem: FitProblem, variational: Sequence[bool], rows: np.ndarray) -> Any:
    """The objective's terms and gradient, of one network or of several."""
    num_rows = float(rows.shape[-1])
    return gradient_of(problem.engine, problem.network, problem.likelihood, variational, num_rows, rows.ndim == 2)


def _draws(engine: Any, key: Any, shapes: Sequence[tuple[int, ...]], variational: Sequence[bool]) -> tuple[Array, ...]:
    """Standard normal draws for the variational layers."""
    return tuple(
        engine.normal(engine.fold_in(key, index), shape)
        for index, (shape, flag) in enumerate(zip(shapes, variational, strict=True))
        if flag
    )


def _chosen(layers: Sequence[Array], flags: Sequence[bool]) -> tuple[Array, ...]:
    return tuple(layer for layer, flag in zip(layers, flags, strict=True) if flag)


def _merged(layers: Sequence[Array], new: Sequence[Array], flags: Sequence[bool]) -> tuple[Array, ...]:
    """The layers, with new ones where the flags say so."""
    rest = iter(new)
    return tuple(next(rest) if flag else layer for layer, flag in zip(layers, flags, strict=True))


def _stacked(engine: Any, terms: Terms) -> Array:
    return engine.xp.stack(list(terms))
