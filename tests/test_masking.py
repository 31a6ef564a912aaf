"""Rows that tell of some outputs only: exact answers, and the way through model, updater and log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import NUM_INPUTS, STRUCTURES, make_inputs, on
from scipy import special, stats
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.inference.engines import NumpyEngine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.likelihoods import Likelihood, NoiseState
from bayesmlp.inference.likelihoods.masked import MaskedTargets, masked

HOST = NumpyEngine(dtype="float64")
RNG = np.random.default_rng(0)
ROWS, SIZE = 3, 4
MASK = np.array([[True, False, True, True], [False, True, False, True], [True, True, True, True]])
OUTPUTS = RNG.standard_normal((ROWS, SIZE))
ROOT = RNG.standard_normal((ROWS * SIZE, ROWS * SIZE))
COVARIANCE = ROOT @ ROOT.T
WEIGHT = np.array([1.0, 0.5, 2.0])
LABELS = np.array([2, 3, 0])
VALUES = RNG.standard_normal((ROWS, SIZE))


@pytest.mark.parametrize("row", [0, 1])
def test_a_masked_categorical_is_the_categorical_of_the_possible_logits(row: int) -> None:
    kept = np.flatnonzero(MASK[row])
    y = MaskedTargets(LABELS[row : row + 1], MASK[row : row + 1])
    log_prob, score, factor = masked(bm.Categorical(SIZE)).unit_terms(HOST, OUTPUTS[row : row + 1], y)
    plain = bm.Categorical(len(kept))
    own = np.searchsorted(kept, LABELS[row])[None]
    expected = plain.unit_terms(HOST, OUTPUTS[row : row + 1, kept], own)
    np.testing.assert_allclose(log_prob, expected[0], rtol=1e-14)
    np.testing.assert_allclose(score[:, kept], expected[1], rtol=1e-14)
    np.testing.assert_allclose(
        (factor @ factor.mT)[:, kept][:, :, kept], expected[2] @ expected[2].mT, rtol=1e-13, atol=1e-16
    )
    gone = ~MASK[row]
    assert not score[:, gone].any()
    assert not factor[:, gone].any()


def test_masked_expectations_are_those_of_what_was_observed() -> None:
    """What the variational step takes: a likelihood's terms, averaged over nodes."""
    nodes, weights = RNG.standard_normal((5, ROWS, SIZE)), np.full(5, 0.2)
    score, information = masked(bm.Categorical(SIZE)).expected_terms(HOST, nodes, weights, MaskedTargets(LABELS, MASK))
    for row, kept in enumerate(MASK):
        own = np.array([np.searchsorted(np.flatnonzero(kept), LABELS[row])])
        expected = bm.Categorical(int(kept.sum())).expected_terms(HOST, nodes[:, [row]][:, :, kept], weights, own)
        np.testing.assert_allclose(score[row, kept], expected[0][0], rtol=1e-12)
        np.testing.assert_allclose(information[row][np.ix_(kept, kept)], expected[1][0], rtol=1e-12, atol=1e-16)
        assert not score[row, ~kept].any()
        assert not information[row][~kept].any()
    y = (VALUES > 0).astype(float)
    score, information = masked(bm.Bernoulli(SIZE)).expected_terms(HOST, nodes, weights, MaskedTargets(y, MASK))
    p = special.expit(nodes)
    np.testing.assert_allclose(score, MASK * (y - p.mean(0)), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(information, (MASK * (p * (1 - p)).mean(0))[:, :, None] * np.eye(SIZE), rtol=1e-12)


def within(likelihood: Likelihood, y: Any, state: Any) -> Any:
    """A Bayes step in output space of all rows, masked."""
    return bm.LaplaceStep().solve(
        HOST, masked(likelihood), 1e200, OUTPUTS, COVARIANCE, MaskedTargets(y, MASK), WEIGHT, state
    )


@pytest.mark.parametrize("noise_variance", [None, 0.3])
def test_a_masked_gaussian_is_the_step_with_what_was_observed(noise_variance: float | None) -> None:
    """As one row of a Gaussian with as many outputs as were observed, each weighted."""
    likelihood = bm.Gaussian(SIZE, noise_variance=noise_variance)
    state = NoiseState(np.float64(2.5), np.float64(0.8)) if noise_variance is None else ()
    got = within(likelihood, VALUES, state)
    flat = MASK.reshape(-1)
    error = (VALUES - OUTPUTS).reshape(-1)[flat]
    unit = noise_variance or 1.0
    precision = np.repeat(WEIGHT, SIZE)[flat] / unit
    observed = COVARIANCE[np.ix_(flat, flat)]
    spread = observed + np.diag(1 / precision)
    expected = np.zeros(ROWS * SIZE)
    expected[flat] = np.linalg.solve(spread, error)
    np.testing.assert_allclose(got.residual.reshape(-1), expected, rtol=1e-9, atol=1e-11)
    information = got.fisher_factor @ got.fisher_factor.mT
    np.testing.assert_allclose(information, (WEIGHT[:, None] * MASK / unit)[:, :, None] * np.eye(SIZE), rtol=1e-14)
    if noise_variance is None:
        assert got.state.shape == 2.5 + 0.5 * np.repeat(WEIGHT, SIZE)[flat].sum()
        np.testing.assert_allclose(got.state.rate, 0.8 + 0.5 * error @ np.linalg.solve(spread, error), rtol=1e-12)


@pytest.mark.parametrize("noise_variance", [None, 0.3])
def test_the_predictive_of_a_masked_gaussian_is_the_marginal(noise_variance: float | None) -> None:
    likelihood = bm.Gaussian(SIZE, noise_variance=noise_variance)
    state = NoiseState(np.float64(2.5), np.float64(0.8)) if noise_variance is None else ()
    phi = 0.32 if noise_variance is None else noise_variance
    own = np.stack([COVARIANCE[i : i + SIZE, i : i + SIZE] for i in range(0, ROWS * SIZE, SIZE)])
    for covariance in (own, None):
        got = masked(likelihood).predictive_log_prob(HOST, OUTPUTS, covariance, MaskedTargets(VALUES, MASK), state)
        for row, kept in enumerate(MASK):
            spread = phi * np.eye(kept.sum()) + (0 if covariance is None else covariance[row][np.ix_(kept, kept)])
            location = OUTPUTS[row, kept]
            normal = stats.multivariate_normal(location, spread)
            student = stats.multivariate_t(location, spread, df=5.0)
            reference = student if noise_variance is None else normal
            np.testing.assert_allclose(got[row], reference.logpdf(VALUES[row, kept]), rtol=1e-10)


def test_a_masked_bernoulli_is_the_product_of_what_was_observed() -> None:
    y = (VALUES > 0).astype(float)
    log_prob, score, factor = masked(bm.Bernoulli(SIZE)).unit_terms(HOST, OUTPUTS, MaskedTargets(y, MASK))
    p = special.expit(OUTPUTS)
    np.testing.assert_allclose(log_prob, (MASK * stats.bernoulli(p).logpmf(y)).sum(1), rtol=1e-13)
    np.testing.assert_allclose(score, MASK * (y - p), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(factor @ factor.mT, (MASK * p * (1 - p))[:, :, None] * np.eye(SIZE), rtol=1e-12)


def integral(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E[σ(d)] of the difference of two jointly normal logits, by the trapezium rule."""
    difference = mean[1] - mean[0]
    deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    nodes = np.linspace(-10, 10, 20001)
    yes = np.trapezoid(stats.norm.pdf(nodes) * special.expit(difference + deviation * nodes), nodes)
    return np.array([1 - yes, yes])


def test_the_predictive_of_two_possible_classes_is_the_integral_over_their_logits() -> None:
    model = categorical_model()
    x = make_inputs(4, seed=3)
    kept = np.array([0, 2])
    mask = np.array([True, False, True, False])
    answer = model.predict(x)
    assert answer.output_covariance is not None
    masked_answer = model.predict(x, output_mask=mask)
    got = masked_answer.probabilities
    assert not got[:, ~mask].any()
    expected = [
        integral(m[kept], c[np.ix_(kept, kept)])
        for m, c in zip(answer.output_mean[0], answer.output_covariance[0], strict=True)
    ]
    np.testing.assert_allclose(got[:, kept], expected, atol=2e-3)  # fixed nodes in four dimensions
    np.testing.assert_allclose(masked_answer.mean, got, rtol=1e-12)
    np.testing.assert_allclose(np.exp(masked_answer.log_prob([0] * 4)), got[:, 0], rtol=1e-12)
    probit = model.predict(x, output_mask=mask, approximation="probit").probabilities
    np.testing.assert_allclose(probit[:, kept], expected, atol=2e-2)
    assert set(np.unique(masked_answer.sample(50))) <= {0, 2}
    for method in ("samples", "mean"):
        assert not model.predict(x, method=method, output_mask=mask).probabilities[:, ~mask].any()


def categorical_model(engine: str = "numpy", structure: Any = None) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((4,), "tanh"), bm.Categorical(SIZE), structure=structure, engine=engine, dtype="float64"
    )
    model.start_from_prior(NUM_INPUTS)
    return model


@pytest.mark.parametrize(
    ("name", "framework"),
    [*((name, "numpy") for name in STRUCTURES), *(("last_full", *mark.values) for mark in on("torch", "jax"))],
)
def test_an_update_by_possible_classes_leaves_the_others_alone(name: str, framework: str) -> None:
    """With independent last-layer weights the logits of impossible classes stay as they were."""
    model = categorical_model(framework, STRUCTURES[name] if name != "blocks" else None)
    plain = categorical_model(framework, STRUCTURES[name] if name != "blocks" else None)
    x = make_inputs(3, seed=1)
    info = model.update(x, [1, 1, 3], output_mask=np.array([False, True, False, True]))
    before = plain.predict(x, output_mask=[False, True, False, True])
    np.testing.assert_allclose(
        sum(np.log(before.probabilities[i, c]) for i, c in enumerate([1, 1, 3])), info.log_predictive, rtol=1e-9
    )
    old, new = plain.mean_weights()[-1], model.mean_weights()[-1]
    assert not np.array_equal(old[:, [1, 3]], new[:, [1, 3]])
    np.testing.assert_allclose(old[:, [0, 2]], new[:, [0, 2]], rtol=1e-12)


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_masked_rewards_of_one_arm_are_an_update_of_that_arm(framework: str) -> None:
    """A linear network's arms are independent: each learns from its own rows, and all from the noise."""
    x, rewards = make_inputs(6, seed=1), RNG.standard_normal((6, 2))
    arms = np.array([0, 1, 0, 0, 1, 0])
    mask = np.eye(2, dtype=bool)[arms]

    def model(outputs: int) -> bm.BayesianMLP:
        own = bm.Gaussian(outputs, noise_variance=0.2)
        return bm.BayesianMLP(bm.MLP(()), own, structure=bm.Full(), engine=framework, dtype="float64")

    both = model(2)
    both.start_from_prior(NUM_INPUTS)
    start = both.to_arrays()["weights.mean.0"]
    both.update(x, np.where(mask, rewards, np.nan), output_mask=mask)
    for arm in range(2):
        rows = np.concatenate([x, np.ones((6, 1))], axis=1)[arms == arm]
        prior = bm.NormalPrior().precision(((NUM_INPUTS + 1, 2),))[0][:, arm]
        precision = np.diag(prior) + rows.T @ rows / 0.2
        target = prior * start[:, arm] + rows.T @ rewards[arms == arm, arm] / 0.2
        np.testing.assert_allclose(both.mean_weights()[0][:, arm], np.linalg.solve(precision, target), rtol=1e-9)
    answer = both.predict(x, output_mask=mask)
    each = both.predict(x)
    deviation = np.sqrt(each.variance)
    expected = stats.norm(each.mean, deviation).logpdf(rewards)[np.arange(6), arms]
    np.testing.assert_allclose(answer.log_prob(np.where(mask, rewards, np.nan)), expected, rtol=1e-9)


def test_a_mask_is_checked_by_name() -> None:
    model = categorical_model()
    x = make_inputs(2, seed=0)
    for mask, message in (
        (np.ones((2, SIZE)), "output_mask must be boolean, got dtype float64"),
        (np.ones((2, 3), bool), r"output_mask must have shape \(2, 4\) or \(4,\), got shape \(2, 3\)"),
        ([[True] * SIZE, [False] * SIZE], "at least one output in, got none in row 1"),
        ([False, True, True, True], "y must be a class that output_mask leaves in, got 0 in row 0"),
    ):
        with pytest.raises(InvalidInput, match=message):
            model.update(x, [0, 1], output_mask=mask)
    poisson = bm.BayesianMLP(bm.MLP(()), bm.Poisson(), engine="numpy")
    with pytest.raises(InvalidInput, match="output_mask is for Categorical, Gaussian, Bernoulli, not for Poisson"):
        poisson.update(x, [0, 1], output_mask=[True])


def test_a_mask_of_everything_is_none() -> None:
    one, other = categorical_model(), categorical_model()
    x = make_inputs(2, seed=0)
    one.update(x, [0, 1])
    other.update(x, [0, 1], output_mask=np.ones((2, SIZE), bool))
    for name, array in one.to_arrays().items():
        np.testing.assert_array_equal(array, other.to_arrays()[name])


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_masks_are_kept_in_the_log_and_replayed_to_the_same_digest(tmp_path: Path, framework: str) -> None:
    x, y = stream(12)
    mask = np.eye(3, dtype=bool)[y] | np.eye(3, dtype=bool)[(y + 1) % 3]
    with published(tmp_path, framework) as store, bm.OnlineUpdater(store, "m", engine=framework) as updater:
        published_digest = updater.digest()
        for row in range(4):
            updater.observe(x[row], y[row], event_id=str(row), output_mask=mask[row])
        updater.observe_many(x[4:6], y[4:6], event_ids=["4", "5"], output_mask=mask[4:6])
        updater.observe_batch(x[6:9], y[6:9], event_id="b", output_mask=mask[6:9])
        answer = updater.predict(x[9], output_mask=mask[9])
        assert answer.prediction_id is not None
        assert not answer.probabilities[~mask[9:10]].any()
        updater.feedback(answer.prediction_id, y[9], output_mask=mask[9])
        repeated = updater.observe(x[0], y[0], event_id="0", output_mask=mask[0])
        assert repeated.repeated
        with pytest.raises(bm.errors.ConflictingEvent):
            updater.observe(x[0], y[0], event_id="0")
        digest = updater.digest()
        assert digest != published_digest
        version = updater.version
        updater.observe(x[10], y[10], event_id="late", output_mask=mask[10])
        updater.retract(["late"])
        assert updater.digest() == digest
        arrays = bm.load(store, "m", engine=framework, version=version).to_arrays()
        direct = bm.load(store, "m", engine=framework, version=1)
        for rows in (0, 1, 2, 3, 4, 5, slice(6, 9), 9):
            chosen = np.atleast_1d(np.arange(12)[rows])
            direct.update(x[chosen], y[chosen], output_mask=mask[chosen])
        for name, array in direct.to_arrays().items():
            np.testing.assert_allclose(array, arrays[name], rtol=1e-5, atol=1e-6)
