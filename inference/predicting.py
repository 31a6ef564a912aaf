"""What the linearised network predicts: moments of its outputs, and the density of y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .engines.base import Array, Engine
from .filtering import Posterior
from .methods import FitProblem
from .network import Network
from .structures.base import Structure

__all__ = ["linearized_outputs", "log_predictive"]

_ROWS_AT_ONCE = 256


def linearized_outputs(
    engine: Engine, network: Network, structure: Structure, weights: Any, x: Array
) -> tuple[Array, Array]:
    """Mean (N, K) and unit-dispersion covariance (N, K, K) of the outputs, to first order around the mean weights."""
    outputs, factors = network.factors(engine, structure.mean(weights), x)
    return outputs, structure.output_covariance(engine, weights, factors)


def log_predictive(problem: FitProblem) -> Callable[[Posterior, np.ndarray], np.ndarray]:
    """``density(posterior, rows)``: log predictive density of the given rows of a problem, (rows,).

    What is returned is compiled once, for as many posteriors in the problem's structure as need it.

    Args:
        problem: whose rows are predicted.
    """
    engine, likelihood, network, structure = problem.engine, problem.likelihood, problem.network, problem.structure

    def predict(posterior: Posterior, x: Array, y: Array) -> Array:
        mean, covariance = linearized_outputs(engine, network, structure, posterior.weights, x)
        covariance = covariance * likelihood.dispersion(posterior.likelihood)
        return engine.in_float64(likelihood.predictive_log_prob, mean, covariance, y, posterior.likelihood)

    compiled = engine.jit(predict)

    def density(posterior: Posterior, rows: np.ndarray) -> np.ndarray:
        values = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            index = np.resize(rows[start : start + _ROWS_AT_ONCE], _ROWS_AT_ONCE)  # one compiled shape
            with engine.scope():
                x, y = problem.x[index], problem.y[index]
            values.append(engine.to_numpy(compiled(posterior, x, y))[: len(rows) - start])
        return np.concatenate(values)

    return density
