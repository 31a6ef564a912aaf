"""Ten thousand events, one Bayes step each, folded in one dispatch; ``benchmarks/long_run.py`` folds a million."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import LINEAR, NETWORK, needs

import bayesmlp as bm
from bayesmlp.inference.dynamics import Dynamics
from bayesmlp.inference.filtering import Posterior, filter_step
from bayesmlp.inference.structures import Structure

pytestmark = needs("jax")

ROWS = 10_000


@cache
def events() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 1, 2)) @ np.array([[1.0, 0.9], [0.0, 0.4]])
    return x, np.sin(x @ np.array([[1.0], [-0.7]])) + 0.1 * rng.standard_normal((ROWS, 1, 1))


def fold(
    network: bm.MLP, structure: Structure, dtype: str, dynamics: Dynamics, first: int = 0, times: int = 1
) -> bm.BayesianMLP:
    """A model that has learned the events from ``first`` on; every step was sound. Forgetting is of weights alone."""
    likelihood = bm.Gaussian(noise_variance=None if dynamics.is_static else 0.05)
    model = bm.BayesianMLP(
        network, likelihood, structure=structure, dynamics=dynamics, engine="jax", dtype=dtype, seed=3
    )
    model.start_from_prior(2)
    engine, filter_model = model.engine, model.filter_model

    def body_of(prior: Any) -> Any:
        def body(now: Posterior, row: Any) -> tuple[Posterior, Any]:
            one = engine.constant(1.0, row[0])
            after, info = filter_step(engine, filter_model, now, prior, row[0], row[1], one[None], one)
            return after, info.ok

        return body

    scan = engine.jit(lambda now, prior, x, y: engine.scan(body_of(prior), now, (x, y)))
    rows, after = [engine.asarray(a[first:]) for a in events()], model.posterior
    for _ in range(times):
        after, ok = scan(after, model.prior_state, *rows)
        assert bool(np.all(engine.to_numpy(ok)))
    model.set_posterior(after)
    return model


def moments(model: bm.BayesianMLP) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = (
        np.concatenate([w.ravel() for w in ws]) for ws in (model.mean_weights(), model.weight_variances())
    )
    return mean.astype(np.float64), variance.astype(np.float64)


def batch_solve() -> tuple[np.ndarray, np.ndarray]:
    """Mean and variances of the linear model given all events, in one step of the reference engine's formulas."""
    prior = bm.BayesianMLP(LINEAR, bm.Gaussian(), structure=bm.Full(), engine="numpy", dtype="float64", seed=3)
    prior.start_from_prior(2)
    mean, variance = moments(prior)
    shape, rate = (float(value) for value in prior.posterior.likelihood)
    x, y = (array[:, 0] for array in events())
    rows = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    unit = np.diag(rate / shape / variance)
    precision = unit + rows.T @ rows
    solved = np.linalg.solve(precision, unit @ mean + rows.T @ y[:, 0])
    rate += 0.5 * (np.sum(y * y) + mean @ unit @ mean - solved @ precision @ solved)
    return solved, rate / (shape + 0.5 * ROWS) * np.diag(np.linalg.inv(precision))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
@pytest.mark.parametrize("structure", [bm.Full(), bm.LowRank(3)], ids=["full", "low_rank"])
def test_a_linear_model_ends_at_the_batch_solve(structure: Structure, dtype: str, tolerance: float) -> None:
    mean, variance = moments(fold(LINEAR, structure, dtype, bm.Static()))
    expected, expected_variance = batch_solve()
    assert np.abs((mean - expected) / np.sqrt(expected_variance)).max() < tolerance
    np.testing.assert_allclose(variance, expected_variance, rtol=tolerance)


@pytest.mark.parametrize("dynamics", [bm.Static(), bm.Forgetting(0.99)], ids=["static", "forgetting"])
@pytest.mark.parametrize("structure", [bm.Diagonal(), bm.LowRank(2), bm.Full()], ids=["diagonal", "low_rank", "full"])
def test_float32_stays_finite_and_positive_definite(structure: Structure, dynamics: Dynamics) -> None:
    model = fold(NETWORK, structure, "float32", dynamics)
    mean, variance = moments(model)
    assert np.isfinite(mean).all()
    assert (variance > 0).all()
    with model.engine.scope():
        log_determinant = model.filter_model.of_member.log_determinant(model.engine, model.posterior.weights)
        assert np.isfinite(float(log_determinant))


@pytest.mark.parametrize(
    ("structure", "tolerance"),
    [(bm.Full(), 1e-9), (bm.Kronecker(), 0.15)],  # whose precision lags behind by an eighth of the rows at most
    ids=["full", "kronecker"],
)
def test_what_is_forgotten_leaves_no_trace(structure: Structure, tolerance: float) -> None:
    dynamics = bm.Forgetting(0.99)
    whole, late = (moments(fold(LINEAR, structure, "float64", dynamics, first)) for first in (0, ROWS - 3000))
    assert np.abs((whole[0] - late[0]) / np.sqrt(late[1])).max() < 2 * tolerance
    np.testing.assert_allclose(whole[1], late[1], rtol=tolerance)


@pytest.mark.slow
def test_a_low_rank_of_float32_stands_a_million_events() -> None:
    """Where the columns hold 10⁶ times the prior's precision, their rounding may not use up the diagonal."""
    mean, variance = moments(fold(LINEAR, bm.LowRank(3), "float32", bm.Static(), times=100))
    expected, expected_variance = moments(fold(LINEAR, bm.Full(), "float64", bm.Static(), times=100))
    assert np.abs((mean - expected) / np.sqrt(expected_variance)).max() < 0.5
    assert np.abs(variance / expected_variance - 1).max() < 0.05
