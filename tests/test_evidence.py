"""What a mixture's members are weighted by: the evidence of what was seen, as far as it weighs and may do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bayesmlp as bm

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 2))
Y = X @ [1.0, -1.0] + 0.3 * rng.normal(size=100)


def linear(engine: str, likelihood: Any, **settings: Any) -> bm.BayesianMLP:
    """Inputs weighed and summed, from the prior alone."""
    settings = {"structure": bm.Full(), **settings}
    model = bm.BayesianMLP(bm.MLP(()), likelihood, engine=engine, dtype="float64", standardize=False, **settings)
    model.start_from_prior(2)
    return model


def log_weights(model: bm.BayesianMLP) -> np.ndarray:
    return model.engine.to_numpy(model.posterior.weights.log_weights)


def error(model: bm.BayesianMLP) -> float:
    """Root mean squared error of the function, which is 0 at best and 1.4 for the prior."""
    return float(np.sqrt(np.mean((np.ravel(model.predict(X).mean) - X @ [1.0, -1.0]) ** 2)))


NOISES = {
    "known": bm.Gaussian(noise_variance=0.09),
    "learned": bm.Gaussian(),
    "two outputs": bm.Gaussian(2, prior_rate=0.3),
}


@pytest.mark.parametrize("engine", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("noise", NOISES)
def test_a_block_is_its_rows_one_by_one(engine: str, noise: str) -> None:
    grid = bm.EvidenceGrid(bm.Full(), (0.1, 0.3, 1.0), prune_below=None)
    likelihood = NOISES[noise]
    y = np.stack([Y, 1 - Y], axis=1)[:, : likelihood.num_outputs]
    together, single = (linear(engine, likelihood, structure=grid) for _ in range(2))
    together.update(X[:6], y[:6])
    for i in range(6):
        single.update(X[i : i + 1], y[i : i + 1])
    np.testing.assert_allclose(log_weights(together), log_weights(single), atol=1e-9)
    np.testing.assert_allclose(together.predict(X).mean, single.predict(X).mean, rtol=1e-9)


@pytest.mark.parametrize("noise", NOISES)
def test_a_row_that_weighs_two_is_two_rows(noise: str) -> None:
    grid = bm.EvidenceGrid(bm.Full(), (0.1, 0.3, 1.0), prune_below=None)
    likelihood = NOISES[noise]
    y = np.stack([Y, 1 - Y], axis=1)[:, : likelihood.num_outputs]
    heavy, twice = (linear("numpy", likelihood, structure=grid) for _ in range(2))
    heavy.update(X[:3], y[:3], weight=[1.0, 2.0, 0.0])
    twice.update(X[[0, 1, 1]], y[[0, 1, 1]])
    np.testing.assert_allclose(log_weights(heavy), log_weights(twice), atol=1e-9)


@pytest.mark.parametrize("likelihood", [*NOISES.values(), bm.Bernoulli(), bm.Poisson()], ids=repr)
def test_the_evidence_of_a_row_is_its_predictive_density(likelihood: Any) -> None:
    scales = (0.1, 0.3, 1.0)
    prior = {"prior": bm.NormalPrior(1.0)}
    target = np.abs(np.round(np.stack([Y[:1]] * likelihood.num_targets, axis=1)))
    mixture = linear("numpy", likelihood, structure=bm.EvidenceGrid(bm.Full(), scales, prune_below=None), **prior)
    mixture.update(X[:1], target)
    alone = []
    for member, scale in enumerate(scales):
        single = linear("numpy", likelihood, prior=bm.NormalPrior(scale), seed=member)
        alone.append(single.update(X[:1], target).log_predictive)
    after = log_weights(mixture)
    np.testing.assert_allclose(after - after[0], np.array(alone) - alone[0], atol=1e-9)


@pytest.mark.parametrize("dynamics", [bm.ChangePoint(), bm.AdaptiveForgetting()], ids=repr)
def test_what_weighs_nothing_says_nothing(dynamics: Any) -> None:
    model = linear("numpy", NOISES["known"], dynamics=dynamics)
    model.update_each(X, Y)
    before = error(model)
    model.update(X[:1], [30.0], weight=1e-9)
    assert error(model) < before + 0.05


def test_an_outlier_whose_influence_is_bounded_is_no_change_point() -> None:
    bounded, plain = (
        linear("numpy", NOISES["known"], dynamics=bm.ChangePoint(), influence=influence)
        for influence in (bm.InverseMultiquadric(), None)
    )
    for model in (bounded, plain):
        model.update_each(X, Y)
        model.update(X[:1], [1000.0])
    assert error(bounded) < 0.2
    assert error(plain) > 1.0, "without the bound it is one"


def test_a_change_is_found_although_influence_is_bounded() -> None:
    model = linear("numpy", NOISES["known"], dynamics=bm.ChangePoint(), influence=bm.InverseMultiquadric())
    model.update_each(X, Y)
    model.update_each(X[:60], -Y[:60])
    assert float(np.sqrt(np.mean((np.ravel(model.predict(X).mean) + X @ [1.0, -1.0]) ** 2))) < 0.3


def test_an_outlier_leaves_candidates_in_the_race() -> None:
    grid = bm.EvidenceGrid(bm.Full(), (0.3, 1.0, 3.0))
    model = linear("numpy", NOISES["known"], structure=grid, influence=bm.InverseMultiquadric())
    model.update_each(X[:3], Y[:3])
    count = len(log_weights(model))
    model.update(X[:1], [1000.0])
    assert len(log_weights(model)) == count
