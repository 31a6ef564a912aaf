"""The contract of a batch method: data in, posterior out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .engines.base import Array, Engine
from .filtering import Posterior
from .likelihoods.base import Likelihood
from .network import Network
from .priors import NormalPrior
from .resuming import Checkpoint
from .structures.base import Structure
from .structures.mixture import Mixture
from .structures.particles import Particles

__all__ = ["FitProblem", "FitResult", "Method", "state_arrays"]


@dataclass(frozen=True)
class FitProblem:
    """What every batch method is given.

    Attributes:
        engine: runs the fit.
        network: the network.
        likelihood: the observation model.
        structure: form of the posterior, resolved for the network.
        prior: of the weights.
        x: inputs (N, I).
        y: prepared targets.
        weight: of each row (N,), on the host.
        seed: of everything random.
        on_epoch: called with epoch, number of epochs, mean objective per row; and a ``note``, if there is one.
        checkpoint: keeps the state of the trainings.
        chains_from: weights (C, ...) of each layer, and likelihood parameters (C,), from which a sampler's chains go
            on; None: from starts of its own.
    """

    engine: Engine
    network: Network
    likelihood: Likelihood
    structure: Structure
    prior: NormalPrior
    x: Array
    y: Array
    weight: np.ndarray
    seed: int
    on_epoch: Callable[..., None] | None = None
    checkpoint: Checkpoint | None = None
    chains_from: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each layer's weights."""
        return self.network.shapes(int(self.x.shape[1]), self.likelihood.num_outputs)

    @property
    def prior_precision(self) -> tuple[np.ndarray, ...]:
        """Of each weight, float64, on the host; the prior mean is 0."""
        return self.network.prior_precision(self.prior, int(self.x.shape[1]), self.likelihood.num_outputs)

    def only(self, rows: np.ndarray) -> FitProblem:
        """The same problem with some of its rows."""
        with self.engine.scope():
            return replace(self, x=self.x[rows], y=self.y[rows], weight=self.weight[rows])

    def start(self, seed: int) -> tuple[np.ndarray, ...]:
        """Initial weights, float64, on the host: the network's own for the problem's seed, others for others."""
        initialise = self.network.initialise if seed == self.seed else self.network.restart
        return initialise(int(self.x.shape[1]), self.likelihood.num_outputs, seed)


@dataclass(frozen=True)
class FitResult:
    """Attributes:
    posterior: the fitted posterior.
    prior: the prior that it was fitted under, which a method may have learned.
    structure: of the posterior, resolved.
    history: objective, log likelihood and complexity per row for each epoch, (epochs, 3).
    details: what the method has to say of itself, by name.
    """

    posterior: Posterior
    prior: NormalPrior
    structure: Structure | Mixture | Particles
    history: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """How a posterior is fitted to a data set."""

    @abstractmethod
    def fit(self, problem: FitProblem) -> FitResult:
        """Fit."""


def state_arrays(engine: Engine, state: Any) -> Any:
    """A likelihood's state as float64 arrays of the engine."""
    arrays = [engine.asarray(value, "float64") for value in state]
    return type(state)(*arrays) if hasattr(state, "_fields") else tuple(arrays)
