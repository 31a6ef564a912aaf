"""Is a posterior what it says? Simulation-based calibration of a method, and coverage of answers.

Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration": draw a network from
the prior and data from the network, fit, and rank the truth among posterior draws; over many such runs the ranks are
uniform if the method is exact. Ranks here are of function values, which mean something for a network, and of what the
likelihood learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .inference.engines import NumpyEngine, map_arrays
from .inference.errors import InvalidInput, MissingDependency
from .inference.likelihoods import Gaussian
from .inference.methods import Method
from .inference_data import posterior_draws
from .model import BayesianMLP
from .predictive import Predictive
from .validation import check_inputs

__all__ = ["Calibration", "Coverage", "coverage", "simulation_based_calibration"]

_NUMPY = NumpyEngine()
_DRAWS = 63
_BINS = 8


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truth among posterior draws.

    Attributes:
        names: of the quantities: ``function[i]`` at each input asked about, and ``dispersion``.
        ranks: how many of ``draws`` posterior draws are below the truth, (runs, quantities).
        draws: of each posterior.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    draws: int

    def counts(self, bins: int = _BINS) -> np.ndarray:
        """How many ranks fall into each of equally likely bins, (quantities, bins)."""
        edges = np.linspace(0, self.draws + 1, bins + 1)
        return np.stack([np.histogram(column, edges)[0] for column in self.ranks.T])

    def p_values(self, bins: int = _BINS) -> np.ndarray:
        """Of uniform ranks, by Pearson's χ², for each quantity."""
        from scipy.stats import chisquare

        return np.array([float(chisquare(row).pvalue) for row in self.counts(bins)])

    def passes(self, level: float = 0.001) -> bool:
        """Whether no quantity's p-value is below the level, divided by their number (Bonferroni)."""
        return bool(self.p_values().min() > level / len(self.names))

    def skew(self) -> np.ndarray:
        """Mean rank, from 0 to 1, for each quantity: 0.5 where neither too low nor too high."""
        return np.asarray(self.ranks.mean(0) / self.draws)

    def spread(self) -> np.ndarray:
        """Variance of the ranks in units of the uniform's, for each quantity: above 1 where the posterior is too
        narrow (overconfident), below 1 where it is too wide.
        """
        uniform = ((self.draws + 1) ** 2 - 1) / 12
        return np.asarray(self.ranks.var(0) / uniform)

    def plot(self, path: str | Path) -> None:
        """Write histograms of the ranks, with the range that holds 99% of uniform counts, to an image file."""
        from scipy.stats import binom

        figure = _figure(len(self.names))
        low, high = binom(len(self.ranks), 1 / _BINS).ppf([0.005, 0.995])
        for index, (name, row) in enumerate(zip(self.names, self.counts(), strict=True)):
            axes = figure.add_subplot(1, len(self.names), index + 1)
            axes.axhspan(low, high, color="0.9")
            axes.bar(np.arange(_BINS), row, width=0.9)
            axes.set(title=name, xlabel="rank of the truth", xticks=[])
        figure.savefig(path)


