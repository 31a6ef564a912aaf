"""Predictive distributions against scipy, numerical integration and heavy Monte Carlo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LINEAR, make_inputs, make_targets, on
from scipy import integrate, special, stats

import bayesmlp as bm
from bayesmlp.inference.engines import NumpyEngine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.likelihoods import FixedNoise, NoiseState
from bayesmlp.inference.logit_normal import laplace_bridge, probit
from bayesmlp.inference.quadrature import normal_nodes
from bayesmlp.scaling import Scaling

ROWS = 3
STATE = NoiseState(np.float64(3.5), np.float64(1.4))
SCALED = Scaling(np.zeros(2), np.ones(2), np.array([10.0]), np.array([4.0]))
KNOWN, LEARNED = bm.Gaussian(noise_variance=0.3), bm.Gaussian()
CASES = ["known-linearized", "known-samples", "known-mean", "learned-linearized", "learned-samples", "learned-mean"]


def random_covariances(rows: int, size: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((rows, size, size + 1))
    return root @ root.mT


def regression(case: str, scaling: Scaling = SCALED) -> tuple[bm.Predictive, list[Any]]:
    """A predictive of one output and, for each answer, the components of the same distribution in scipy.

    Components are equally likely.
    """
    noise, method = case.split("-")
    learned = noise == "learned"
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((ROWS, 1))
    covariance = random_covariances(ROWS, 1, seed=1)
    samples = rng.standard_normal((7, ROWS, 1))
    dispersions = rng.uniform(0.1, 0.8, 7)
    likelihood = LEARNED if learned else KNOWN
    shift, scale = scaling.target_mean[0], scaling.target_scale[0]
    if method == "samples":
        state = FixedNoise(dispersions) if learned else ()
        predictive = bm.Predictive(method, likelihood, scaling, np.full(7, -np.log(7)), samples, likelihood_state=state)
        variances = dispersions if learned else np.full(7, 0.3)
        parts = [
            [
                stats.norm(shift + scale * f, scale * np.sqrt(v))
                for f, v in zip(samples[:, row, 0], variances, strict=True)
            ]
            for row in range(ROWS)
        ]
        return predictive, parts
    spread = covariance if method == "linearized" else np.zeros_like(covariance)
    predictive = bm.Predictive.single(
        method,
        likelihood,
        scaling,
        mean,
        covariance if method == "linearized" else None,
        STATE if learned else (),
    )
    parts = []
    for row in range(ROWS):
        variance = spread[row, 0, 0] + (STATE.rate / STATE.shape if learned else 0.3)
        location, width = shift + scale * mean[row, 0], scale * np.sqrt(variance)
        parts.append([stats.t(2 * STATE.shape, location, width) if learned else stats.norm(location, width)])
    return predictive, parts


@pytest.mark.parametrize("case", CASES)
def test_regression_moments_are_those_of_the_distribution(case: str) -> None:
    predictive, parts = regression(case)
    means = np.array([[part.mean() for part in row] for row in parts])
    squares = np.array([[part.var() + part.mean() ** 2 for part in row] for row in parts])
    np.testing.assert_allclose(predictive.mean, means.mean(1), rtol=1e-12)
    np.testing.assert_allclose(predictive.variance, squares.mean(1) - means.mean(1) ** 2, rtol=1e-10)
    np.testing.assert_allclose(predictive.std, np.sqrt(predictive.variance), rtol=1e-12)
    np.testing.assert_allclose(
        predictive.variance, predictive.epistemic_variance + predictive.aleatoric_variance, rtol=1e-12
    )
    if case.endswith("mean"):
        np.testing.assert_array_equal(predictive.epistemic_variance, 0)
    if case.endswith("samples"):
        np.testing.assert_allclose(predictive.epistemic_variance, means.var(1), rtol=1e-10)
    assert predictive.mean.shape == predictive.variance.shape == (ROWS,)
    assert len(predictive) == ROWS


@pytest.mark.parametrize("case", CASES)
def test_regression_log_prob_is_the_density_in_the_units_of_the_targets(case: str) -> None:
    predictive, parts = regression(case)
    y = predictive.mean + predictive.std * np.array([0.5, -2.0, 6.0])
    logs = [[part.logpdf(target) for part in row] for row, target in zip(parts, y, strict=True)]
    expected = [special.logsumexp(row) - np.log(len(row)) for row in logs]
    np.testing.assert_allclose(predictive.log_prob(y), expected, rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_regression_density_integrates_to_one_and_to_the_moments(case: str) -> None:
    predictive, _ = regression(case)

    def integral(power: int) -> np.ndarray:
        def integrand(y: float) -> np.ndarray:
            return np.exp(predictive.log_prob(np.full(ROWS, y))) * (y - predictive.mean) ** power

        value, _ = integrate.quad_vec(integrand, -np.inf, np.inf, epsabs=1e-10, epsrel=1e-10)
        return value

    np.testing.assert_allclose(integral(0), 1, rtol=1e-7)
    np.testing.assert_allclose(integral(1), 0, atol=1e-7)
    np.testing.assert_allclose(integral(2), predictive.variance, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("q", [0.01, 0.3, 0.5, 0.95])
def test_quantiles_invert_the_distribution_function(case: str, q: float) -> None:
    predictive, parts = regression(case)
    below = [np.mean([part.cdf(y) for part in row]) for row, y in zip(parts, predictive.quantile(q), strict=True)]
    np.testing.assert_allclose(below, q, rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_intervals_leave_equal_tails(case: str) -> None:
    predictive, _ = regression(case)
    lower, upper = predictive.interval(0.8)
    np.testing.assert_allclose(lower, predictive.quantile(0.1), rtol=1e-12)
    np.testing.assert_allclose(upper, predictive.quantile(0.9), rtol=1e-12)
    assert (lower < upper).all()


@pytest.mark.parametrize("case", CASES)
def test_scaling_moves_and_stretches_the_distribution(case: str) -> None:
    plain, _ = regression(case, Scaling.identity(2, 1))
    scaled, _ = regression(case)
    y = plain.sample(3, seed=1)
    np.testing.assert_allclose(scaled.sample(3, seed=1), 10 + 4 * y, rtol=1e-12)
    np.testing.assert_allclose(scaled.mean, 10 + 4 * plain.mean, rtol=1e-12)
    np.testing.assert_allclose(scaled.epistemic_variance, 16 * plain.epistemic_variance, rtol=1e-12)
    np.testing.assert_allclose(scaled.aleatoric_variance, 16 * plain.aleatoric_variance, rtol=1e-12)
    np.testing.assert_allclose(scaled.quantile(0.2), 10 + 4 * plain.quantile(0.2), rtol=1e-10)
    np.testing.assert_allclose(scaled.log_prob(10 + 4 * y[0]), plain.log_prob(y[0]) - np.log(4), rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_have_the_moments_of_the_distribution(case: str, seed: int) -> None:
    predictive, _ = regression(case)
    draws = predictive.sample(40_000, seed=seed)
    assert draws.shape == (40_000, ROWS)
    assert_moments(draws, predictive.mean, predictive.variance)
    below = (draws < predictive.quantile(0.2)).mean(0)
    np.testing.assert_array_less(np.abs(below - 0.2), 5 * np.sqrt(0.2 * 0.8 / len(draws)))


def assert_moments(draws: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Mean and variance within five standard errors."""
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * np.sqrt(variance / len(draws)) + 1e-15)
    squares = (draws - mean) ** 2
    np.testing.assert_array_less(np.abs(squares.mean(0) - variance), 5 * squares.std(0) / len(draws) ** 0.5 + 1e-15)


