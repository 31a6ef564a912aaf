"""From draws to a Gaussian that a filter can go on from, and how far it is from them.

A network's posterior has a mode for every order of its hidden units, so the moments of the weights say little: the
average of two equal networks is another network. The Gaussian is therefore one that belongs to a mode: from a few of
the draws one climbs to the modes they lead to, with the likelihood's parameters at their average over the draws, takes
the curvature there (as Laplace's method does), and keeps the one whose functions are nearest to those of all draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..assembly import assembler
from ..engines.base import Engine, map_arrays
from ..filtering import Posterior
from ..methods import FitProblem
from ..objective import Parameters
from ..structures.base import Structure
from .chains import Chains
from .climbing import climb
from .target import Data, Gradient, Target, data_of

__all__ = ["function_distance", "function_values", "projected"]

_CANDIDATES = 4
_STEPS = 1000
_NETWORKS_AT_ONCE = 64


def function_values(target: Target, positions: np.ndarray, x: Any) -> np.ndarray:
    """Outputs at inputs x of the networks at positions (S, D): (S, N, K), float64."""
    engine = target.engine
    apply = engine.jit(lambda z, rows: target.network.apply(engine, target.split(z)[0], rows))
    values = []
    for start in range(0, len(positions), _NETWORKS_AT_ONCE):
        part = positions[start : start + _NETWORKS_AT_ONCE]
        missing = _NETWORKS_AT_ONCE - len(part)
        padded = np.concatenate([part, np.repeat(part[:1], missing, axis=0)]) if missing else part
        values.append(engine.to_numpy(apply(engine.asarray(padded * target.scale), x))[: len(part)])
    return np.concatenate(values).astype(np.float64)


def function_distance(values: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Wasserstein distance between draws of the outputs and normal outputs, averaged over rows and outputs.

    Args:
        values: draws, (S, N, K).
        mean: of the normals, (N, K).
        variance: of the normals, (N, K).
    """
    from scipy.special import ndtri

    levels = ndtri((np.arange(len(values)) + 0.5) / len(values))[:, None, None]
    return float(np.mean(np.abs(np.sort(values, axis=0) - (mean + np.sqrt(variance) * levels))))


def projected(
    problem: FitProblem, target: Target, chains: Chains, x: Any, values: np.ndarray
) -> tuple[Posterior, float]:
    """The nearest of a few Gaussians, in the problem's structure, and its :func:`function_distance`.

    Args:
        problem: that the draws are of.
        target: their density.
        chains: the draws.
        x: inputs at which functions are compared.
        values: the draws' outputs there, (S, N, K).
    """
    engine, candidates = problem.engine, _candidates(chains)
    average = chains.positions.mean(axis=(0, 1), dtype=np.float64)[target.num_weights :]
    candidates[:, target.num_weights :] = average
    modes = climb(engine, _of_weights(target), candidates, data_of(problem), _STEPS)
    weights, _ = target.networks(engine.to_numpy(modes).astype(np.float64))
    state = problem.likelihood.state_from_fit(tuple(average), float(problem.weight.sum()))
    fitted = tuple(engine.asarray(np.float64(value)) for value in average)
    assemble = assembler(problem, [False] * problem.network.num_layers)
    best: tuple[float, Posterior] | None = None
    for index in range(len(candidates)):
        means = tuple(engine.asarray(layer[index]) for layer in weights)
        posterior = assemble(Parameters(means, (), fitted), problem.prior_precision, None, state)
        distance = function_distance(values, *_moments(problem, posterior, x))
        if best is None or distance < best[0]:
            best = distance, posterior
    assert best is not None
    return best[1], best[0]


def _of_weights(target: Target) -> Gradient:
    """The gradient with the likelihood's parameters held: at a joint mode a network with enough weights fits the noise
    too, and leaves none.
    """
    engine, gradient = target.engine, target.gradient()
    is_weight = engine.asarray((np.arange(target.size) < target.num_weights).astype(np.float64))

    def of_weights(position: Any, data: Data, factor: Any = 1.0) -> tuple[Any, Any]:
        value, slope = gradient(position, data, factor)
        return value, slope * is_weight

    return of_weights


def _candidates(chains: Chains) -> np.ndarray:
    """Positions (c, D) to climb from: the draw of highest density of each of the best chains."""
    density = chains.statistics["log_density"]
    best = np.argsort(-density.max(axis=1))[:_CANDIDATES]
    return np.stack([chains.positions[chain, np.argmax(density[chain])] for chain in best])


def _moments(problem: FitProblem, posterior: Posterior, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the outputs, linearised at the mean, (N, K)."""
    engine: Engine = problem.engine
    structure: Structure = problem.structure
    state = map_arrays(engine.to_numpy, posterior.likelihood)

    def moments(weights: Any, rows: Any) -> Any:
        outputs, factors = problem.network.factors(engine, structure.mean(weights), rows)
        return outputs, structure.predictive_variance(engine, weights, factors)

    mean, variance = (engine.to_numpy(part) for part in engine.jit(moments)(posterior.weights, x))
    return mean, variance * float(problem.likelihood.dispersion(state))