def simulation_based_calibration(
    model: BayesianMLP,
    X: Any,  # noqa: N803
    *,
    method: Method | None,
    asked: Any = None,
    runs: int = 100,
    seed: int = 0,
    on_run: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Ranks of the truth over simulated data sets.

    Args:
        model: whose network, prior, likelihood, structure and engine are meant; it is left as it is. It must not
            standardise, and its likelihood must have nothing to learn but a Gaussian's noise.
        X: inputs of every data set, (rows, inputs).
        method: fits each; None: the online updater's step, row after row from the prior.
        asked: inputs at which function values are ranked; None: the first three of X.
        runs: data sets.
        seed: of the simulations, and of each fit.
        on_run: called with the run and the number of runs after each.

    Raises:
        InvalidInput: a model that this is not for, or bad inputs.
    """
    likelihood = model.likelihood
    if model.standardize:
        raise InvalidInput("model must have standardize=False: a scaling is estimated, which no prior says")
    if model.network.engine_name is not None:
        raise InvalidInput(f"network must be one that runs on every engine, got {model.network!r}")
    if likelihood.fit_parameters() and not isinstance(likelihood, Gaussian):
        raise InvalidInput(f"likelihood must learn nothing but a Gaussian's noise, got {likelihood}")
    if not isinstance(runs, int | np.integer) or runs < 1:
        raise InvalidInput(f"runs must be an integer of at least 1, got {runs!r}")
    x = check_inputs(X, None, network=model.network)
    at = x[:3] if asked is None else check_inputs(asked, x.shape[1], "asked", model.network)
    ranks = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        own_seed = seed + 1000 * run
        truth, state = _from_prior(model, x.shape[1], rng, own_seed if method is None else None)
        y = likelihood.draw(rng, _outputs(model, truth, x), state)
        fitted = _fitted(model, x, y, method, own_seed)
        values, states = _posterior(fitted, at, seed + run)
        known = [np.ravel(_outputs(model, truth, at))]
        if likelihood.fit_parameters():
            known.append(np.ravel(likelihood.dispersion(state)))
            values = np.concatenate([values, np.reshape(likelihood.dispersion(states), (-1, 1))], axis=1)
        ranks.append(np.sum(values < np.concatenate(known), axis=0))
        if on_run is not None:
            on_run(run, runs)
    names = [f"function[{i}]" for i in range(len(at) * likelihood.num_outputs)]
    names += ["dispersion"] if likelihood.fit_parameters() else []
    return Calibration(tuple(names), np.stack(ranks), _DRAWS)


def _from_prior(model: BayesianMLP, num_inputs: int, rng: np.random.Generator, start: int | None) -> tuple[Any, Any]:
    """Weights, and what the likelihood would have to learn; a stream's prior is around the start of that seed."""
    network, outputs, likelihood = model.network, model.likelihood.num_outputs, model.likelihood
    precision = network.prior_precision(model.prior, num_inputs, outputs)
    state = likelihood.draw_state(rng, likelihood.initial_state())
    # The filter's prior is normal given the dispersion, with the precision at what the likelihood starts from.
    spread = 1.0
    if start is not None:
        spread = float(likelihood.dispersion(state)) / float(likelihood.dispersion(likelihood.initial_state()))
    weights = [np.sqrt(spread / p) * rng.standard_normal(p.shape) for p in precision]
    if start is not None:
        centre = network.initialise(num_inputs, outputs, start)
        weights = [mean + deviation for mean, deviation in zip(centre, weights, strict=True)]
    return tuple(weights), state


def _outputs(model: BayesianMLP, weights: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.network.apply(_NUMPY, weights, x))


def _fitted(model: BayesianMLP, x: np.ndarray, y: np.ndarray, method: Method | None, seed: int) -> BayesianMLP:
    spec = {**model.spec(), "seed": seed}
    own = BayesianMLP.from_parts(spec, {}, model.engine, model.network)
    if method is None:
        own.update_each(x, y)
        return own
    return own.fit(x, y, method=method, progress=False)


def _posterior(model: BayesianMLP, x: np.ndarray, seed: int) -> tuple[np.ndarray, Any]:
    """Function values of posterior draws, (draws, quantities), and the likelihood's states with them."""
    _, weights, states = posterior_draws(model, 4 * (_DRAWS // 4 + 1), seed)
    chosen = np.linspace(0, len(weights[0]) - 1, _DRAWS).round().astype(int)
    values = model.network_outputs(tuple(layer[chosen] for layer in weights), model.scaling.inputs(x))
    return values.reshape(_DRAWS, -1), map_arrays(lambda array: np.asarray(array)[chosen], states)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often central intervals hold the targets.

    Attributes:
        levels: of the intervals, (L,).
        held: share of the targets that each holds, (L,).
        rows: targets.
    """

    levels: np.ndarray
    held: np.ndarray
    rows: int

    def plot(self, path: str | Path) -> None:
        """Write the curve, with the range of two binomial standard errors around the diagonal, to an image file."""
        figure = _figure(1)
        axes = figure.add_subplot(1, 1, 1)
        error = 2 * np.sqrt(self.levels * (1 - self.levels) / self.rows)
        axes.fill_between(self.levels, self.levels - error, self.levels + error, color="0.9")
        axes.plot(self.levels, self.held, marker="o")
        axes.set(xlabel="level of the interval", ylabel="share of targets in it", xlim=(0, 1), ylim=(0, 1))
        figure.savefig(path)


def coverage(answer: Predictive, y: Any, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Coverage:
    """Coverage of the central intervals of an answer.

    Args:
        answer: for numeric targets.
        y: the targets.
        levels: between 0 and 1.

    Raises:
        InvalidInput: targets of another number of rows, or a level out of range.
    """
    targets = np.ravel(np.asarray(y, dtype=np.float64))
    held = []
    for level in levels:
        low, high = (np.ravel(bound) for bound in answer.interval(level))
        if len(low) != len(targets):
            raise InvalidInput(f"y must have {len(low)} numbers, as the answer, got {len(targets)}")
        held.append(np.mean((low <= targets) & (targets <= high)))
    return Coverage(np.asarray(levels, dtype=np.float64), np.array(held), len(targets))


def _figure(panels: int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plots") from error
    return Figure(figsize=(2.2 * panels + 1, 2.4), layout="constrained")