# -- several outputs --------------------------------------------------------------------------------------------------
def two_outputs(noise: str, method: str) -> tuple[bm.Predictive, np.ndarray, np.ndarray]:
    mean = np.random.default_rng(2).standard_normal((ROWS, 2))
    covariance = random_covariances(ROWS, 2, seed=3)
    likelihood = bm.Gaussian(num_outputs=2, noise_variance=0.3 if noise == "known" else None)
    scaling = Scaling(np.zeros(2), np.ones(2), np.array([1.0, -5.0]), np.array([2.0, 0.5]))
    predictive = bm.Predictive.single(
        method,
        likelihood,
        scaling,
        mean,
        covariance if method == "linearized" else None,
        STATE if noise == "learned" else (),
    )
    return predictive, mean, covariance if method == "linearized" else np.zeros_like(covariance)


@pytest.mark.parametrize("method", ["linearized", "mean"])
@pytest.mark.parametrize("noise", ["known", "learned"])
def test_two_outputs_share_one_distribution(noise: str, method: str) -> None:
    predictive, mean, covariance = two_outputs(noise, method)
    scale, shift = np.diag([2.0, 0.5]), np.array([1.0, -5.0])
    y = np.random.default_rng(4).standard_normal((ROWS, 2)) @ scale + shift
    phi = 0.3 if noise == "known" else STATE.rate / STATE.shape
    expected, variances = [], []
    for row in range(ROWS):
        spread = scale @ (covariance[row] + phi * np.eye(2)) @ scale
        location = mean[row] @ scale + shift
        if noise == "known":
            expected.append(stats.multivariate_normal(location, spread).logpdf(y[row]))
            variances.append(np.diag(spread))
        else:
            expected.append(stats.multivariate_t(location, spread, df=2 * STATE.shape).logpdf(y[row]))
            variances.append(np.diag(spread) * STATE.shape / (STATE.shape - 1))
    np.testing.assert_allclose(predictive.log_prob(y), expected, rtol=1e-10)
    np.testing.assert_allclose(predictive.variance, variances, rtol=1e-10)
    assert predictive.mean.shape == (ROWS, 2)
    draws = predictive.sample(40_000, seed=5)
    assert_moments(draws, predictive.mean, predictive.variance)
    products = (draws[:, :, 0] - predictive.mean[:, 0]) * (draws[:, :, 1] - predictive.mean[:, 1])
    inflation = 1.0 if noise == "known" else STATE.shape / (STATE.shape - 1)
    np.testing.assert_array_less(
        np.abs(products.mean(0) - covariance[:, 0, 1] * 2.0 * 0.5 * inflation),
        5 * products.std(0) / len(products) ** 0.5,
    )


