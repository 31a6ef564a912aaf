"""From draws to a Gaussian that a filter can go on from, and how far it is from them.

A network's posterior has a mode for every order of its hidden units, so the moments of the weights say little: the
average of two equal networks is another network. What is matched are therefore moments of the function. The mean is
that of a network near one of the draws, moved until its outputs are the draws' average outputs, at the data and
between. (At the mode of the weights a network with many of them fits the noise, which the average does not.) The
covariance is the inverse of the prior's precision plus the curvature of the data there, each multiplied so that the
outputs vary as much as the draws' do, at the data and between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..assembly import Assemble, assembler
from ..engines.base import map_arrays
from ..filtering import Posterior
from ..methods import FitProblem
from ..objective import Parameters
from .chains import Chains
from .climbing import climb
from .target import Data, Gradient, Target

__all__ = ["Asked", "asked_inputs", "function_distance", "function_values", "projected"]

_CANDIDATES = 4
_ROWS_ASKED = 200
_STEPS = 1000
_MATCHES = 12
_NEARNESS = 0.01
_FLOOR = 1e-6
"""Average outputs are matched as if they had been seen with this share of the outputs' variance, plus the floor (in
squared scaled units): the prior only chooses among networks that compute the same."""

_NETWORKS_AT_ONCE = 64

Moments = Callable[[Posterior, Any], tuple[np.ndarray, np.ndarray]]


MOST_COMPARED = 2000
"""Draws that a Gaussian is compared with, of more evenly many of each chain."""
_FOLLOWED = 20_000_000
"""Function values of all draws that effective sample sizes are estimated from, at most."""


def rows_followed(problem: FitProblem, draws: int) -> int:
    """At how many rows of the data all draws' function values are followed for their effective sample sizes."""
    most = _FOLLOWED // (draws * problem.likelihood.num_outputs)
    return min(_ROWS_ASKED, len(problem.weight), max(10, most))


def compared_numbers(problem: FitProblem, draws: int) -> int:
    """Function values that are held at once after the run, with their copies."""
    outputs, rows = problem.likelihood.num_outputs, 3 * min(_ROWS_ASKED, len(problem.weight))
    return outputs * (3 * min(draws, MOST_COMPARED) * rows + 4 * draws * rows_followed(problem, draws))


class Asked(NamedTuple):
    """Attributes:
    x: inputs at which functions are compared, (N, I), of the engine.
    seen: how many of them are rows of the data; they come first.
    """

    x: Any
    seen: int


def asked_inputs(problem: FitProblem) -> Asked:
    """Up to 200 rows of the data, and as many inputs twice that are not: halfway between two rows, and rows moved by
    half a standard deviation. What is learned next is not where the data were. None such where inputs are tokens.
    """
    engine, count = problem.engine, len(problem.weight)
    rows = np.linspace(0, count - 1, min(_ROWS_ASKED, count)).astype(int)
    with engine.scope():
        seen = problem.x[rows]
        if problem.network.num_tokens is not None:
            return Asked(seen, len(rows))
        host, rng = engine.to_numpy(seen), np.random.default_rng(problem.seed)
        middles = 0.5 * (host + rng.permutation(host))
        moved = host + 0.5 * host.std(axis=0) * rng.standard_normal(host.shape)
        return Asked(engine.asarray(np.concatenate([host, middles, moved])), len(rows))


