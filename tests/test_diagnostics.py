"""Calibration checks: of exact posteriors, of posteriors that are known to be wrong, and of the samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bayesmlp as bm
from bayesmlp.diagnostics import Calibration, coverage, simulation_based_calibration
from bayesmlp.inference.errors import InvalidInput

SMALL = bm.MLP((3,), "tanh")


def linear(likelihood: Any, **options: Any) -> bm.BayesianMLP:
    return bm.BayesianMLP(
        bm.MLP(()), likelihood, structure=bm.Full(), engine="numpy", dtype="float64", standardize=False, **options
    )


def inputs(rows: int, columns: int = 2) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((rows, columns))


@pytest.mark.parametrize("likelihood", [bm.Gaussian(noise_variance=0.3), bm.Gaussian(prior_shape=3.0)], ids=repr)
def test_an_exact_posterior_is_calibrated(likelihood: Any) -> None:
    """The filter on a linear model, whose prior is around its start, with known and with learned noise."""
    result = simulation_based_calibration(linear(likelihood), inputs(20), method=None, runs=200, seed=1)
    assert result.passes()
    assert np.all(np.abs(result.skew() - 0.5) < 5 * np.sqrt(1 / 12 / 200))
    assert np.all(np.abs(result.spread() - 1) < 5 * np.sqrt(0.8 / 200))  # kurtosis 1.8 of a uniform
    assert result.ranks.shape == (200, 3 if likelihood.noise_variance else 4)


def test_a_wrong_posterior_is_found_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    narrow = Calibration(("a",), np.clip(rng.normal(31, 40, (300, 1)), 0, 63).astype(int), 63)
    assert not narrow.passes()
    assert narrow.spread()[0] > 1.5
    shifted = Calibration(("a", "b"), np.stack([rng.integers(0, 64, 300), rng.integers(20, 64, 300)], 1), 63)
    assert shifted.p_values()[0] > 0.001
    assert not shifted.passes()
    shifted.plot(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "method"),
    [
        ("jax", bm.NUTS(num_warmup=150, num_samples=150, num_chains=2, max_tree_depth=6)),
        ("torch", bm.MCLMC(num_warmup=200, num_samples=60, num_chains=4, thinning=5, climb=60, energy_error=1e-4)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_samplers_of_a_network_are_calibrated(engine: str, method: Any) -> None:
    """p > 0.001 with Bonferroni's correction."""
    model = bm.BayesianMLP(SMALL, bm.Gaussian(prior_shape=3.0, prior_rate=1.0), engine=engine, standardize=False)
    runs = 100 if engine == "jax" else 32  # torch takes three times as long; benchmarks/calibration.py has it in full
    assert simulation_based_calibration(model, inputs(15), method=method, runs=runs, seed=2).passes()


def test_coverage_of_intervals(tmp_path: Path) -> None:
    model = linear(bm.Gaussian(noise_variance=0.3))
    rng = np.random.default_rng(7)
    x = inputs(2200)
    y = x @ [1.0, -1.0] + np.sqrt(0.3) * rng.standard_normal(len(x))
    model.update(x[:200], y[:200])
    held = coverage(model.predict(x[200:]), y[200:])
    assert np.all(np.abs(held.held - held.levels) < 5 * np.sqrt(held.levels * (1 - held.levels) / 2000) + 0.005)
    held.plot(tmp_path / "coverage.png")
    with pytest.raises(InvalidInput, match="y must have 2000 numbers"):
        coverage(model.predict(x[200:]), y[:3])


def test_what_it_is_not_for() -> None:
    x = inputs(10)
    scaled = bm.BayesianMLP(SMALL, bm.Gaussian(), engine="numpy")
    with pytest.raises(InvalidInput, match="standardize=False"):
        simulation_based_calibration(scaled, x, method=None)
    learned = bm.BayesianMLP(SMALL, bm.StudentT(), engine="numpy", standardize=False)
    with pytest.raises(InvalidInput, match="nothing but a Gaussian's noise"):
        simulation_based_calibration(learned, x, method=None)
    with pytest.raises(InvalidInput, match="runs must be an integer"):
        simulation_based_calibration(linear(bm.Gaussian()), x, method=None, runs=0)