def test_two_outputs_of_sampled_networks_share_a_component() -> None:
    rng = np.random.default_rng(6)
    samples, dispersions = rng.standard_normal((5, ROWS, 2)), rng.uniform(0.1, 1, 5)
    predictive = bm.Predictive(
        "samples",
        bm.Gaussian(num_outputs=2),
        Scaling.identity(2, 2),
        np.full(5, -np.log(5)),
        samples,
        likelihood_state=FixedNoise(dispersions),
    )
    y = rng.standard_normal((ROWS, 2))
    logs = [
        [stats.multivariate_normal(f, phi * np.eye(2)).logpdf(target) for f, target in zip(sample, y, strict=True)]
        for sample, phi in zip(samples, dispersions, strict=True)
    ]
    np.testing.assert_allclose(predictive.log_prob(y), special.logsumexp(logs, axis=0) - np.log(5), rtol=1e-10)


# -- classification ---------------------------------------------------------------------------------------------------
CLASSIFIERS = {"categorical": bm.Categorical(3), "many_classes": bm.Categorical(10), "bernoulli": bm.Bernoulli()}


def classification(name: str, scale: float) -> tuple[bm.Predictive, np.ndarray, np.ndarray]:
    """A linearized predictive; the logits' means and covariances."""
    likelihood = CLASSIFIERS[name]
    size = likelihood.num_outputs
    mean = 1.5 * np.random.default_rng(7).standard_normal((ROWS, size))
    covariance = scale**2 * random_covariances(ROWS, size, seed=8) / size
    scaling = Scaling.identity(2, size)
    return bm.Predictive.single("linearized", likelihood, scaling, mean, covariance), mean, covariance


