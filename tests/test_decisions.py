"""Decisions and questions, against closed forms and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import NUM_INPUTS, make_inputs, on
from scipy import special, stats

import bayesmlp as bm
from bayesmlp.inference.acquire import (
    condition,
    expected_information_gain,
    expected_predictive_information_gain,
)
from bayesmlp.inference.decide import (
    draw_actions,
    information_directed,
    information_ratio_parts,
    thompson,
    upper_confidence,
)
from bayesmlp.inference.errors import InvalidInput

NOISE = 0.25


def normal_rewards(mean: Any, deviation: Any, draws: int, seed: int = 0) -> np.ndarray:
    """Independent normal rewards of one decision, (S, 1, A)."""
    rng = np.random.default_rng(seed)
    return (np.asarray(mean) + np.asarray(deviation) * rng.standard_normal((draws, len(mean))))[:, None]


# -- decide -----------------------------------------------------------------------------------------------------------
def test_thompson_probabilities_of_two_normal_arms_are_the_normal_distribution_function() -> None:
    draws = 40_000
    got = thompson(normal_rewards([0.3, 0.0], [0.4, 0.7], draws))[0]
    expected = stats.norm.cdf(0.3 / np.hypot(0.4, 0.7))
    assert abs(got[0] - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)
    assert got.sum() == pytest.approx(1.0)


def test_upper_confidence_is_mean_and_deviations() -> None:
    rewards = normal_rewards([0.3, 0.0], [0.4, 0.7], 50)
    np.testing.assert_allclose(
        upper_confidence(rewards, 1.5)[0], rewards[:, 0].mean(0) + 1.5 * rewards[:, 0].std(0), rtol=1e-12
    )


def test_the_parts_of_the_information_ratio_are_their_definitions() -> None:
    rewards = np.random.default_rng(0).standard_normal((60, 2, 3))
    regret, variance = information_ratio_parts(rewards)
    for n in range(2):
        best = [int(np.argmax(draw)) for draw in rewards[:, n]]
        for a in range(3):
            mean = np.mean(rewards[:, n, a])
            assert regret[n, a] == pytest.approx(np.mean([draw.max() for draw in rewards[:, n]]) - mean)
            total = 0.0
            for b in set(best):
                given = [rewards[s, n, a] for s in range(60) if best[s] == b]
                total += len(given) / 60 * (np.mean(given) - mean) ** 2
            assert variance[n, a] == pytest.approx(total)


@pytest.mark.parametrize("seed", range(6))
def test_information_directed_probabilities_minimise_the_ratio_over_the_simplex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards = normal_rewards(rng.standard_normal(3), 2 * rng.random(3), 400, seed)
    regret, variance = (part[0] for part in information_ratio_parts(rewards))
    got = information_directed(rewards)[0]
    assert got.sum() == pytest.approx(1.0)
    assert (got >= 0).all()

    def ratio(p: np.ndarray) -> np.ndarray:
        return np.asarray((p @ regret) ** 2 / (p @ variance))

    steps = np.linspace(0, 1, 201)
    grid = np.array([[a, b, 1 - a - b] for a, b in itertools.product(steps, steps) if a + b <= 1])
    assert ratio(got) <= ratio(grid).min() * (1 + 1e-12)


def test_a_certain_best_action_is_taken() -> None:
    rewards = np.broadcast_to([1.0, 3.0, 2.0], (5, 1, 3))
    for probabilities in (thompson(rewards), information_directed(rewards)):
        np.testing.assert_array_equal(probabilities, [[0.0, 1.0, 0.0]])


def test_actions_are_drawn_with_their_probabilities() -> None:
    probabilities = np.tile([0.0, 0.3, 0.0, 0.7, 0.0], (20_000, 1))
    counts = np.bincount(draw_actions(probabilities, np.random.default_rng(0)), minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert abs(counts[1] / 20_000 - 0.3) < 4 * np.sqrt(0.21 / 20_000)


def linear_model(outputs: int = 1, engine: str = "numpy", noise: float | None = NOISE) -> bm.BayesianMLP:
    likelihood = bm.Gaussian(outputs, noise_variance=noise)
    model = bm.BayesianMLP(
        bm.MLP(()), likelihood, structure=bm.Full(), engine=engine, dtype="float64", standardize=False
    )
    x = make_inputs(5, seed=0)
    return _updated(model, x, np.sin(x @ np.ones((NUM_INPUTS, outputs))))


def _updated(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> bm.BayesianMLP:
    model.update(x, y)
    return model


def row_covariance(model: bm.BayesianMLP, x: np.ndarray) -> np.ndarray:
    """Of a linear model's outputs at all rows, by the dense formula."""
    root = model.to_arrays()["weights.covariance_root"]
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    covariance = rows @ (root @ root.T) @ rows.T
    return np.asarray(covariance * float(model.likelihood.dispersion(model.posterior.likelihood)))


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_joint_outputs_are_the_dense_formula(framework: str) -> None:
    model, x = linear_model(engine=framework, noise=None), make_inputs(5, seed=2)
    joint = model.joint_outputs(x)
    np.testing.assert_allclose(joint.covariance[0], row_covariance(model, x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(joint.mean[0, :, 0], model.predict(x).mean, rtol=1e-9)


def test_rewards_of_rows_are_drawn_jointly() -> None:
    """The same row twice is the same action: the difference of their draws is 0."""
    model, x = linear_model(), make_inputs(3, seed=2)
    draws = model.joint_outputs(np.concatenate([x, x[:1]])).sample_mean(4000, seed=0)[:, :, 0]
    np.testing.assert_allclose(draws[:, 0], draws[:, 3], atol=1e-4)
    error = np.cov(draws[:, :3].T) - row_covariance(model, x)
    assert np.abs(error).max() < 5 * np.diag(row_covariance(model, x)).max() * np.sqrt(2 / 4000)


@pytest.mark.parametrize("strategy", ["thompson", "information_directed"])
def test_decide_says_with_what_probability_it_chose(strategy: str) -> None:
    model = linear_model(3)
    decision = bm.decide(model, make_inputs(4, seed=3), strategy=strategy, seed=0)
    assert decision.probabilities is not None
    assert decision.probabilities.shape == (4, 3)
    np.testing.assert_allclose(decision.probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(decision.propensity, decision.probabilities[range(4), decision.action])
    again = bm.decide(model, make_inputs(4, seed=3), strategy=strategy, seed=0)
    np.testing.assert_array_equal(again.action, decision.action)
    one = bm.decide(model, make_inputs(1, seed=3), strategy=strategy, seed=1)
    assert one.action.shape == (1,)


def test_decide_by_upper_confidence_is_the_largest_bound() -> None:
    model, x = linear_model(3), make_inputs(4, seed=3)
    decision = bm.decide(model, x, strategy="upper_confidence", width=1.0, num_samples=20_000, seed=0)
    answer = model.predict(x)
    bound = answer.mean + np.sqrt(answer.epistemic_variance)
    slack = 5 * np.sqrt(answer.epistemic_variance.max() / 20_000)  # of a mean and a deviation of the draws
    assert (bound.max(axis=1) - bound[range(4), decision.action] < 2 * slack).all()
    assert decision.propensity is None
    assert decision.probabilities is None


@pytest.mark.parametrize("likelihood", [bm.Gaussian(), bm.Bernoulli(), bm.Poisson(), bm.Ordinal(4)])
def test_rows_may_be_actions(likelihood: Any) -> None:
    model = bm.BayesianMLP(bm.MLP((4,)), likelihood, engine="numpy", dtype="float64")
    x = make_inputs(6, seed=0)
    model.update(x, np.array([0, 1, 1, 0, 1, 0]))
    decision = bm.decide(model, x, actions="rows", num_samples=4000, seed=0)
    assert isinstance(decision.action, int)
    assert 0 < decision.propensity <= 1
    answer = model.predict(x)
    slack = 5 * np.sqrt(answer.epistemic_variance / 4000) + 1e-6
    assert (np.abs(decision.expected_reward - answer.mean) < slack).all()


def test_an_ensemble_decides() -> None:
    model = bm.BayesianMLP(
        bm.MLP((3,)), bm.Gaussian(2), structure=bm.Mixture(bm.Diagonal(), 3), engine="numpy", dtype="float64"
    )
    model.update(make_inputs(6, seed=0), make_inputs(6, seed=1))
    assert bm.decide(model, make_inputs(2, seed=0), seed=0).action.shape == (2,)
    assert model.joint_outputs(make_inputs(4, seed=0)).covariance.shape == (3, 8, 8)


def test_decide_checks_by_name() -> None:
    model, x = linear_model(), make_inputs(2, seed=0)
    for options, message in (
        ({"strategy": "best"}, "strategy must be one of"),
        ({"actions": "columns"}, "actions must be 'outputs' or 'rows'"),
        ({"width": -1}, "width must be a number of at least 0"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1"),
        ({}, "actions 'outputs' needs a model with a target for each action"),
    ):
        with pytest.raises(InvalidInput, match=message):
            bm.decide(model, x, **{"seed": 0, **options})
    with pytest.raises(InvalidInput, match="actions 'rows' needs a model with one target"):
        bm.decide(linear_model(2), x, actions="rows", seed=0)


# -- acquire ----------------------------------------------------------------------------------------------------------
def test_questions_about_the_weights_of_a_linear_model_are_the_determinant() -> None:
    model, pool = linear_model(), make_inputs(7, seed=4)
    covariance = row_covariance(model, pool)
    chosen = bm.acquire(model, pool, size=3)
    np.testing.assert_allclose(chosen.scores, 0.5 * np.log1p(np.diag(covariance) / NOISE), rtol=1e-9)
    for count in (1, 2, 3):
        rows = chosen.rows[:count]

        def information(rows: Any) -> float:
            return float(0.5 * np.linalg.slogdet(np.eye(len(rows)) + covariance[np.ix_(rows, rows)] / NOISE)[1])

        assert chosen.gains[:count].sum() == pytest.approx(information(rows), rel=1e-9)
        best = max(information([*rows[:-1], other]) for other in set(range(7)) - set(rows[:-1].tolist()))
        assert information(rows) == pytest.approx(best, rel=1e-12)


def test_questions_about_predictions_of_a_linear_model_are_the_normal_mutual_information() -> None:
    model, pool, targets = linear_model(), make_inputs(7, seed=4), make_inputs(3, seed=5)
    joint = row_covariance(model, np.concatenate([pool, targets])) + NOISE * np.eye(10)
    chosen = bm.acquire(model, pool, targets=targets, size=2)
    expected = [
        np.mean([-0.5 * np.log1p(-(joint[i, t] ** 2) / (joint[i, i] * joint[t, t])) for t in range(7, 10)])
        for i in range(7)
    ]
    np.testing.assert_allclose(chosen.scores, expected, rtol=1e-9)
    assert chosen.rows[0] == int(np.argmax(expected))


def test_an_update_does_to_the_covariance_what_was_foreseen() -> None:
    model, pool = linear_model(2), make_inputs(4, seed=4)
    joint = model.joint_outputs(pool)
    mean, covariance, state = joint.moments()
    foreseen = condition(joint.likelihood, mean, covariance, 2, state)
    model.update(pool[2:3], np.array([[3.0, -1.0]]))
    np.testing.assert_allclose(model.joint_outputs(pool).covariance[0], foreseen, rtol=1e-8, atol=1e-12)


def _binary(p: Any) -> Any:
    return special.entr(p) + special.entr(1 - p)


def test_information_of_a_class_is_the_integral() -> None:
    mean, variance = np.array([[0.4], [-2.0]]), np.array([[[2.0]], [[0.5]]])
    got = expected_information_gain(bm.Bernoulli(), mean, variance, ())
    nodes = np.linspace(-10, 10, 20001)
    for row in range(2):
        p = special.expit(mean[row, 0] + np.sqrt(variance[row, 0, 0]) * nodes)
        density = stats.norm.pdf(nodes)
        expected = _binary(np.trapezoid(density * p, nodes)) - np.trapezoid(density * _binary(p), nodes)
        assert got[row] == pytest.approx(expected, rel=1e-8)


def test_predictive_information_of_two_classes_is_the_integral() -> None:
    mean, covariance = np.array([[0.4], [-0.5]]), np.array([[3.0, 2.0], [2.0, 4.0]])
    draws = 20_000
    noise = np.random.default_rng(0).standard_normal((draws, 2))
    got = expected_predictive_information_gain(bm.Bernoulli(), mean, covariance, 1, (), noise)
    nodes = np.linspace(-8, 8, 801)
    root = np.linalg.cholesky(covariance)
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    density = stats.norm.pdf(first) * stats.norm.pdf(second)
    p = special.expit(mean[0, 0] + root[0, 0] * first)
    q = special.expit(mean[1, 0] + root[1, 0] * first + root[1, 1] * second)

    def integral(values: np.ndarray) -> float:
        return float(np.trapezoid(np.trapezoid(density * values, nodes), nodes))

    joint = np.array([[integral((1 - p) * (1 - q)), integral((1 - p) * q)], [integral(p * (1 - q)), integral(p * q)]])
    product = joint.sum(1)[:, None] * joint.sum(0)
    expected = float(np.sum(joint * np.log(joint / product)))
    # The plug-in's error is that of four shares: a standard deviation of about |log ratio| / √draws.
    assert got[0] == pytest.approx(expected, abs=4 * np.abs(np.log(joint / product)).max() / np.sqrt(draws))


def test_a_batch_does_not_ask_the_same_twice() -> None:
    """The most telling row stands in the pool twice; the second time it tells little."""
    model, pool = linear_model(), make_inputs(5, seed=4)
    best = int(bm.acquire(model, pool).rows[0])
    doubled = bm.acquire(model, np.concatenate([pool, pool[best : best + 1]]), size=2)
    assert doubled.scores[best] == pytest.approx(doubled.scores[5])
    assert set(doubled.rows) != {best, 5}


@pytest.mark.parametrize("likelihood", [bm.Categorical(3), bm.Ordinal(3), bm.Poisson(), bm.HeteroscedasticGaussian()])
@pytest.mark.parametrize("targets", [None, make_inputs(2, seed=9)], ids=["weights", "predictions"])
def test_every_likelihood_may_ask(likelihood: Any, targets: Any) -> None:
    model = bm.BayesianMLP(bm.MLP((4,)), likelihood, engine="numpy", dtype="float64")
    model.update(make_inputs(6, seed=0), np.array([0, 1, 2, 0, 1, 0]))
    chosen = bm.acquire(model, make_inputs(5, seed=1), targets=targets, size=5, num_samples=50)
    assert sorted(chosen.rows) == list(range(5))
    assert (chosen.scores >= 0).all()


def test_acquire_checks_by_name() -> None:
    model, x = linear_model(), make_inputs(2, seed=0)
    with pytest.raises(InvalidInput, match=r"size must be at most the number of candidates \(2\), got 3"):
        bm.acquire(model, x, size=3)
    with pytest.raises(InvalidInput, match="targets must have shape"):
        bm.acquire(model, x, targets=x[:, :1])
