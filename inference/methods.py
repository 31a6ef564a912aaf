"""The contract of a batch method: data in, posterior out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engines.base import Array, Engine
from .filtering import Posterior
from .gauss_newton import add_curvature
from .likelihoods.base import Likelihood
from .network import Network
from .objective import TrainingOptions, fit_layers
from .structures.base import Structure

__all__ = ["FitProblem", "FitResult", "Method", "fit_posterior", "state_arrays"]


@dataclass(frozen=True)
class FitProblem:
    """What every batch method is given.

    Attributes:
        engine: runs the fit.
        network: the network.
        likelihood: the observation model.
        structure: form of the posterior, resolved for the network.
        prior_precision: of each weight, float64, on the host; the prior mean is 0.
        start: initial weights, float64, on the host.
        x: inputs (N, I).
        y: prepared targets.
        weight: of each row (N,), on the host.
        seed: of everything random.
        on_epoch: called with epoch, number of epochs, mean objective per row.
    """

    engine: Engine
    network: Network
    likelihood: Likelihood
    structure: Structure
    prior_precision: tuple[np.ndarray, ...]
    start: tuple[np.ndarray, ...]
    x: Array
    y: Array
    weight: np.ndarray
    seed: int
    on_epoch: Callable[[int, int, float], None] | None = None


@dataclass(frozen=True)
class FitResult:
    """Attributes:
    posterior: the fitted posterior.
    history: mean objective per row, for each epoch.
    """

    posterior: Posterior
    history: list[float]


class Method(ABC):
    """How a posterior is fitted to a data set."""

    @abstractmethod
    def fit(self, problem: FitProblem) -> FitResult:
        """Fit."""


def fit_posterior(
    problem: FitProblem, initial_deviations: Sequence[float | None], options: TrainingOptions
) -> FitResult:
    """Train, then put the result into the problem's structure, at unit dispersion.

    Variational layers take the precision of their fitted deviations; point layers take the prior's plus the generalised
    Gauss-Newton curvature of all rows at the fitted means.

    Args:
        problem: what to fit.
        initial_deviations: for each variational layer where its standard deviations start, relative to the prior's;
            None for point layers and for arrays without uncertainty.
        options: how it is trained.
    """
    engine, likelihood = problem.engine, problem.likelihood
    fit = fit_layers(
        engine,
        problem.network,
        likelihood,
        problem.prior_precision,
        initial_deviations,
        problem.start,
        problem.x,
        problem.y,
        engine.asarray(problem.weight),
        options,
        problem.seed,
        problem.on_epoch,
    )
    parameters = [engine.to_numpy(value) for value in fit.likelihood_parameters]
    state = likelihood.state_from_fit(parameters, float(problem.weight.sum()))
    dispersion = float(likelihood.dispersion(state))
    with engine.scope():
        precisions = tuple(
            engine.asarray(prior * dispersion) if deviation is None else dispersion / (deviation * deviation)
            for prior, deviation in zip(problem.prior_precision, fit.standard_deviation, strict=True)
        )
        weights = problem.structure.initial(engine, fit.mean, precisions)
    kinds = zip(initial_deviations, problem.network.layer_methods, strict=True)
    points = [deviation is None and method is not None for deviation, method in kinds]
    if any(points):
        weights = add_curvature(
            engine, problem.network, likelihood, problem.structure, weights, problem.x, problem.weight, points
        )
    return FitResult(Posterior(weights, state_arrays(engine, state)), fit.history)


def state_arrays(engine: Engine, state: Any) -> Any:
    """A likelihood's state as float64 arrays of the engine."""
    arrays = [engine.asarray(value, "float64") for value in state]
    return type(state)(*arrays) if hasattr(state, "_fields") else tuple(arrays)