def class_probabilities(likelihood: Any, logits: np.ndarray) -> np.ndarray:
    if isinstance(likelihood, bm.Categorical):
        return special.softmax(logits, axis=-1)
    return np.concatenate([special.expit(-logits), special.expit(logits)], axis=-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_are_as_good_as_monte_carlo_with_as_many_draws(name: str, scale: float) -> None:
    """The error of S fixed nodes stays within one standard error of S random draws (plus five of the reference)."""
    predictive, mean, covariance = classification(name, scale)
    draws = 100_000
    noise = np.random.default_rng(9).standard_normal((draws, *mean.shape))
    logits = mean + np.einsum("nkl,snl->snk", np.linalg.cholesky(covariance), noise)
    each = class_probabilities(predictive.likelihood, logits)
    num_nodes = len(normal_nodes(mean.shape[1])[1])
    tolerance = each.std(0) * (1 / num_nodes**0.5 + 5 / draws**0.5)
    np.testing.assert_array_less(np.abs(predictive.probabilities - each.mean(0)), tolerance)
    np.testing.assert_allclose(predictive.probabilities.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_yes_or_no_is_integrated_to_three_decimals(scale: float) -> None:
    predictive, mean, covariance = classification("bernoulli", scale)
    for row in range(ROWS):
        normal = stats.norm(mean[row, 0], covariance[row, 0, 0] ** 0.5)
        expected, _ = integrate.quad(
            lambda f, normal=normal: special.expit(f) * normal.pdf(f), -60, 60, epsabs=1e-12, limit=500
        )
        np.testing.assert_allclose(predictive.probabilities[row, 1], expected, atol=5e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_log_prob_is_the_logarithm_of_the_probability(name: str) -> None:
    predictive, _, _ = classification(name, 1.0)
    for label in range(predictive.probabilities.shape[1]):
        got = predictive.log_prob(np.full(ROWS, label))
        np.testing.assert_allclose(got, np.log(predictive.probabilities[:, label]), rtol=1e-10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_mutual_information_is_part_of_the_entropy(name: str, scale: float) -> None:
    predictive, _, _ = classification(name, scale)
    expected = stats.entropy(predictive.probabilities, axis=1)
    np.testing.assert_allclose(predictive.entropy, expected, rtol=1e-10)
    assert (predictive.mutual_information > 0).all()
    assert (predictive.mutual_information < predictive.entropy).all()
    certain = bm.Predictive.single(
        "mean", predictive.likelihood, predictive.scaling, predictive.average_output
    )  # no uncertainty of the weights, nothing to learn about them
    np.testing.assert_allclose(certain.mutual_information, 0, atol=1e-12)
    np.testing.assert_array_equal(certain.epistemic_variance, 0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_class_indicators_have_the_total_variance(name: str) -> None:
    predictive, _, _ = classification(name, 1.0)
    p = predictive.mean
    np.testing.assert_allclose(predictive.variance, p * (1 - p), rtol=1e-10)
    assert (predictive.epistemic_variance > 0).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_drawn_classes_have_their_probabilities(name: str) -> None:
    """Draws know nothing of the nodes; so their probabilities are compared as in the test of the nodes."""
    predictive, _, _ = classification(name, 1.0)
    draws = predictive.sample(40_000, seed=10)
    p = predictive.probabilities
    num_nodes = len(normal_nodes(predictive.output_mean.shape[2])[1])
    spread = np.sqrt(np.broadcast_to(predictive.epistemic_variance.reshape(ROWS, -1), p.shape))
    for label in range(p.shape[1]):
        column = p[:, label]
        tolerance = 5 * np.sqrt(column * (1 - column) / len(draws)) + spread[:, label] / num_nodes**0.5
        np.testing.assert_array_less(np.abs((draws == label).mean(0) - column), tolerance)


# -- closed forms of class probabilities ------------------------------------------------------------------------------
def dense_probabilities(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E[softmax(logits)] by the trapezium rule on the differences from the last logit."""
    size = mean.shape[1]
    differences = np.eye(size)[:-1] - np.eye(size)[-1]
    axis = np.linspace(-9, 9, {2: 8001, 3: 501}[size])
    grid = np.stack(np.meshgrid(*[axis] * (size - 1), indexing="ij"), axis=-1).reshape(-1, size - 1)
    weights = np.exp(-0.5 * (grid**2).sum(1))
    rows = []
    for m, c in zip(mean @ differences.T, differences @ covariance @ differences.T, strict=True):
        logits = np.pad(m + grid @ np.linalg.cholesky(c).T, ((0, 0), (0, 1)))
        rows.append(weights @ special.softmax(logits, axis=1) / weights.sum())
    return np.array(rows)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [2, 3])
def test_probit_is_near_the_integral(size: int, scale: float) -> None:
    rng = np.random.default_rng(20)
    root = scale * rng.standard_normal((40, size, size + 1)) / size**0.5
    mean, covariance = 1.5 * rng.standard_normal((40, size)), root @ root.mT
    exact = dense_probabilities(mean, covariance)
    error = np.abs(probit(NumpyEngine(), mean, covariance) - exact)
    plain = np.abs(special.softmax(mean, axis=1) - exact)
    assert error.max() < 0.02 if size == 2 or scale <= 0.3 else error.max() < 0.2
    assert error.mean() < 0.6 * plain.mean()
    shared = covariance + rng.uniform(1, 5)  # what all logits share does not matter
    np.testing.assert_allclose(probit(NumpyEngine(), mean + 7, shared), probit(NumpyEngine(), mean, covariance))


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_bridge_finds_the_dirichlet_whose_logits_it_is_given(size: int) -> None:
    alpha = np.random.default_rng(21).uniform(0.5, 30, (ROWS, size))
    mean = np.log(alpha) - np.log(alpha).mean(1, keepdims=True) + 3.0
    centre = np.eye(size) - 1 / size
    covariance = centre @ (np.eye(size) / alpha[:, None, :]) @ centre
    got = laplace_bridge(NumpyEngine(), mean, covariance + 2.0)
    np.testing.assert_allclose(got, alpha / alpha.sum(1, keepdims=True), rtol=1e-10)


@pytest.mark.parametrize("size", [2, 3])
def test_the_bridge_is_near_the_integral_of_logits_like_a_dirichlets(size: int) -> None:
    alpha = np.random.default_rng(22).uniform(5, 50, (20, size))
    centre = np.eye(size) - 1 / size
    covariance = centre @ (np.eye(size) / alpha[:, None, :]) @ centre + 0.1
    got = laplace_bridge(NumpyEngine(), np.log(alpha), covariance)
    np.testing.assert_allclose(got, dense_probabilities(np.log(alpha), covariance), atol=0.012)


@pytest.mark.parametrize("approximation", ["nodes", "probit", "bridge", "monte_carlo"])
@pytest.mark.parametrize("likelihood", [bm.Categorical(3), bm.Bernoulli()], ids=["categorical", "bernoulli"])
def test_every_approximation_answers_consistently(likelihood: Any, approximation: str) -> None:
    model = bm.BayesianMLP(bm.MLP((4,)), likelihood, step=bm.LaplaceStep(), engine="numpy")
    x = make_inputs(6, seed=23)
    y = make_targets(likelihood, x, seed=24)
    model.update(x, y)
    options: dict[str, Any] = {"num_samples": 20_000} if approximation == "monte_carlo" else {}
    answer = model.predict(x, approximation=approximation, **options)
    p = answer.probabilities
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-10)
    np.testing.assert_allclose(answer.log_prob(y), np.log(p[np.arange(6), y]), rtol=1e-10)
    mean = answer.mean if isinstance(likelihood, bm.Categorical) else np.stack([1 - answer.mean, answer.mean], axis=1)
    np.testing.assert_allclose(mean, p, rtol=1e-10)
    np.testing.assert_allclose(answer.variance, answer.mean * (1 - answer.mean), rtol=1e-9)
    assert (answer.mutual_information >= 0).all()
    assert (answer.epistemic_variance >= 0).all()
    if approximation in ("probit", "monte_carlo"):
        np.testing.assert_allclose(p, model.predict(x).probabilities, atol=0.03)


def test_approximations_that_do_nothing_are_refused() -> None:
    x = make_inputs(3, seed=25)
    classes, numbers = (bm.BayesianMLP(bm.MLP((3,)), v, engine="numpy") for v in (bm.Categorical(3), bm.Gaussian()))
    for model in (classes, numbers):
        model.start_from_prior(2)
    with pytest.raises(InvalidInput, match="approximation must be one of nodes, probit, bridge, monte_carlo"):
        classes.predict(x, approximation="guess")
    with pytest.raises(InvalidInput, match="approximation 'probit' is for class logits, not for Gaussian"):
        numbers.predict(x, approximation="probit")
    with pytest.raises(InvalidInput, match="approximation 'bridge' is for method 'linearized', not for 'samples'"):
        classes.predict(x, method="samples", approximation="bridge")


# -- from a model -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
@pytest.mark.parametrize("likelihood", [bm.Gaussian(noise_variance=0.3), bm.Gaussian(prior_shape=30.0)])
def test_sampled_networks_agree_with_the_linearized_answer_of_a_linear_model(
    framework: str, likelihood: bm.Gaussian
) -> None:
    model = bm.BayesianMLP(LINEAR, likelihood, structure=bm.Full(), engine=framework)
    x = make_inputs(12, seed=11)
    model.update(x, make_targets(likelihood, x, seed=12))
    x_new, size = 2 * make_inputs(4, seed=13), 2000
    exact = model.predict(x_new)
    sampled = model.predict(x_new, method="samples", num_samples=size, seed=14)
    assert_moments(sampled.output_mean[:, :, 0], exact.mean, exact.epistemic_variance)
    np.testing.assert_array_equal(model.predict(x_new, method="samples", num_samples=size, seed=14).mean, sampled.mean)
    assert (model.predict(x_new, method="samples", num_samples=size, seed=15).mean != sampled.mean).all()
    np.testing.assert_allclose(model.predict(x_new, method="mean").mean, exact.mean, rtol=1e-5)


def test_the_prior_predictive_has_infinite_variance_where_the_noise_has_no_mean() -> None:
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(prior_shape=1.0), engine="numpy")
    model.start_from_prior(2)
    predictive = model.predict(make_inputs(3, seed=15))
    assert np.isposinf(predictive.variance).all()
    lower, upper = predictive.interval(0.9)
    assert np.isfinite(lower).all()
    assert np.isfinite(upper).all()


@pytest.mark.parametrize("framework", on("torch"))
@pytest.mark.parametrize("num_outputs", [1, 2])
def test_known_noise_is_in_the_units_of_the_targets(framework: str, num_outputs: int) -> None:
    """``fit`` scales the targets; the noise variance that the user stated is not in scaled units."""
    x = make_inputs(40, seed=16)
    y = np.stack([100 * np.sin(x[:, 0]), x[:, 1]], axis=1)[:, :num_outputs]
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(num_outputs, noise_variance=0.25), engine=framework)
    model.fit(x, y, method=bm.Laplace(bm.TrainingOptions(epochs=2)))
    np.testing.assert_allclose(model.predict(x[:3]).aleatoric_variance, 0.25, rtol=1e-6)


# -- what is refused --------------------------------------------------------------------------------------------------
def test_questions_that_make_no_sense_are_refused() -> None:
    numbers, _ = regression("known-linearized")
    classes, _, _ = classification("categorical", 1.0)
    for level in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="level must be between 0 and 1"):
            numbers.interval(level)
        with pytest.raises(InvalidInput, match="q must be between 0 and 1"):
            numbers.quantile(level)
    with pytest.raises(InvalidInput, match="quantile is for numeric targets, not for Categorical"):
        classes.interval(0.5)
    with pytest.raises(InvalidInput, match="class probabilities are for Categorical, Bernoulli and Ordinal"):
        _ = numbers.probabilities
    with pytest.raises(InvalidInput, match="num_samples must be an integer of at least 1, got 0"):
        numbers.sample(0)
    with pytest.raises(InvalidInput, match="y must have 3 rows, got 2"):
        numbers.log_prob([1.0, 2.0])
    with pytest.raises(InvalidInput, match="y must be a class from 0 to 2, got 3"):
        classes.log_prob([0, 1, 3])
    with pytest.raises(InvalidInput, match="y must be an array of numbers, got a ragged list"):
        numbers.log_prob([[1.0], [2.0, 3.0], [4.0]])