def function_values(target: Target, positions: np.ndarray, x: Any) -> np.ndarray:
    """Outputs at inputs x of the networks at positions (S, D): (S, N, K), float64."""
    engine = target.engine
    key = "function values", target.key
    apply = engine.compiled(key, lambda z, rows: target.network.apply(engine, target.split(z)[0], rows))
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
    problem: FitProblem, target: Target, chains: Chains, asked: Asked, values: np.ndarray
) -> tuple[Posterior, float]:
    """The nearest of a few Gaussians in the problem's structure, and its :func:`function_distance`.

    Args:
        problem: that the draws are of.
        target: their density.
        chains: the draws.
        asked: where functions are compared.
        values: the draws' outputs there, (S, N, K).
    """
    engine, candidates = problem.engine, _candidates(chains)
    average = chains.positions.mean(axis=(0, 1), dtype=np.float64)[target.num_weights :]
    wanted = engine.asarray(values.mean(0)), engine.asarray(_NEARNESS * values.var(0) + _FLOOR)
    nearest = climb(engine, _function_fit(target), candidates, (asked.x, *wanted), _STEPS, ("function", target.key))
    weights, _ = target.networks(engine.to_numpy(nearest).astype(np.float64))
    state = problem.likelihood.state_from_fit(tuple(average), float(problem.weight.sum()))
    fitted = tuple(engine.asarray(np.float64(value)) for value in average)
    moments, assemble = _moments(problem), assembler(problem, [False] * problem.network.num_layers)
    found = []
    for index in range(len(candidates)):
        means = tuple(engine.asarray(layer[index]) for layer in weights)
        found.append(_matched(problem, assemble, Parameters(means, (), fitted), state, moments, asked, values))
    return min(found, key=lambda one: one[1])


def _function_fit(target: Target) -> Gradient:
    """Of networks whose outputs are to be near given means, in units of given variances, under the prior."""
    engine = target.engine

    def fit(moved: Any, data: Data, factor: Any) -> Any:
        _, mean, variance = data
        error = moved[0] - mean
        return -0.5 * factor * engine.xp.sum(error * error / variance)

    return target.gradient(fit)


def _matched(
    problem: FitProblem,
    assemble: Assemble,
    parameters: Parameters,
    state: Any,
    moments: Moments,
    asked: Asked,
    values: np.ndarray,
) -> tuple[Posterior, float]:
    """The Gaussian whose precision is scaled so that its outputs vary as the draws' do, and its distance.

    It is p P + c H = c (p P / c + H), with P the prior's and H the curvature: one compiled program gives it for every p
    and c. At the data the curvature decides how much the outputs vary, elsewhere the prior, under which a linearised
    network varies more than the network itself.
    """
    curvature, prior, wanted = 1.0, 1.0, values.var(0)
    best: tuple[Posterior, float] | None = None
    for _ in range(_MATCHES):
        share = prior / curvature
        unscaled = assemble(parameters, [share * precision for precision in problem.prior_precision], None, state)
        with problem.engine.scope():
            weights = problem.structure.scaled(problem.engine, unscaled.weights, curvature)
        posterior = unscaled._replace(weights=weights)
        mean, variance = moments(posterior, asked.x)
        distance = function_distance(values, mean, variance)
        if best is None or distance < best[1]:
            best = posterior, distance
        curvature *= float(np.clip(variance[: asked.seen].mean() / wanted[: asked.seen].mean(), 0.2, 5.0))
        if asked.seen < len(variance):
            prior *= float(np.clip(variance[asked.seen :].mean() / wanted[asked.seen :].mean(), 0.2, 5.0))
    assert best is not None
    return best


def _candidates(chains: Chains) -> np.ndarray:
    """Positions (c, D) to start from: the draw of highest density of each of the best chains."""
    density = chains.statistics["log_density"]
    best = np.argsort(-density.max(axis=1))[:_CANDIDATES]
    return np.stack([chains.positions[chain, np.argmax(density[chain])] for chain in best])


def _moments(problem: FitProblem) -> Moments:
    """Mean and variance of a posterior's outputs at inputs, linearised at the mean, (N, K)."""
    engine, structure, network = problem.engine, problem.structure, problem.network

    def moments(weights: Any, x: Any) -> Any:
        outputs, factors = network.factors(engine, structure.mean(weights), x)
        return outputs, structure.predictive_variance(engine, weights, factors)

    compiled = engine.compiled(("moments", structure, network), moments)

    def of_posterior(posterior: Posterior, x: Any) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = (engine.to_numpy(part).astype(np.float64) for part in compiled(posterior.weights, x))
        state = map_arrays(engine.to_numpy, posterior.likelihood)
        return mean, variance * float(problem.likelihood.dispersion(state))

    return of_posterior
