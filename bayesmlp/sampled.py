"""Answers of a posterior that is draws: every network of it, with the likelihood's parameters drawn beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .batches import fixed_size_chunks
from .inference.engines import Engine, NumpyEngine, map_arrays
from .inference.engines.base import stack_trees
from .inference.likelihoods import Likelihood
from .inference.network import Network
from .inference.structures.particles import ParticlesState

__all__ = ["SampledAnswers", "resampled"]

_NUMPY = NumpyEngine()
_NETWORKS_AT_ONCE = 64


class SampledAnswers:
    """Outputs of drawn networks.

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: in the units of the scaled targets.
    """

    def __init__(self, engine: Engine, network: Network, likelihood: Likelihood) -> None:
        self._engine, self._likelihood = engine, likelihood
        self._apply = engine.jit(lambda weights, rows: network.apply(engine, weights, rows))

    def outputs(self, state: ParticlesState, x: np.ndarray) -> np.ndarray:
        """Outputs of every drawn network, (S, N, K), float64.

        Args:
            state: the draws.
            x: scaled inputs.
        """
        return self.outputs_of(state.draws, x)

    def outputs_of(self, weights: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
        """As :meth:`outputs`, of networks given by their weights, (S, ...) of each layer."""
        engine, total, values = self._engine, weights[0].shape[0], []
        chunks = fixed_size_chunks(engine, x)
        for start in range(0, total, _NETWORKS_AT_ONCE):
            index = np.minimum(np.arange(start, start + _NETWORKS_AT_ONCE), total - 1)
            with engine.scope():
                part = tuple(layer[index] for layer in weights)
            parts = [engine.to_numpy(self._apply(part, rows)) for rows in chunks]
            values.append(np.concatenate(parts, axis=1)[: total - start, : len(x)])
        return np.concatenate(values).astype(np.float64)

    def likelihood_states(self, state: ParticlesState) -> Any:
        """The likelihood's state of every draw, stacked."""
        parameters = [self._engine.to_numpy(values) for values in state.parameters]
        if not parameters:
            return ()
        states = [
            self._likelihood.estimated_state(self._likelihood.state_from_fit(row, 1.0))
            for row in zip(*parameters, strict=True)
        ]
        return stack_trees(np.stack, states)

    def log_likelihood(self, state: ParticlesState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of every row under every drawn network, (S, N), in scaled units."""
        outputs = self.outputs(state, x)
        states = map_arrays(lambda array: np.asarray(array)[:, None], self.likelihood_states(state))
        return np.asarray(self._likelihood.log_prob(_NUMPY, outputs, y, states))

    def variance(self, state: ParticlesState, x: np.ndarray) -> np.ndarray:
        """Variance of each output over the draws, (N, K)."""
        shares, outputs = np.exp(self.log_weights(state)), self.outputs(state, x)
        return np.tensordot(shares, (outputs - np.tensordot(shares, outputs, axes=1)) ** 2, axes=1)

    def joint_moments(self, state: ParticlesState, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N, K) and covariance (N·K, N·K) of the outputs over the draws."""
        shares, outputs = np.exp(self.log_weights(state)), self.outputs(state, x)
        mean = np.tensordot(shares, outputs, axes=1)
        centred = (outputs - mean).reshape(len(shares), -1)
        return mean, (centred.T * shares) @ centred

    def deviations(self, state: ParticlesState, mean: Any, count: int, seed: int) -> tuple[Any, Any, int]:
        """As many of the networks, as deviations from a mean: what :class:`FunctionSamples` takes."""
        rows = resampled(self.log_weights(state), count, seed)
        with self._engine.scope():
            return mean, tuple(layer[rows] - m for layer, m in zip(state.draws, mean, strict=True)), count

    def log_weights(self, state: ParticlesState) -> np.ndarray:
        """Of every draw, (S,)."""
        return self._engine.to_numpy(state.log_weights)


def resampled(log_weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of draws by systematic resampling (Kitagawa 1996), (count,).

    Args:
        log_weights: of the draws; their weights add up to 1.
        count: how many.
        seed: of the one random number.
    """
    levels = (np.arange(count) + np.random.default_rng(seed).random()) / count
    cumulated = np.cumsum(np.exp(log_weights))
    return np.minimum(np.searchsorted(cumulated / cumulated[-1], levels), len(log_weights) - 1)
