"""The contract of an observation model: what turns the network's outputs into a distribution of y.

Outputs are natural inputs: mean, logits, log rate. All methods are array mathematics over ``engine.xp`` and broadcast
over leading axes of ``outputs``. A likelihood may carry state that learns beside the weights (the noise of
:class:`~.gaussian.Gaussian`): then the weights' posterior is held at *unit dispersion*, that is θ | φ ~ N(m, φ Λ⁻¹),
and ``dispersion(state)`` estimates φ. Where there is none, φ = 1 and the two views are one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from ..quadrature import normal_nodes

__all__ = ["Likelihood", "invalid_target"]


def invalid_target(argument: str, expected: str, got: object) -> InvalidInput:
    """The error for a target that is not what the likelihood expects."""
    return InvalidInput(f"{argument} must be {expected}, got {got}")


class Likelihood(ABC):
    """An observation model p(y | outputs)."""

    num_outputs: int

    scales_targets: bool = False
    """Whether targets are numbers that may be standardised."""

    @property
    def shares_target_scale(self) -> bool:
        """Whether all targets must be scaled alike."""
        return False

    def in_units_of(self, target_scale: np.ndarray) -> Likelihood:
        """The same observation model for targets that are divided by ``target_scale``, (K,)."""
        return self

    # -- the edge: NumPy ------------------------------------------------------------------------------------------
    @abstractmethod
    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        """Targets as the array that the other methods take, checked.

        Raises:
            InvalidInput: names the argument, what was expected and what came.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        """One y for each row of outputs (..., K)."""

    # -- state ----------------------------------------------------------------------------------------------------
    def initial_state(self) -> Any:
        """State before any data, as a named tuple of float64 scalars; ``()`` where there is none."""
        return ()

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        """State after a batch fit that ended at ``parameters`` (see :meth:`fit_parameters`)."""
        return ()

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        """State from its arrays, in order."""
        return tuple(arrays)

    def dispersion(self, state: Any) -> Any:
        """φ: the factor between unit-dispersion covariances and covariances in the units of the outputs."""
        return 1.0

    def update_state(
        self, engine: Engine, state: Any, outputs: Array, covariance: Array, y: Array, weight: Array
    ) -> Any:
        """State after observing a batch, given the outputs' unit-dispersion covariance (N K, N K) before it."""
        return state

    def state_information(self, engine: Engine, new: Any, old: Any) -> Any:
        """Information (nats) gained by the state itself."""
        return 0.0

    # -- densities ------------------------------------------------------------------------------------------------
    @abstractmethod
    def unit_log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array) -> Float[Array, "*S N"]:
        """Log p(y | outputs) at unit dispersion."""

    @abstractmethod
    def unit_score(self, engine: Engine, outputs: Float[Array, "N K"], y: Array) -> Float[Array, "N K"]:
        """Gradient of :meth:`unit_log_prob` with respect to the outputs."""

    @abstractmethod
    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"]) -> Float[Array, "N K R"]:
        """L with L Lᵀ the Fisher information of the outputs at unit dispersion."""

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        """Log probability, score and Fisher factor at unit dispersion; override it where they share work."""
        return (
            self.unit_log_prob(engine, outputs, y),
            self.unit_score(engine, outputs, y),
            self.fisher_factor(engine, outputs),
        )

    def log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any) -> Float[Array, "*S N"]:
        """Log p(y | outputs, state)."""
        return self.unit_log_prob(engine, outputs, y)

    @abstractmethod
    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"]) -> Array:
        """E[y | outputs]: for classes, their probabilities."""

    @abstractmethod
    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """Var[y | outputs], elementwise: for classes, that of the indicators."""

    # -- fitting --------------------------------------------------------------------------------------------------
    def fit_parameters(self) -> tuple[float, ...]:
        """Starting values of what is fitted beside the weights."""
        return ()

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        """Log p(y | outputs, parameters), shape (N,)."""
        return self.unit_log_prob(engine, outputs, y)

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        """Log p(parameters)."""
        return 0.0

    # -- predictive -----------------------------------------------------------------------------------------------
    def output_nodes(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"]
    ) -> tuple[Float[Array, "S N K"], Float[Array, " S"]]:
        """Nodes and weights for expectations under outputs ~ N(mean, covariance)."""
        xp = engine.xp
        size = mean.shape[-1]
        host_nodes, host_weights = normal_nodes(size)
        nodes = engine.constant(host_nodes, mean)
        weights = engine.constant(host_weights, mean)
        jitter = 1e-10 if mean.dtype == xp.float64 else 1e-6
        scale = xp.sum(covariance * covariance, axis=(-2, -1), keepdims=True)
        floor = (jitter * xp.sqrt(scale + jitter)) * engine.eye(size, mean)
        factor, ok = engine.cholesky(covariance + floor)
        # A covariance of deficient rank that float32 has rounded is indefinite beyond float64's floor.
        safe, _ = engine.cholesky(covariance + floor * (1e-6 / jitter))
        factor = xp.where(ok, factor, safe)
        return mean + xp.permute_dims(nodes @ factor.mT, (1, 0, 2)), weights

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"], y: Array, state: Any
    ) -> Float[Array, " N"]:
        """Log ∫ p(y | outputs) N(outputs; mean, covariance), by the nodes of :meth:`output_nodes`."""
        outputs, weights = self.output_nodes(engine, mean, covariance)
        log_weights = engine.xp.log(weights)[:, None]
        return engine.logsumexp(log_weights + self.log_prob(engine, outputs, y, state), axis=0)
