"""Bounded influence: the weights against closed forms, the step against the dense update, and what outliers can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import (
    LIKELIHOODS,
    LINEAR,
    NETWORK,
    make_inputs,
    make_likelihood_state,
    make_targets,
    relative_error,
)

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine
from bayesmlp.inference.influence import squared_distance
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.spec import from_spec, to_spec

HOST = NumpyEngine(dtype="float64")
EXACT = 1e-10


def spread(size: int, seed: int, rows: int = 3) -> np.ndarray:
    """Random covariances, (rows, size, size)."""
    root = np.random.default_rng(seed).standard_normal((rows, size, size + 1))
    return 0.5 * root @ np.swapaxes(root, 1, 2)


def robust_linear(likelihood: Likelihood, framework: str = "numpy", **options: Any) -> bm.BayesianMLP:
    influence = options.pop("influence", bm.InverseMultiquadric())
    return bm.BayesianMLP(
        LINEAR, likelihood, structure=bm.Full(), influence=influence, engine=framework, dtype="float64", **options
    )


# -- distances --------------------------------------------------------------------------------------------------------
def test_distance_of_correlated_targets_is_mahalanobis() -> None:
    outputs, covariance = make_inputs(3, seed=0), spread(2, seed=1)
    y = make_inputs(3, seed=2)
    got, _ = squared_distance(HOST, bm.Gaussian(2, noise_variance=0.3), outputs, covariance, y, ())
    error = y - outputs
    expected = np.einsum("nt,nts,ns->n", error, np.linalg.inv(covariance + 0.3 * np.eye(2)), error) / 2
    np.testing.assert_allclose(got, expected, rtol=EXACT)


def test_distance_of_a_class_is_that_of_its_indicator() -> None:
    likelihood = bm.Categorical(4)
    outputs, covariance = np.random.default_rng(0).standard_normal((3, 4)), spread(4, seed=1)
    y = np.array([0, 3, 1])
    got, _ = squared_distance(HOST, likelihood, outputs, covariance, y, ())
    share = likelihood.predictive_moments(HOST, outputs, covariance, ()).mean
    error = np.eye(4)[y] - share
    covariances = share[:, :, None] * np.eye(4) - share[:, :, None] * share[:, None, :]
    expected = np.einsum("nc,ncd,nd->n", error, np.linalg.pinv(covariances), error) / 3
    np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "ordinal", "poisson"])
def test_squared_distance_has_mean_one_under_the_models_own_predictive(name: str) -> None:
    likelihood = LIKELIHOODS[name]
    size = likelihood.num_outputs
    outputs, covariance = np.random.default_rng(3).standard_normal((1, size)), spread(size, seed=4, rows=1)
    state = make_likelihood_state(likelihood, HOST)
    mean = np.zeros(1)
    total = 0.0
    for value in range({"categorical": 3, "bernoulli": 2, "ordinal": 4, "poisson": 400}[name]):
        y = likelihood.prepare(np.array([value]))
        share = np.exp(likelihood.predictive_log_prob(HOST, outputs, covariance, y, state))
        mean = mean + share * squared_distance(HOST, likelihood, outputs, covariance, y, state)[0]
        total += float(share[0])
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    np.testing.assert_allclose(mean, 1.0, rtol=1e-3 if name == "poisson" else 1e-6)


# -- the step ---------------------------------------------------------------------------------------------------------
def test_the_step_is_the_weighted_bayes_update(framework: str) -> None:
    likelihood = bm.Gaussian(noise_variance=0.3)
    x, y = make_inputs(3, seed=0), np.array([0.4, 30.0, -1.0])
    model = robust_linear(likelihood, framework, influence=bm.InverseMultiquadric(1.7))
    model.start_from_prior(2)
    rows = np.concatenate([x, np.ones((3, 1))], axis=1)
    mean = model.mean_weights()[0][:, 0]
    precision = np.diag(1 / model.weight_variances()[0][:, 0])
    model.update(x, y)
    of_outputs = np.einsum("ni,ij,nj->n", rows, np.linalg.inv(precision), rows)
    relative = (y - rows @ mean) ** 2 / (0.3 + of_outputs) / 1.7**2
    weight = 1 / (1 + relative + of_outputs / 0.3 * relative * np.maximum(0, relative - 4))
    after = precision + (rows.T * weight / 0.3) @ rows
    expected = np.linalg.solve(after, precision @ mean + (rows.T * weight / 0.3) @ y)
    np.testing.assert_allclose(model.mean_weights()[0][:, 0], expected, rtol=EXACT)
    np.testing.assert_allclose(model.weight_variances()[0][:, 0], np.diag(np.linalg.inv(after)), rtol=EXACT)


@pytest.mark.parametrize("deviations", [3.0, 5.0, 30.0, 1e5])
def test_an_early_outlier_moves_no_prediction_further_than_two_thresholds(deviations: float) -> None:
    """With noise far below what the prior allows, where the weight of the likelihood alone would not hold the mean."""
    model = robust_linear(bm.Gaussian(noise_variance=1e-4))
    model.start_from_prior(2)
    x = make_inputs(1, seed=0)
    before = model.predict(x)
    model.update(x, before.mean + deviations * before.std)
    moved = np.abs(model.predict(x).mean - before.mean) / before.std
    assert moved[0] < (2 * 2.385 if deviations < 10 else 0.01)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_frameworks_agree(name: str, framework: str) -> None:
    likelihood = LIKELIHOODS[name]
    x = make_inputs(3, seed=5)
    y = make_targets(likelihood, x, seed=6)
    weights = []
    for engine in ("numpy", framework):
        model = bm.BayesianMLP(
            NETWORK, likelihood, structure=bm.Diagonal(), influence=bm.InverseMultiquadric(), engine=engine,
            dtype="float64",
        )  # fmt: skip
        model.update(x, y, weight=np.array([1.0, 0.5, 2.0]))
        weights.append(np.concatenate([w.ravel() for w in (*model.mean_weights(), *model.weight_variances())]))
    assert relative_error(weights[1], weights[0]) < 1e-9


def test_a_far_threshold_changes_nothing(engine64: Engine) -> None:
    x, y = make_inputs(4, seed=0), make_inputs(4, seed=1)[:, 0]
    plain, far = (
        robust_linear(bm.Gaussian(), engine64.name, influence=influence)
        for influence in (None, bm.InverseMultiquadric(1e9))
    )
    for model in (plain, far):
        model.update(x, y)
    np.testing.assert_allclose(far.mean_weights()[0], plain.mean_weights()[0], rtol=EXACT)
    np.testing.assert_allclose(far.posterior.likelihood.rate, plain.posterior.likelihood.rate, rtol=EXACT)


# -- what an outlier can do -------------------------------------------------------------------------------------------
def clean_stream(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2))
    return x, x @ [1.0, -0.5] + 0.3 + 0.2 * rng.standard_normal(rows)


@pytest.mark.parametrize("noise", [None, 0.04], ids=["learned", "known"])
@pytest.mark.parametrize("deviations", [50.0, 1e6])
def test_an_outlier_neither_moves_the_mean_nor_inflates_the_noise(noise: float | None, deviations: float) -> None:
    x, y = clean_stream(60, seed=0)
    model = robust_linear(bm.Gaussian(noise_variance=noise))
    for a, b in zip(x, y, strict=True):
        model.update(a[None], [b])
    before = model.predict(x)
    model.update(x[:1], [y[0] + 0.2 * deviations])
    after = model.predict(x)
    moved = np.abs(after.mean - before.mean) / before.std
    assert moved.max() < 0.02
    np.testing.assert_allclose(after.std, before.std, rtol=0.01)


def test_an_outlier_as_the_first_event_is_outgrown() -> None:
    x, y = clean_stream(300, seed=1)
    deviations = []
    for first in (y[0], 1e6):
        model = robust_linear(bm.Gaussian())
        for a, b in zip(x, [first, *y[1:]], strict=True):
            model.update(a[None], [b])
        deviations.append(float(model.likelihood.dispersion(model.posterior.likelihood)) ** 0.5)
        np.testing.assert_allclose(model.mean_weights()[0][:, 0], [1.0, -0.5, 0.3], atol=0.05)
    assert deviations[1] == pytest.approx(deviations[0], rel=0.1)


def test_normal_noise_is_learned_without_bias() -> None:
    x, y = clean_stream(4000, seed=2)
    model = robust_linear(bm.Gaussian())
    for start in range(0, 4000, 2):
        model.update(x[start : start + 2], y[start : start + 2])
    noise_variance = float(model.likelihood.dispersion(model.posterior.likelihood))
    assert noise_variance == pytest.approx(0.04, rel=4 * (2 / 4000) ** 0.5)


def test_noise_is_found_from_a_prior_that_is_far_too_small() -> None:
    x, y = clean_stream(400, seed=3)
    model = robust_linear(bm.Gaussian())
    for a, b in zip(x, 1000 * y, strict=True):
        model.update(a[None], [b])
    plain = robust_linear(bm.Gaussian(), influence=None)
    for a, b in zip(x, 1000 * y, strict=True):
        plain.update(a[None], [b])
    robust, exact = (float(np.mean((m.predict(x).mean - 1000 * y) ** 2)) for m in (model, plain))
    assert robust < 1.05 * exact


def test_student_t_bounds_the_influence_of_an_outlier_without_weights() -> None:
    x, y = clean_stream(60, seed=0)
    model = robust_linear(bm.StudentT(scale=0.2), influence=None)
    for a, b in zip(x, y, strict=True):
        model.update(a[None], [b])
    before = model.predict(x).mean
    for deviations, most in ((5.0, 0.05), (50.0, 0.01), (1e6, 1e-6)):
        copy = model.to_engine("numpy")
        copy.update(x[:1], [y[0] + 0.2 * deviations])
        assert np.abs(copy.predict(x).mean - before).max() < most


# -- the option -------------------------------------------------------------------------------------------------------
def test_the_option_is_kept_with_the_model() -> None:
    influence = bm.InverseMultiquadric(3.0)
    assert from_spec(to_spec(influence)) == influence
    model = robust_linear(bm.Gaussian(), influence=influence)
    model.start_from_prior(2)
    assert model.to_engine("numpy").influence == influence
    assert "influence" not in robust_linear(bm.Gaussian(), influence=None).spec()


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf"), "two"])
def test_bad_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(bm.errors.InvalidInput, match=r"InverseMultiquadric\.threshold must be positive"):
        bm.InverseMultiquadric(threshold)


def test_other_options_are_refused() -> None:
    with pytest.raises(bm.errors.InvalidInput, match="influence must be an InverseMultiquadric"):
        robust_linear(bm.Gaussian(), influence="huber")
