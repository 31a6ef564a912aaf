"""From trained parameters to a posterior in the model's structure; what Laplace and variational fits share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .engines.base import Array, Engine, stack_trees, take
from .filtering import Posterior
from .gauss_newton import curvature_of
from .methods import FitProblem, FitResult, Method, state_arrays
from .objective import Parameters, deviations_of
from .priors import NormalPrior
from .steps import Adam, Optimiser
from .structures.mixture import MixtureState
from .training import Trained, TrainingOptions, start_parameters, train

__all__ = ["LayerMethod", "assembler", "fit_members", "mixture_of"]


def prior_arrays(problem: FitProblem) -> tuple[Array, ...]:
    """The prior's precision on the engine."""
    return tuple(problem.engine.asarray(precision) for precision in problem.prior_precision)


def assembler(
    problem: FitProblem, variational: Sequence[bool]
) -> Callable[[Parameters, Sequence[np.ndarray], Any], Posterior]:
    """``assemble(parameters, prior_precision, rows)``: the posterior around trained parameters, at unit dispersion.

    Variational layers take the precision of their fitted deviations; point layers take the prior's plus the generalised
    Gauss-Newton curvature, at the fitted means, of the given rows (indices, or all where None). What is returned is
    compiled once, for as many networks as need it.

    Args:
        problem: whose structure holds the posterior.
        variational: for each layer, whether its weights are variational.
    """
    engine, likelihood, structure = problem.engine, problem.likelihood, problem.structure
    points = [not flag for flag in variational]
    add_curvature = curvature_of(engine, problem.network, likelihood, structure, points)

    def assemble(parameters: Parameters, prior_precision: Sequence[np.ndarray], rows: Any = None) -> Posterior:
        x, weight = problem.x, problem.weight
        if rows is not None:
            with engine.scope():
                x, weight = x[rows], weight[rows]
        fitted = [engine.to_numpy(value) for value in parameters.likelihood]
        state = state_arrays(engine, likelihood.state_from_fit(fitted, float(weight.sum())))
        dispersion = float(likelihood.dispersion(state))
        deviations = deviations_of(engine, parameters, variational)
        with engine.scope():
            precisions = tuple(
                engine.asarray(prior * dispersion) if deviation is None else dispersion / (deviation * deviation)
                for prior, deviation in zip(prior_precision, deviations, strict=True)
            )
            weights = structure.initial(engine, parameters.mean, precisions)
        if any(points):
            weights = add_curvature(weights, x, weight, state)
        return Posterior(weights, state)

    return assemble


class LayerMethod(Method):
    """A method that says for each layer whether its weights are points or variational, and trains them together.

    Attributes:
        training: how the network is trained.
        optimiser: what steps it takes.
        initial_curvature: see :func:`.training.start_parameters`.
    """

    training: TrainingOptions
    optimiser: Optimiser = Adam()
    initial_curvature: float = 0.0

    @abstractmethod
    def deviations(self, num_layers: int) -> list[float | None]:
        """For each variational layer the starting standard deviation of its weights, relative to the prior's; None for
        a layer with point weights, which takes its curvature after the training.
        """

    def fit(self, problem: FitProblem) -> FitResult:
        deviations = self.deviations(problem.network.num_layers)
        variational = [deviation is not None for deviation in deviations]
        start = start_parameters(problem, deviations, problem.seed, self.initial_curvature)
        trained = train(
            problem,
            start,
            prior_arrays(problem),
            variational,
            self.training,
            self.optimiser,
            on_epoch=problem.on_epoch,
        )
        posterior = assembler(problem, variational)(trained.parameters, problem.prior_precision)
        details = {"validation": trained.validation} if trained.validation else {}
        return FitResult(posterior, problem.prior, problem.structure, trained.history, details)


def fit_members(
    method: LayerMethod,
    problem: FitProblem,
    priors: Sequence[NormalPrior],
    seeds: Sequence[int],
    rows: Sequence[np.ndarray] | None = None,
) -> tuple[list[Posterior], Trained]:
    """Train several networks at once, under vmap, and assemble the posterior of each.

    Args:
        method: that each is fitted by.
        problem: what to fit.
        priors: of each network.
        seeds: of the start of each.
        rows: that each is trained on, equally many; all where None.

    Returns:
        A posterior for each network, and the training of all of them.
    """
    deviations = method.deviations(problem.network.num_layers)
    variational = [deviation is not None for deviation in deviations]
    alone = [replace(problem, prior=prior) for prior in priors]
    starts = [
        start_parameters(one, deviations, seed, method.initial_curvature)
        for one, seed in zip(alone, seeds, strict=True)
    ]
    engine, num_rows = problem.engine, len(problem.weight)
    index = np.tile(np.arange(num_rows), (len(priors), 1)) if rows is None else np.stack(rows)
    with engine.scope():
        start = stack_trees(engine.xp.stack, starts)
        precision = stack_trees(engine.xp.stack, [prior_arrays(one) for one in alone])
    trained = train(problem, start, precision, variational, method.training, method.optimiser, index, problem.on_epoch)
    assemble, posteriors = assembler(problem, variational), []
    for member, one in enumerate(alone):
        with engine.scope():
            parameters = take(trained.parameters, member)
        posteriors.append(assemble(parameters, one.prior_precision, None if rows is None else index[member]))
    return posteriors, trained


def mixture_of(engine: Engine, posteriors: Sequence[Posterior], log_weights: np.ndarray) -> Posterior:
    """The weighted mixture of several posteriors of one structure."""
    with engine.scope():
        weights = stack_trees(engine.xp.stack, [posterior.weights for posterior in posteriors])
        likelihood = stack_trees(engine.xp.stack, [posterior.likelihood for posterior in posteriors])
    return Posterior(MixtureState(weights, engine.asarray(log_weights, "float64")), likelihood)
